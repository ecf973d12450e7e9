"""Memory that enlarging a picture takes, by a model fitted to measurements, and the error when it runs out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import cv2
import torch
from torch import nn

from nlsn_plugin.archs import NLSN
from nlsn_plugin.engine.available_memory import is_out_of_memory
from nlsn_plugin.errors import UserError

AT_LEAST = 120_000_000
"""Bytes that inference takes at any size: strips of the upsampler, buffers of matrix products."""
FEATURE_MAPS = {4: 5, 2: 7}
"""Feature maps in memory at once, by the bytes of an entry. Measured for NLSN on CPUs, on top of AT_LEAST: 3.5 to 4.7
in float32 and 4.9 to 6.5 in half precision, where a CPU without it briefly holds maps in float32."""
USABLE = 0.8
"""Share of the free memory to use, since other processes take from it too."""
SMALLEST_TILE, TILE_UNIT = 64, 32
LARGEST_TILE = 2048
"""Largest edge chosen automatically: beyond it, the overlaps are so small a part that larger tiles save nothing."""


def needed(net: nn.Module, scale: int, height: int, width: int, dtype: torch.dtype) -> int:
    """Bytes that the network takes for an image or a tile of the given size, besides its weights.

    The model was measured for NLSN, whose upsampler works in strips. For other networks it is an estimate by the widths
    of their convolutions.
    """
    channels = [module.out_channels for module in net.modules() if isinstance(module, nn.Conv2d)] or [3]
    first, widest, grown = channels[0], max(channels), scale**2
    of_result = 2 * 3 * 4 * grown  # float32, for a moment in two copies
    maps = FEATURE_MAPS[dtype.itemsize]
    if isinstance(net, NLSN):
        for_pixel = max(maps * first * dtype.itemsize, 2 * first * dtype.itemsize + of_result)
    else:
        numbers = maps * widest + 3 * grown * first  # after the upsampler: a map, its copy and the next map
        for_pixel = numbers * dtype.itemsize + of_result
    return AT_LEAST + height * width * for_pixel


def held(height: int, width: int, scale: int, self_ensemble: bool) -> int:
    """Bytes of the picture and its result, which stay in the computer's memory however small the tiles are."""
    results = 3 if self_ensemble else 2
    return height * width * 3 * 4 * (1 + results * scale**2)


def tile_that_fits(net: nn.Module, scale: int, height: int, width: int, dtype: torch.dtype, room: float) -> int | None:
    """The edge of the largest tile for which the network takes no more than `room` bytes, at most LARGEST_TILE.

    None if the whole picture fits, and SMALLEST_TILE if no tile does.
    """
    if needed(net, scale, height, width, dtype) <= room:
        return None
    edge = LARGEST_TILE
    while edge > SMALLEST_TILE and needed(net, scale, edge, edge, dtype) > room:
        edge -= TILE_UNIT
    return edge


@contextlib.contextmanager
def named_if_it_runs_out(named: str) -> Iterator[None]:
    """Convert the errors that NumPy, PyTorch and OpenCV raise for want of memory to one line that names the picture.

    Raises:
        UserError: instead of these.
    """
    try:
        yield
    except (MemoryError, RuntimeError, cv2.error) as error:
        if isinstance(error, UserError) or not is_out_of_memory(error):
            raise
        raise UserError(f'{named}: too little memory') from error
