"""Upscaling an image in whole windows, in tiles, and as the mean over its eight orientations."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nlsn_plugin.archs.bases import base_class, innermost

Upscale = Callable[[Tensor], Tensor]


def enlarged(
    upscale: Upscale, x: Tensor, scale: int, tile: int | None, tile_overlap: int, self_ensemble: bool
) -> Tensor:
    """Upscale `x` as a whole, or in tiles of `tile` pixels, and as the mean over its orientations if asked to."""

    def tiled(x: Tensor) -> Tensor:
        return in_tiles(upscale, x, scale, tile, tile_overlap) if tile else upscale(x)

    return over_orientations(tiled, x) if self_ensemble else tiled(x)


def window_of(network: dict[str, Any]) -> int:
    """Pixels that a network's input has to have a multiple of in height and width: the edge of its windows, or 1.

    Args:
        network: its type and arguments.
    """
    network = innermost(network)
    parameter = inspect.signature(base_class(network['type'])).parameters.get('window_size')
    window = network.get('window_size', parameter.default if parameter else 1)
    return max(window) if isinstance(window, (list, tuple)) else window


def in_whole_windows(upscale: Upscale, window: int, scale: int) -> Upscale:
    """`upscale` on images of any size: mirrored up to a multiple of `window`, as by BasicSR's SwinIRModel."""
    if window == 1:
        return upscale

    def whole(x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        y = upscale(F.pad(x, (0, -width % window, 0, -height % window), 'reflect'))
        return y[..., : height * scale, : width * scale]

    return whole


class Cut(NamedTuple):
    """A tile along one edge: where it begins, and from where to where its result is taken, in pixels."""

    begin: int
    first: int
    last: int


def in_tiles(upscale: Upscale, x: Tensor, scale: int, tile: int, overlap: int) -> Tensor:
    """Upscale tile by tile; where two overlap, each gives its half of that.

    Attention then sees a tile alone, so the result is not that of the whole image.

    Args:
        upscale: [N, C, h, w] -> [N, C', h * scale, w * scale].
        x: [N, C, H, W].
        tile: height and width of a tile in pixels of `x`.
        overlap: pixels that neighbours share, less than `tile`.
    """
    height, width = x.shape[-2:]

    def result(row: Cut, column: Cut) -> Tensor:
        y = upscale(x[..., row.begin : row.begin + tile, column.begin : column.begin + tile])
        rows, columns = (
            slice((cut.first - cut.begin) * scale, (cut.last - cut.begin) * scale) for cut in (row, column)
        )
        return y[..., rows, columns]

    columns = cuts(width, tile, overlap)
    strips = [torch.cat([result(row, column) for column in columns], dim=-1) for row in cuts(height, tile, overlap)]
    return torch.cat(strips, dim=-2)


def cuts(length: int, tile: int, overlap: int) -> list[Cut]:
    """Tiles along an edge of `length`; the last one ends with it."""
    if length <= tile:
        return [Cut(0, 0, length)]
    begins = [*range(0, length - tile, tile - overlap), length - tile]
    seams = [0, *((before + tile + begin) // 2 for before, begin in pairwise(begins)), length]
    return [Cut(begin, *seam) for begin, seam in zip(begins, pairwise(seams))]


def over_orientations(upscale: Upscale, x: Tensor) -> Tensor:
    """The mean over the image's four rotations and their mirror images, each turned back (self-ensemble x8)."""

    def turned(turns: int, mirrored: bool) -> Tensor:
        y = torch.rot90(upscale(torch.rot90(x.flip(-1) if mirrored else x, turns, (-2, -1))), -turns, (-2, -1))
        return y.flip(-1) if mirrored else y

    total = turned(0, False)
    for turns, mirrored in [(1, False), (2, False), (3, False), (0, True), (1, True), (2, True), (3, True)]:
        total = total + turned(turns, mirrored)
    return total / 8
