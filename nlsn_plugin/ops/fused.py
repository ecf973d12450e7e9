"""Non-local sparse attention in Triton: one kernel forward, two backward, and no score ever in memory.

As in `streamed.py` all rounds are one softmax, whose largest logarithm is known beforehand:

    y_i = sum_j w_ij g(x_j) / mass_i,   mass_i = sum_j w_ij,   w_ij = exp(x_i . x_j / max(|x_j|, eps) - |x_i|),

j over the windows of all rounds. Rounds are launched one after the other, each adding to what the last one left: in a
round every pixel belongs to one program, so nothing is atomic. On the way back a_ij = w_ij / mass_i is computed again,
and with key_j = x_j / max(|x_j|, eps) and ds_ij = a_ij (dy_i . g(x_j) - dy_i . y_i)

    dx_i = sum_j ds_ij key_j,   dkey_j = sum_i ds_ij x_i,   dg(x_j) = sum_i a_ij dy_i,

the first sum gathered by the queries, the others by the keys.

Letters as in `lsh.py` and `reference.py`. Pixels are counted through the batch, so that tensors are [N L, *]. A place
is one in the sorted order, [0, L). A slot is one in the filled order as walked round the circle of chunks, between
-k and (n + 1) k: the window of chunk u is the slots from (u - 1) k to (u + 2) k, and where chunks coincide their slots
do not.
"""

# Triton's language has no types; in it upper case, besides the letters L and C, is what the compiler knows.
# mypy: disable-error-code="import-untyped, import-not-found, untyped-decorator, no-untyped-def, no-untyped-call"
# ruff: noqa: N803, N806

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from nlsn_plugin.ops.reference import HALF, KEY_EPS

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_CHANNELS = 512
MAX_IMAGES = 2**16 - 1  # in a grid of programs
MAX_PIXELS = 2**31 - 1  # to be counted in int32

EPS = tl.constexpr(KEY_EPS)
LOG2E = tl.constexpr(1.4426950408889634)
INFINITY = tl.constexpr(float('inf'))


@triton.jit
def dot(a, b, PRECISION: tl.constexpr):
    """a @ b, summed in float32."""
    if INTERPRETED:  # the interpreter takes bfloat16 for integers
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


INTERPRETED = tl.constexpr(not isinstance(dot, triton.JITFunction))


@triton.jit
def load_rows(x, pixel, exists, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, first=0):
    """BLOCK channels of x from `first` on, 0 where pixel or channel do not exist: [pixels, BLOCK]."""
    channel = first + tl.arange(0, BLOCK)
    offset = pixel.to(tl.int64)[:, None] * CHANNELS + channel[None, :]
    return tl.load(x + offset, mask=exists[:, None] & (channel < CHANNELS)[None, :], other=0.0)


@triton.jit
def store_rows(x, rows, pixel, exists, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, first=0):
    """The reverse."""
    channel = first + tl.arange(0, BLOCK)
    offset = pixel.to(tl.int64)[:, None] * CHANNELS + channel[None, :]
    tl.store(x + offset, rows.to(x.dtype.element_ty), mask=exists[:, None] & (channel < CHANNELS)[None, :])


@triton.jit
def multiply_rows(
    a, a_pixel, a_exists, b, b_pixel, b_exists, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr
):
    """Products of rows of a and b, [a's pixels, b's pixels], BLOCK channels at a time."""
    total = tl.zeros([a_pixel.shape[0], b_pixel.shape[0]], tl.float32)
    for first in tl.static_range(0, CHANNELS, BLOCK):
        left = load_rows(a, a_pixel, a_exists, CHANNELS, BLOCK, first)
        total += dot(left, tl.trans(load_rows(b, b_pixel, b_exists, CHANNELS, BLOCK, first)), PRECISION)
    return total


@triton.jit
def fill(L, k):
    """Length of the filled order, n k."""
    return tl.cdiv(L, k) * k


@triton.jit
def wrap(slot, L, k):
    """Places of slots in the filled order, [0, n k)."""
    return tl.where(slot < 0, slot + fill(L, k), tl.where(slot < fill(L, k), slot, slot - fill(L, k)))


@triton.jit
def window(place, k):
    """The first slot of the window of a place; the keys there meet its query, the queries there its key."""
    return (place // k - 1) * k


@triton.jit
def within(slot, window_start, k):
    """Whether slots lie in windows, [1, slots], [windows, 1] -> [windows, slots]."""
    return (slot >= window_start) & (slot < window_start + 3 * k)


@triton.jit
def load_keys(order, slot, end, L, k):
    """Pixels of the keys in slots, and whether the slots lie before `end`: the last pixels stand twice."""
    place = wrap(slot, L, k)
    place = tl.where(place < L, place, place - (fill(L, k) - L))
    return tl.load(order + place, mask=slot < end, other=0), slot < end


@triton.jit
def load_scale(length, pixel):
    """1 / max(|x|, eps), which makes keys of features."""
    return 1 / tl.maximum(tl.load(length + pixel), EPS)


@triton.jit
def weigh(score, scale, bound, inside):
    """w from x_i . x_j, 1 / |x_j| and |x_i|; 0 outside the window."""
    return tl.where(inside, tl.exp2(score * (scale * LOG2E) - bound * LOG2E), 0.0)


@triton.jit
def forward_kernel(
    match, value, length, order, all_finite, found, found_mass, result, result_mass, shift,
    L, k, c: tl.constexpr, C: tl.constexpr, PRECISION: tl.constexpr,
    FIRST: tl.constexpr, LAST: tl.constexpr, SHIFT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """What BLOCK_M queries find in one round: numerators for BLOCK_C channels, and mass.

    found, found_mass: of the rounds before, unless FIRST; result, result_mass: with this one. LAST divides. SHIFT then
    stores y_i - g(x_i) too.
    """
    # A tile may reach over several chunks. Values then meet queries outside their window, with weight 0, which hides
    # any but those not finite: if there are such, tiles end where their chunk does.
    run = tl.where(tl.load(all_finite), fill(L, k), k)
    tiles = tl.cdiv(run, BLOCK_M)
    first = tl.program_id(0) // tiles * run + tl.program_id(0) % tiles * BLOCK_M
    end = tl.minimum((tl.program_id(0) // tiles + 1) * run, L)
    if first >= end:
        return
    order += tl.program_id(1).to(tl.int64) * L
    channel = tl.program_id(2) * BLOCK_C

    place = first + tl.arange(0, BLOCK_M)
    exists = place < end
    query = tl.load(order + place, mask=exists, other=0)
    x = load_rows(match, query, exists, c, BLOCK_K)
    bound = tl.load(length + query)
    window_start = window(place, k)

    total = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    mass = tl.zeros([BLOCK_M], tl.float32)
    slots_end = window(tl.minimum(first + BLOCK_M, end) - 1, k) + 3 * k
    for start in range(window(first, k), slots_end, BLOCK_N):
        slot = start + tl.arange(0, BLOCK_N)
        key, is_key = load_keys(order, slot, slots_end, L, k)
        inside = within(slot[None, :], window_start[:, None], k)
        score = dot(x, tl.trans(load_rows(match, key, is_key, c, BLOCK_K)), PRECISION)
        weight = weigh(score, load_scale(length, key)[None, :], bound[:, None], inside)
        values = load_rows(value, key, is_key, C, BLOCK_C, channel)
        weight = weight.to(values.dtype)  # before the sum too, so that a pixel alone with itself finds its own value
        mass += tl.sum(weight.to(tl.float32), axis=1)
        total += dot(weight, values, PRECISION)

    if not FIRST:
        total += load_rows(found, query, exists, C, BLOCK_C, channel)
        mass += tl.load(found_mass + query)
    if LAST:
        total /= mass[:, None]
    store_rows(result, total, query, exists, C, BLOCK_C, channel)
    if LAST and SHIFT:
        own = load_rows(value, query, exists, C, BLOCK_C, channel).to(tl.float32)
        store_rows(shift, total - own, query, exists, C, BLOCK_C, channel)
    if channel == 0:
        tl.store(result_mass + query, mass, mask=exists)


@triton.jit
def query_kernel(
    grad, match, value, kept, length, mass, order, mean, found,
    L, k, c: tl.constexpr, C: tl.constexpr, PRECISION: tl.constexpr, FIRST: tl.constexpr, SHIFT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Adds to `found` the gradient of BLOCK_M features as queries in one round; the FIRST fills it and `mean`.

    mean: dy_i . y_i, the mean over the keys of dy_i . g(x_j), [N L]. kept: y_i - g(x_i) if SHIFT, else y_i.
    """
    order += tl.program_id(1).to(tl.int64) * L
    first = tl.program_id(0) * BLOCK_M
    place = first + tl.arange(0, BLOCK_M)
    exists = place < L
    query = tl.load(order + place, mask=exists, other=0)
    x = load_rows(match, query, exists, c, BLOCK_K)
    bound = tl.load(length + query)
    window_start = window(place, k)
    if FIRST:
        dy = load_rows(grad, query, exists, C, WIDTH).to(tl.float32)
        y = load_rows(kept, query, exists, C, WIDTH).to(tl.float32)
        if SHIFT:
            y += load_rows(value, query, exists, C, WIDTH).to(tl.float32)
        mean_dy = tl.sum(dy * y, axis=1)
        tl.store(mean + query, mean_dy, mask=exists)
    else:
        mean_dy = tl.load(mean + query)

    total = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    slots_end = window(tl.minimum(first + BLOCK_M, L) - 1, k) + 3 * k
    for start in range(window(first, k), slots_end, BLOCK_N):
        slot = start + tl.arange(0, BLOCK_N)
        key, is_key = load_keys(order, slot, slots_end, L, k)
        inside = within(slot[None, :], window_start[:, None], k)
        features = load_rows(match, key, is_key, c, BLOCK_K)
        scale = load_scale(length, key)
        weight = weigh(dot(x, tl.trans(features), PRECISION), scale[None, :], bound[:, None], inside)
        dweight = multiply_rows(grad, query, exists, value, key, is_key, C, BLOCK_C, PRECISION)
        ds = tl.where(inside, weight * (dweight - mean_dy[:, None]), 0.0)
        keys = features * scale[:, None]  # rather than ds times scale, which float16 may not hold
        total += dot(ds.to(x.dtype), keys.to(x.dtype), PRECISION)

    total /= tl.load(mass + query)[:, None]
    if not FIRST:
        total += load_rows(found, query, exists, c, BLOCK_K)
    store_rows(found, total, query, exists, c, BLOCK_K)


@triton.jit
def key_kernel(
    grad, match, value, length, mass, order, mean, found, found_value, result, result_value,
    L, k, c: tl.constexpr, C: tl.constexpr, PRECISION: tl.constexpr, FIRST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The gradient of BLOCK_M features as keys, and of their values, in one round.

    found: what the queries and the rounds before found for features; found_value: for values, unless FIRST; result,
    result_value: with this round.
    """
    order += tl.program_id(1).to(tl.int64) * L
    first = tl.program_id(0) * BLOCK_M
    last = tl.minimum(first + BLOCK_M, L) - 1
    place = first + tl.arange(0, BLOCK_M)
    exists = place < L
    key = tl.load(order + place, mask=exists, other=0)
    features = load_rows(match, key, exists, c, BLOCK_K)
    scale = load_scale(length, key)

    # The last pixels of the order stand once more at the end of the last chunk: more queries meet them, some twice.
    window_start = window(place, k)
    doubled_from = 2 * L - fill(L, k)
    is_doubled = (place >= doubled_from) & exists
    last_window_start = fill(L, k) - 2 * k
    total = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    total_value = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    slots_end = tl.where(last >= doubled_from, last_window_start, window(last, k)) + 3 * k
    for start in range(window(first, k), slots_end, BLOCK_N):
        slot = start + tl.arange(0, BLOCK_N)
        query_place = wrap(slot, L, k)
        is_query = (slot < slots_end) & (query_place < L)  # second copies are none
        query = tl.load(order + query_place, mask=is_query, other=0)
        once = within(slot[None, :], window_start[:, None], k)
        again = within(slot[None, :], last_window_start, k) & is_doubled[:, None]
        times = tl.where(is_query[None, :], once.to(tl.float32) + again.to(tl.float32), 0.0)
        x = load_rows(match, query, is_query, c, BLOCK_K)
        dy = load_rows(grad, query, is_query, C, WIDTH)
        bound = tl.load(length + query)
        weight = weigh(dot(features, tl.trans(x), PRECISION), scale[:, None], bound[None, :], times > 0)
        attention = weight * (times / tl.load(mass + query, mask=is_query, other=1.0)[None, :])
        total_value += dot(attention.to(dy.dtype), dy, PRECISION)
        dattention = multiply_rows(value, key, exists, grad, query, is_query, C, BLOCK_C, PRECISION)
        ds = tl.where(times > 0, attention * (dattention - tl.load(mean + query)[None, :]), 0.0)
        total += dot(ds.to(x.dtype), x, PRECISION)

    # Through the normalisation of keys: what points along the feature is lost, unless eps took the place of its length.
    keys = features * scale[:, None]
    along = tl.where(tl.load(length + key) < EPS, 0.0, tl.sum(keys * total, axis=1))
    total = (total - keys * along[:, None]) * scale[:, None]
    total += load_rows(found, key, exists, c, BLOCK_K)
    store_rows(result, total, key, exists, c, BLOCK_K)
    if not FIRST:
        total_value += load_rows(found_value, key, exists, C, WIDTH)
    store_rows(result_value, total_value, key, exists, C, WIDTH)


@triton.jit
def hash_kernel(
    match, rotations, codes, L, rounds, c: tl.constexpr, HALF: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    """The codes of BLOCK_M pixels in one round; rotations: [c, r * m/2]."""
    first, image, h = tl.program_id(0) * BLOCK_M, tl.program_id(1).to(tl.int64), tl.program_id(2)
    pixel = first + tl.arange(0, BLOCK_M)
    column = tl.arange(0, BLOCK_HALF)
    projected = tl.zeros([BLOCK_M, BLOCK_HALF], tl.float32)
    for start in range(0, c, BLOCK_K):
        x = load_rows(match, image * L + pixel, pixel < L, c, BLOCK_K, start)
        row = start + tl.arange(0, BLOCK_K)
        mask = (row < c)[:, None] & (column < HALF)[None, :]
        vertices = tl.load(rotations + (row[:, None] * rounds + h) * HALF + column[None, :], mask=mask, other=0.0)
        projected += dot(x.to(tl.float32), vertices, 'ieee')
    projected = tl.where(projected == projected, projected, 0.0)  # of what is not a number the code is 0
    nearest = tl.where(column < HALF, projected, -INFINITY)
    farthest = tl.where(column < HALF, projected, INFINITY)
    opposite = -tl.min(farthest, axis=1) > tl.max(nearest, axis=1)
    code = tl.where(opposite, tl.argmin(farthest, axis=1) + HALF, tl.argmax(nearest, axis=1))
    tl.store(codes + (image * rounds + h) * L + pixel, code.to(codes.dtype.element_ty), mask=pixel < L)


class Tiles(NamedTuple):
    """How a kernel cuts its work.

    Args:
        block_m: pixels of a program.
        block_n: pixels that they meet at a time.
        block_c: value channels at a time, in a program of the forward kernel, in a product of the backward kernels.
        num_warps, num_stages: warps of a program, stages of its pipeline.
    """

    block_m: int
    block_n: int
    block_c: int = 256
    num_warps: int = 8
    num_stages: int = 3


TILES = (Tiles(64, 64), Tiles(64, 32), Tiles(32, 32), Tiles(32, 16), Tiles(16, 16, num_warps=4))
"""From the fastest to those that fit everywhere."""


def forward(
    match: Tensor,
    value: Tensor,
    order: Tensor,
    chunk_size: int,
    differentiable: bool,
    tiles: Tiles | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attend.

    Args:
        match: [N, L, c].
        value: [N, L, C].
        order: the pixels sorted by hash code, [N, r, L].
        chunk_size: k <= L.
        differentiable: whether a backward pass is to follow.
        tiles: how to cut the work, if not as this device likes it.

    Returns:
        y, [N, L, C] in the dtype of `value`; mass, [N, L] in float32; shift, as `streamed.forward` has it.
    """
    match, value = match.contiguous(), value.contiguous()
    images, rounds, pixels = order.shape
    tiles = tiles or default_tiles(match, value)[0]
    settings = kernel_settings(match, value, chunk_size, tiles)
    tile_count = triton.cdiv(pixels, chunk_size) * triton.cdiv(chunk_size, tiles.block_m)  # if chunks are cut singly
    grid = tile_count, images, triton.cdiv(value.shape[-1], settings['BLOCK_C'])
    length, all_finite = lengths(match), value.sum(dtype=torch.float32).isfinite()
    out, mass, found_mass = torch.empty_like(value), torch.empty_like(length), torch.empty_like(length)
    found = out if rounds == 1 else accumulator(out)
    with_shift = differentiable and value.dtype in HALF
    shift = torch.empty_like(value) if with_shift else value.new_empty(0)
    with torch.cuda.device_of(match):
        for h, places in enumerate(by_round(order)):
            last = h == rounds - 1
            forward_kernel[grid](
                match, value, length, places, all_finite, found, found_mass, out if last else found, mass, shift,
                FIRST=h == 0, LAST=last, SHIFT=with_shift, **settings,
            )  # fmt: skip
            mass, found_mass = found_mass, mass  # two, as a program for other channels may read late
    return out, found_mass, shift


def backward(
    grad: Tensor,
    match: Tensor,
    value: Tensor,
    kept: Tensor,
    mass: Tensor,
    order: Tensor,
    chunk_size: int,
    tiles: tuple[Tiles, Tiles] | None = None,
) -> tuple[Tensor, Tensor]:
    """The gradients of `match` and `value`, from that of y and what `forward` took and returned.

    kept: shift, if `value` has half precision; else y. tiles: for the queries and for the keys.
    """
    grad, match, value, kept, mass = (x.contiguous() for x in (grad, match, value, kept, mass))
    images, rounds, pixels = order.shape
    query_tiles, key_tiles = tiles or default_tiles(match, value)[1:]
    query_grid, key_grid = ((triton.cdiv(pixels, cut.block_m), images) for cut in (query_tiles, key_tiles))
    width = {'WIDTH': padded(value.shape[-1])}
    query_settings = kernel_settings(match, value, chunk_size, query_tiles) | width
    key_settings = kernel_settings(match, value, chunk_size, key_tiles) | width
    length, mean = lengths(match), torch.empty_like(mass)
    grad_match, grad_value = torch.empty_like(match), torch.empty_like(value)
    found, found_value = accumulator(grad_match), grad_value if rounds == 1 else accumulator(grad_value)
    with torch.cuda.device_of(match):
        for h, places in enumerate(by_round(order)):
            query_kernel[query_grid](
                grad, match, value, kept, length, mass, places, mean, found,
                FIRST=h == 0, SHIFT=value.dtype in HALF, **query_settings,
            )  # fmt: skip
            results = (grad_match, grad_value) if h == rounds - 1 else (found, found_value)
            key_kernel[key_grid](
                grad, match, value, length, mass, places, mean, found, found_value, *results,
                FIRST=h == 0, **key_settings,
            )  # fmt: skip
    return grad_match, grad_value


def hash_codes(match: Tensor, rotations: Tensor) -> Tensor:
    """`lsh.hash_codes` in one pass: [N, L, c], [c, r, m/2] -> codes in [0, m), uint8, [N, r, L]."""
    match, rotations = match.contiguous(), rotations.to(match.device, torch.float32).contiguous()
    images, pixels, _ = match.shape
    channels, rounds, half = rotations.shape
    codes = torch.empty(images, rounds, pixels, dtype=torch.uint8, device=match.device)
    with torch.cuda.device_of(match):
        hash_kernel[triton.cdiv(pixels, 64), images, rounds](
            match, rotations, codes, pixels, rounds, channels, half,
            BLOCK_M=64, BLOCK_K=min(32, padded(channels)), BLOCK_HALF=padded(half),
        )  # fmt: skip
    return codes


def unsupported(match: Tensor, value: Tensor) -> str | None:
    """Why these kernels cannot run on these tensors; None if they can."""
    widest = max(match.shape[-1], value.shape[-1])
    if match.dtype != value.dtype:
        return f'fused needs match and value of one dtype, not {match.dtype} and {value.dtype}'
    if match.dtype not in DTYPES:
        return f'fused knows float32, bfloat16 and float16, not {match.dtype}'
    if widest > MAX_CHANNELS:
        return f'fused takes at most {MAX_CHANNELS} channels, not {widest}'
    if match.shape[0] > MAX_IMAGES or match.shape[0] * match.shape[1] > MAX_PIXELS:
        return f'fused takes at most {MAX_IMAGES} images and {MAX_PIXELS} pixels in a batch'
    if INTERPRETED:
        return None
    if match.device.type != 'cuda' or torch.version.hip:
        return 'fused needs a CUDA device (or TRITON_INTERPRET=1)'
    if torch.cuda.get_device_capability(match.device) < (8, 0):
        return 'fused needs a GPU of compute capability 8.0 or newer'
    return None


def default_tiles(match: Tensor, value: Tensor) -> tuple[Tiles, Tiles, Tiles]:
    """For the forward, the query and the key kernel: the largest tiles that the device holds."""
    c, C = padded(match.shape[-1]), padded(value.shape[-1])
    block_c = min(C, 256)
    exact = precision(match) == 'tf32x3'
    return (
        fitting_tiles(match, c, c + block_c, block_c)._replace(block_c=block_c),
        fitting_tiles(match, c + C, c + C, c)._replace(block_c=64 if exact else C),
        fitting_tiles(match, c + C, c + C, 2 * C)._replace(block_c=64 if exact else C),
    )


def fitting_tiles(match: Tensor, own: int, met: int, kept: int) -> Tiles:
    """The largest tiles whose rows fit, as far as one can tell before compiling.

    own, met: channels in shared memory of a program's pixels, and of those they meet (of two steps of the pipeline).
    kept: channels of its pixels in registers.
    """
    exact = precision(match) == 'tf32x3'  # takes operands apart, and more room
    for tiles in TILES[exact:]:
        numbers = tiles.block_m * own + 2 * tiles.block_n * met
        shared = numbers * match.element_size() * (1.4 if exact else 1.05)
        if shared <= shared_memory(match.device) and tiles.block_m * kept <= (2**14 if exact else 2**15):
            break
    return tiles


@functools.cache
def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a program may have."""
    if INTERPRETED:
        return 227 * 1024  # a Hopper GPU's
    return triton.runtime.driver.active.utils.get_device_properties(device.index)['max_shared_mem']


def precision(match: Tensor) -> str:
    """How tensor cores multiply: float32 in one part or, for the full precision, in three products of two parts."""
    if match.dtype != torch.float32:
        return 'ieee'
    matmul = torch.backends.cuda.matmul
    # torch 2.9 renamed it, and the old name fails once the new one was set.
    tf32 = matmul.fp32_precision == 'tf32' if hasattr(matmul, 'fp32_precision') else matmul.allow_tf32
    return 'tf32' if tf32 else 'tf32x3'


def kernel_settings(match: Tensor, value: Tensor, chunk_size: int, tiles: Tiles) -> dict[str, Any]:
    """What the attention kernels are told besides tensors."""
    c, C = match.shape[-1], value.shape[-1]
    return {
        'L': match.shape[1],
        'k': chunk_size,
        'c': c,
        'C': C,
        'PRECISION': precision(match),
        'BLOCK_M': tiles.block_m,
        'BLOCK_N': tiles.block_n,
        'BLOCK_K': padded(c),
        'BLOCK_C': min(tiles.block_c, padded(C)),
        'num_warps': tiles.num_warps,
        'num_stages': tiles.num_stages,
    }


def padded(channels: int) -> int:
    """A power of two that tensor cores take."""
    return max(16, triton.next_power_of_2(channels))


def lengths(match: Tensor) -> Tensor:
    """|x|, float32, [N, L]."""
    return torch.linalg.vector_norm(match, dim=-1, dtype=torch.float32)


def accumulator(result: Tensor) -> Tensor:
    """Where rounds add up, in float32: `result` itself if it is."""
    return result if result.dtype == torch.float32 else torch.empty_like(result, dtype=torch.float32)


def by_round(order: Tensor) -> Tensor:
    """The order as the kernels read it, its pixels counted through the batch: [N, r, L] -> int32, [r, N, L]."""
    images, _, pixels = order.shape
    first = torch.arange(images, device=order.device)[:, None, None] * pixels
    return (order + first).transpose(0, 1).to(torch.int32).contiguous()
