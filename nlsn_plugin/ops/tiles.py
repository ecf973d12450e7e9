"""Block sizes of the kernels of `fused.py` for each kind of device, and the precision of their products."""

# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-call"
# ruff: noqa: N803, N806

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from nlsn_plugin.errors import BackendError
from nlsn_plugin.ops import tf32
from nlsn_plugin.ops.kernel_parts import INTERPRETED
from nlsn_plugin.ops.reference import NEIGHBOURS


class Tiles(NamedTuple):
    """How a kernel cuts its work.

    Args:
        block_m: pixels of a program.
        block_n: pixels that they meet at a time.
        block_c: value channels at a time, in a product.
        num_warps, num_stages: warps of a program, stages of its pipeline.
        float32: how float32 is multiplied, if not as TF32: on tensor cores, in three products of two parts ('tf32x3'),
            or without them ('ieee').
        parts: products of values side by side in a program of the forward kernel, 1 or 2. Two need fewer registers than
            one of twice the width.
    """

    block_m: int
    block_n: int
    block_c: int = 256
    num_warps: int = 8
    num_stages: int = 3
    float32: str = 'tf32x3'
    parts: int = 1


class Machine(NamedTuple):
    """The properties of a GPU that decide: compute capability, and bytes of shared memory for a program."""

    capability: tuple[int, int]
    shared_memory: int


HOPPER = Machine((9, 0), 227 * 1024)

KERNELS = ('forward', 'query', 'key')

OPTIONS = {'enable_fp_fusion': True}
"""Options of every kernel: multiply-adds are rounded once, which Triton 3.9 announces will not stay the default."""

ANY = 1024
"""Most feature and value channels together that the kernels take."""

FLOAT32_FORWARD = [
    (320, Tiles(64, 64, 256, 8, 2, 'ieee')),
    (640, Tiles(64, 32, 256, 8, 2, 'ieee')),
    (ANY, Tiles(32, 32, 256, 8, 2, 'ieee')),
    (ANY, Tiles(32, 32, 128, 8, 2, 'ieee')),
    (ANY, Tiles(16, 16, 128, 4, 2, 'ieee')),
]

TILES: dict[str, dict[str, list[tuple[int, Tiles]]]] = {
    'half, Hopper': {
        'forward': [(ANY, Tiles(64, 64, 128, 4, 2, parts=2)), (ANY, Tiles(64, 32)), (ANY, Tiles(32, 32))],
        'query': [(80, Tiles(64, 64, 512, 4, 2)), (320, Tiles(64, 32, 512, 4, 2)), (640, Tiles(64, 32, 512)),
                  (ANY, Tiles(32, 32, 512))],
        'key': [(80, Tiles(64, 64, 512, 4, 2)), (320, Tiles(64, 32, 512, 4, 2)), (640, Tiles(32, 32, 512, 8, 2)),
                (ANY, Tiles(16, 16, 512, 4))],
    },
    'half': {
        'forward': [(ANY, Tiles(64, 64)), (ANY, Tiles(64, 32)), (ANY, Tiles(32, 32))],
        'query': [(320, Tiles(64, 64, 512)), (320, Tiles(64, 32, 512)), (ANY, Tiles(32, 32, 512)),
                  (ANY, Tiles(32, 16, 512)), (ANY, Tiles(16, 16, 512, 4))],
        'key': [(80, Tiles(64, 32, 512)), (320, Tiles(32, 32, 512, 8, 2)), (ANY, Tiles(32, 16, 512)),
                (ANY, Tiles(16, 16, 512, 4))],
    },
    'float32, Hopper': {
        'forward': FLOAT32_FORWARD,
        'query': [(320, Tiles(64, 32, 64, 4, 2)), (320, Tiles(32, 32, 64)), (ANY, Tiles(16, 16, 64, 8, 2)),
                  (ANY, Tiles(16, 16, 64, 8, 1))],
        'key': [(80, Tiles(32, 16, 64, 8, 2)), (320, Tiles(16, 32, 64, 8, 2)), (ANY, Tiles(16, 16, 64, 8, 2)),
                (ANY, Tiles(16, 16, 64, 8, 1))],
    },
    'float32': {
        'forward': FLOAT32_FORWARD,
        'query': [(80, Tiles(64, 32, 64)), (320, Tiles(32, 32, 64)), (ANY, Tiles(16, 16, 64, 8, 2)),
                  (ANY, Tiles(16, 16, 64, 8, 1))],
        'key': [(80, Tiles(32, 16, 64, 8, 2)), (320, Tiles(16, 32, 64, 8, 2)), (ANY, Tiles(16, 16, 64, 8, 2)),
                (ANY, Tiles(16, 16, 64, 8, 1))],
    },
}  # fmt: skip
"""For each family and kernel, tilings from the fastest to the smallest, each with the most channels for which there are
enough registers (but for features of 16 channels beside values of 128 and more in float32, some of which spill)."""


def family(dtype: torch.dtype, capability: tuple[int, int]) -> str:
    """The family of GPUs whose tiles to take. On Hopper warps multiply in groups, and need fewer registers for it."""
    return ('float32' if dtype == torch.float32 else 'half') + (', Hopper' if capability[0] == 9 else '')


def needed(kernel: str, tiles: Tiles, c: int, C: int, dtype: torch.dtype) -> int:
    """Bytes of shared memory that a kernel takes: where it is near what GPUs have, somewhat more than Triton 3.6 and
    3.8 did (on the B200, which has more than is ever asked for, up to 1.5 times less).

    Rows of a program's own pixels, and of those they meet for two steps of the pipeline; and weights, if float32 is not
    multiplied in parts but may be as TF32. In parts, both of which lie there, the factor is a measured one.
    """
    own = c if kernel == 'forward' else c + C
    met = c + min(tiles.parts * tiles.block_c, C) if kernel == 'forward' else c + C
    if dtype == torch.float32 and tiles.float32 == 'ieee':
        rows = tiles.block_m * own + 2 * tiles.block_n * met
        return 4 * (rows + tiles.block_n * (tiles.block_m + 16)) + 1024
    if dtype == torch.float32:
        rows = 2 * tiles.block_m * own + min(tiles.num_stages, 2) * tiles.block_n * met
        factor = 1.2 if kernel != 'query' else 0.93 if c < C else 1.16
        return int(factor * 4 * rows) + 2560
    return int(1.1 * 2 * (tiles.block_m * own + 2 * tiles.block_n * met)) + 2 * 16 * tiles.block_n


def choose(kernel: str, c: int, C: int, dtype: torch.dtype, machine: Machine) -> Tiles | None:
    """The first tiles of a kernel that fit, for c feature and C value channels, both padded; None if none fit."""
    for channels, tiles in TILES[family(dtype, machine.capability)][kernel]:
        if c + C <= channels and needed(kernel, tiles, c, C, dtype) <= machine.shared_memory:
            return tiles
    return None


def too_large(c: int, C: int, dtype: torch.dtype, machine: Machine) -> str | None:
    """The reason why the smallest tiles of some kernel do not fit on a GPU; None if they do."""
    for kernel in KERNELS:
        if choose(kernel, c, C, dtype, machine) is None:
            smallest = TILES[family(dtype, machine.capability)][kernel][-1][1]
            return (
                f'fused needs about {needed(kernel, smallest, c, C, dtype)} bytes of shared memory for {c} and {C} '
                f'channels of {dtype}, and this GPU has {machine.shared_memory}'
            )
    return None


def default_tiles(match: Tensor, value: Tensor) -> tuple[Tiles, Tiles, Tiles]:
    """The tiles of the forward, the query and the key kernel.

    Raises:
        BackendError (a RuntimeError): some do not fit, see `too_large`.
    """
    widths, machine = (padded(match.shape[-1]), padded(value.shape[-1])), machine_of(match.device)
    forward, query, key = (choose(kernel, *widths, match.dtype, machine) for kernel in KERNELS)
    if not (forward and query and key):
        raise BackendError(str(too_large(*widths, match.dtype, machine)))
    return forward, query, key


@functools.cache
def machine_of(device: torch.device) -> Machine:
    """The properties of this GPU; those of a Hopper GPU in the interpreter."""
    if INTERPRETED:
        return HOPPER
    shared = triton.runtime.driver.active.utils.get_device_properties(device.index)['max_shared_mem']
    return Machine(torch.cuda.get_device_capability(device), shared)


def precision(match: Tensor, tiles: Tiles) -> str:
    """The precision in which the kernels multiply, as Triton's `input_precision`."""
    if match.dtype != torch.float32:
        return 'ieee'
    return 'tf32' if tf32.of_products() else tiles.float32


def kernel_settings(match: Tensor, value: Tensor, chunk_size: int, neighbours: str, tiles: Tiles) -> dict[str, Any]:
    """Arguments of the attention kernels besides tensors."""
    c, C = match.shape[-1], value.shape[-1]
    return {
        'L': match.shape[1],
        'k': chunk_size,
        'c': c,
        'C': C,
        'PRECISION': precision(match, tiles),
        'BEFORE': NEIGHBOURS[neighbours][0],
        'SPAN': 1 + sum(NEIGHBOURS[neighbours]),
        'BLOCK_M': tiles.block_m,
        'BLOCK_N': tiles.block_n,
        'BLOCK_C': min(tiles.block_c, C),
        'num_warps': tiles.num_warps,
        'num_stages': tiles.num_stages,
        **OPTIONS,
    }


def padded(channels: int) -> int:
    """The next power of two that tensor cores take; a plain number even where torch.compile traces symbols."""
    width = 16
    while width < channels:
        width *= 2
    return width
