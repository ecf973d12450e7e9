"""How the kernels of `fused.py` cut their work on a device, and how they multiply there."""

# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-call"
# ruff: noqa: N806

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from nlsn_plugin.ops import tf32
from nlsn_plugin.ops.kernels import INTERPRETED
from nlsn_plugin.ops.reference import NEIGHBOURS


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
    return 'tf32' if tf32.of_products() else 'tf32x3'


def kernel_settings(match: Tensor, value: Tensor, chunk_size: int, neighbours: str, tiles: Tiles) -> dict[str, Any]:
    """What the attention kernels are told besides tensors."""
    c, C = match.shape[-1], value.shape[-1]
    return {
        'L': match.shape[1],
        'k': chunk_size,
        'c': c,
        'C': C,
        'PRECISION': precision(match),
        'BEFORE': NEIGHBOURS[neighbours][0],
        'SPAN': 1 + sum(NEIGHBOURS[neighbours]),
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
