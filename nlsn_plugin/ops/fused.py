"""Non-local sparse attention in Triton: one kernel attends, two compute the gradients, and no scores are stored.

As in `streamed.py` all rounds are one softmax, whose largest logarithm is known beforehand:

    y_i = sum_j w_ij g(x_j) / mass_i,   mass_i = sum_j w_ij,   w_ij = exp(x_i . x_j / max(|x_j|, eps) - |x_i|),

j over the windows of all rounds. Rounds are launched one after the other, each adding to what the last one left: in a
round every pixel belongs to one program, so nothing is atomic. On the way back a_ij = w_ij / mass_i is computed again,
and with key_j = x_j / max(|x_j|, eps) and ds_ij = a_ij (dy_i . g(x_j) - dy_i . y_i)

    dx_i = sum_j ds_ij key_j,   dkey_j = sum_i ds_ij x_i,   dg(x_j) = sum_i a_ij dy_i,

the first sum gathered by the queries, the others by the keys.

The kernels take powers of two: to other numbers of channels zeros are added, which change nothing, and taken away.
"""

# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-call, untyped-decorator"
# ruff: noqa: N803, N806

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from nlsn_plugin.errors import first_line
from nlsn_plugin.ops.kernel_parts import INTERPRETED, SPARE
from nlsn_plugin.ops.kernels import (
    circle_kernel,
    forward_kernel,
    hash_kernel,
    key_kernel,
    length_kernel,
    mean_kernel,
    query_kernel,
)
from nlsn_plugin.ops.reference import HALF
from nlsn_plugin.ops.tiles import OPTIONS, Tiles, default_tiles, kernel_settings, machine_of, padded, too_large

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_CHANNELS = 512
MAX_IMAGES = 2**16 - 1  # in a grid of programs
MAX_PIXELS = 500_000_000  # counted in int32, with those of chunks around that may be as long


def forward(
    match: Tensor,
    value: Tensor,
    order: Tensor,
    chunk_size: int,
    differentiable: bool,
    neighbours: str = 'both',
    tiles: Tiles | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Like `streamed.forward`, on a GPU. `tiles` cuts the work in place of the tiles chosen for this device."""
    C = value.shape[-1]
    match, value = widened(match), widened(value)
    images, rounds, pixels = order.shape
    tiles = tiles or default_tiles(match, value)[0]
    settings = kernel_settings(match, value, chunk_size, neighbours, tiles)
    parts = min(tiles.parts, value.shape[-1] // settings['BLOCK_C'])
    grid = most_tiles(pixels, chunk_size, tiles), images, blocks_of(value.shape[-1], parts * settings['BLOCK_C'])
    checksum = value.sum(dtype=torch.float32)
    bound, scale = lengths(match)
    keys, scales = circles(order, chunk_size, scale)
    out, mass, found_mass = torch.empty_like(value), torch.empty_like(bound), torch.empty_like(bound)
    lower = lower_halves(out, rounds - 1)
    with_shift = differentiable and value.dtype in HALF
    shift = torch.empty_like(value) if with_shift else value.new_empty(0)
    with torch.cuda.device_of(match):
        for h in range(rounds):
            found_mass, mass = mass, found_mass  # two, as a program for other channels may read late
            forward_kernel[grid](
                match, value, bound, scales[h], keys[h], checksum,
                out, lower, found_mass, mass, shift,
                FIRST=h == 0, LAST=h == rounds - 1, SHIFT=with_shift, PARTS=parts, **settings,
            )  # fmt: skip
    return narrowed(out, C), mass, narrowed(shift, C) if with_shift else shift


def backward(
    grad: Tensor,
    match: Tensor,
    value: Tensor,
    kept: Tensor,
    mass: Tensor,
    order: Tensor,
    chunk_size: int,
    neighbours: str = 'both',
    tiles: tuple[Tiles, Tiles] | None = None,
) -> tuple[Tensor, Tensor]:
    """The gradients of `match` and `value`, from that of y and what `forward` took and returned.

    kept: shift, if `value` has half precision; else y. tiles: for the queries and for the keys.
    """
    c, C = match.shape[-1], value.shape[-1]
    grad, match, value, kept, mass = (*map(widened, (grad, match, value, kept)), mass.contiguous())
    images, rounds, pixels = order.shape
    query_tiles, key_tiles = tiles or default_tiles(match, value)[1:]
    query_grid, key_grid = ((most_tiles(pixels, chunk_size, cut), images) for cut in (query_tiles, key_tiles))
    query_settings = kernel_settings(match, value, chunk_size, neighbours, query_tiles)
    key_settings = kernel_settings(match, value, chunk_size, neighbours, key_tiles)
    bound, scale = lengths(match)
    mean, total_bound = means(grad, value, kept, bound, mass)
    keys, scales = circles(order, chunk_size, scale)
    queries, total_bounds, all_means = circles(order, chunk_size, total_bound, mean)
    checksum = grad.sum(dtype=torch.float32) + bound.sum()
    grad_match, grad_value = torch.empty_like(match), torch.empty_like(value)
    lower, lower_value = lower_halves(grad_match), lower_halves(grad_value, rounds - 1)
    with torch.cuda.device_of(match):
        for h in range(rounds):
            query_kernel[query_grid](
                grad, match, value, total_bound, scales[h], keys[h], checksum, mean, grad_match, lower,
                FIRST=h == 0, **query_settings,
            )  # fmt: skip
            key_kernel[key_grid](
                grad, match, value, total_bounds[h], scales[h], queries[h], checksum, all_means[h],
                grad_match, lower, grad_value, lower_value,
                FIRST=h == 0, LAST=h == rounds - 1, **key_settings,
            )  # fmt: skip
    return narrowed(grad_match, c), narrowed(grad_value, C)


def hash_codes(match: Tensor, rotations: Tensor) -> Tensor:
    """`lsh.hash_codes` in one pass: [N, L, c], [c, r, m/2] -> codes in [0, m), uint8, [N, r, L]."""
    match, rotations = match.contiguous(), rotations.to(match.device, torch.float32)
    images, pixels, _ = match.shape
    channels, rounds, half = rotations.shape
    pitch = rotations.stride(1)
    if rotations.stride() != (rounds * pitch, pitch, 1):  # else the first of a bank's, say
        rotations, pitch = rotations.contiguous(), half
    codes = torch.empty(images, rounds, pixels, dtype=torch.uint8, device=match.device)
    with torch.cuda.device_of(match):
        hash_kernel[blocks_of(pixels, 64), images, rounds](
            match, rotations, codes, pixels, rounds, half, pitch, channels,
            BLOCK_M=64, BLOCK_K=min(64, padded(channels)), BLOCK_HALF=padded(half), **OPTIONS,
        )  # fmt: skip
    return codes


def unsupported(match: Tensor, value: Tensor) -> str | None:
    """The reason why these kernels cannot run on these tensors; None if they can."""
    c, C = match.shape[-1], value.shape[-1]
    widest = max(c, C)
    if match.dtype not in DTYPES:
        return f'fused knows float32, bfloat16 and float16, not {match.dtype}'
    if widest > MAX_CHANNELS:
        return f'fused takes at most {MAX_CHANNELS} channels, not {widest}'
    if match.shape[0] > MAX_IMAGES or match.shape[0] * match.shape[1] > MAX_PIXELS:
        return f'fused takes at most {MAX_IMAGES} images and {MAX_PIXELS} pixels in a batch'
    return cannot_run(match.device) or cannot_hold(match.device, match.dtype, *map(padded, (c, C)))


@torch.compiler.assume_constant_result
def cannot_run(device: torch.device) -> str | None:
    """The reason why no kernel of this module can run on a device; None if they can."""
    if INTERPRETED:
        return None
    if device.type != 'cuda' or torch.version.hip:
        return 'fused needs a CUDA device (or TRITON_INTERPRET=1)'
    if torch.cuda.get_device_capability(device) < (8, 0):
        return 'fused needs a GPU of compute capability 8.0 or newer'
    return failure(device)


@functools.cache
def failure(device: torch.device) -> str | None:
    """The error when Triton compiles and launches a kernel, such as that there is no C compiler; None if it works."""
    try:
        with _disable_current_modes():  # what is found holds for the process: it must not be FakeTensorMode's
            match, rotations = (
                torch.ones(shape, dtype=torch.float32, device=device) for shape in ((1, 1, 16), (16, 1, 1))
            )
            hash_codes(match, rotations).cpu()
    except torch.cuda.OutOfMemoryError:
        raise  # says nothing of Triton, and another time may be another
    except Exception as error:  # noqa: BLE001  (its compiler's, the C compiler's, the driver's: any)
        return f'Triton cannot run kernels here ({type(error).__name__}: {first_line(error)})'
    return None


@torch.compiler.assume_constant_result
def cannot_hold(device: torch.device, dtype: torch.dtype, c: int, C: int) -> str | None:
    """`tiles.too_large` for a device on which kernels can run."""
    return too_large(c, C, dtype, machine_of(device))


def widened(x: Tensor) -> Tensor:
    """Pad the channels with zeros up to a number that the kernels take."""
    missing = padded(x.shape[-1]) - x.shape[-1]
    return F.pad(x, (0, missing)) if missing else x.contiguous()


def narrowed(x: Tensor, channels: int) -> Tensor:
    """Keep the first channels: undo `widened`."""
    return x[..., :channels].contiguous()


def lengths(match: Tensor) -> tuple[Tensor, Tensor]:
    """For each pixel, float32, [N, L]: the bound |x| of its scores, in powers of two, and 1 / max(|x|, eps)."""
    bound, scale = (torch.empty(match.shape[:2], dtype=torch.float32, device=match.device) for _ in range(2))
    if bound.numel():
        with torch.cuda.device_of(match):
            length_kernel[(blocks_of(bound.numel(), 32),)](
                match, bound, scale, bound.numel(), match.shape[-1], BLOCK_M=32, **OPTIONS
            )
    return bound, scale


def means(grad: Tensor, value: Tensor, kept: Tensor, bound: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    """For each pixel, float32, [N, L]: dy_i . y_i, and the logarithm to base 2 of exp(|x_i|) mass_i."""
    mean, total_bound = torch.empty_like(mass), torch.empty_like(mass)
    if mass.numel():
        with torch.cuda.device_of(grad):
            mean_kernel[(blocks_of(mass.numel(), 32),)](
                grad, value, kept, bound, mass, mean, total_bound, mass.numel(), value.shape[-1],
                SHIFT=value.dtype in HALF, BLOCK_M=32, BLOCK_C=min(256, value.shape[-1]), **OPTIONS,
            )  # fmt: skip
    return mean, total_bound


def blocks_of(count: int, size: int) -> int:
    """The quotient, rounded up. (Called from Python, triton.cdiv takes 18 us.)"""
    return -(-count // size)


def most_tiles(pixels: int, chunk_size: int, tiles: Tiles) -> int:
    """Most programs that `tile` can need: for each chunk the tiles that it fills, and one more for a seam."""
    return blocks_of(pixels, chunk_size) * (blocks_of(chunk_size, tiles.block_m) + 1)


def lower_halves(result: Tensor, times: int = 1) -> Tensor:
    """Room for the lower halves of sums whose upper ones lie in `result` and which are stored so many times.

    If they have no halves, or are never stored, it is `result` itself, and no kernel looks there.
    """
    return torch.empty_like(result, dtype=torch.int16) if result.dtype in HALF and times else result


def circles(order: Tensor, chunk_size: int, *along: Tensor) -> list[Tensor]:
    """The pixels in the slots and what one or two tensors have there: as keys with one, as queries with two.

    [N, r, L], [N, L], ... -> int32 and float32, [r, N, slots].
    """
    images, rounds, pixels = order.shape
    slots = (blocks_of(pixels, chunk_size) + 2) * chunk_size + SPARE.value
    found = [
        torch.empty(rounds, images, slots, dtype=dtype, device=order.device)
        for dtype in (torch.int32, *(torch.float32 for _ in along))
    ]
    if images:
        both = len(along) == 2
        with torch.cuda.device_of(order):
            circle_kernel[blocks_of(slots, 1024), images, rounds](
                order.contiguous(), found[0], along[0], found[1], along[-1], found[-1], pixels, chunk_size, rounds,
                KEYS=not both, BOTH=both, BLOCK=1024, **OPTIONS,
            )  # fmt: skip
    return found
