"""Upscaling an image padded to whole windows, in tiles, and as the mean over its eight orientations."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nlsn_plugin.archs.bases import base_class, innermost

Upscale = Callable[[Tensor], Tensor]


def enlarged(
    upscale: Upscale, x: Tensor, scale: int, tile: int | None, tile_overlap: int, self_ensemble: bool
) -> Tensor:
    """Upscale `x` as a whole or in tiles of `tile` pixels, with `self_ensemble` as the mean over its orientations."""

    def tiled(x: Tensor) -> Tensor:
        return in_tiles(upscale, x, scale, tile, tile_overlap) if tile else upscale(x)

    return over_orientations(tiled, x) if self_ensemble else tiled(x)


def window_of(network: dict[str, Any]) -> int:
    """The number of pixels of which a network's input height and width must be multiples: its window's edge, or 1.

    Args:
        network: the type and arguments of the network.
    """
    network = innermost(network)
    if network['type'] == 'NLSN':
        return 1
    if network['type'] == 'RRDBNet':  # shrinks images by pixel unshuffle before it enlarges by 4
        return {2: 2, 1: 4}.get(network.get('scale', 4), 1)
    parameter = inspect.signature(base_class(network['type'])).parameters.get('window_size')
    window = network.get('window_size', parameter.default if parameter else 1)
    return math.lcm(*window) if isinstance(window, (list, tuple)) else window


def in_whole_windows(upscale: Upscale, window: int, scale: int) -> Upscale:
    """Make `upscale` take any size, by mirroring up to a multiple of `window` as BasicSR's SwinIRModel does."""
    if window == 1:
        return upscale

    def whole(x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        y = upscale(mirrored(mirrored(x, -2, window), -1, window))
        return y[..., : height * scale, : width * scale]

    return whole


def mirrored(x: Tensor, dim: int, window: int) -> Tensor:
    """Mirror `x` up to a multiple of `window` along `dim`: as F.pad, but repeatedly where `x` has too few pixels."""
    length = x.shape[dim]
    last = length - 1
    places = torch.arange(length + -length % window, device=x.device) % max(2 * last, 1)
    return x.index_select(dim, last - (places - last).abs())


class Cut(NamedTuple):
    """A tile along one edge, in pixels: where it begins, starts to fade in, and has fully taken over."""

    begin: int
    fade: int
    full: int


def in_tiles(upscale: Upscale, x: Tensor, scale: int, tile: int, overlap: int) -> Tensor:
    """Upscale tile by tile; where two overlap, one fades into the other.

    Attention then sees a single tile, so the result is not that of the whole image. The outer quarters of an overlap
    only serve as context, since a tile lacks context near its edges.

    Args:
        upscale: [N, C, h, w] -> [N, C', h * scale, w * scale].
        x: [N, C, H, W].
        tile: height and width of a tile in pixels of `x`.
        overlap: least number of pixels that neighbouring tiles share, less than `tile`.
    """
    height, width = x.shape[-2:]

    def strip(row: Cut) -> Iterator[Tensor]:
        for column in cuts(width, tile, overlap):
            yield upscale(x[..., row.begin : row.begin + tile, column.begin : column.begin + tile])

    strips = (
        blended(strip(row), cuts(width, tile, overlap), width, scale, dim=-1) for row in cuts(height, tile, overlap)
    )
    return blended(strips, cuts(height, tile, overlap), height, scale, dim=-2)


def cuts(length: int, tile: int, overlap: int) -> list[Cut]:
    """Spread tiles evenly along an edge of `length`; the last one ends where the edge does."""
    if length <= tile:
        return [Cut(0, 0, 0)]
    steps = -(-(length - tile) // (tile - overlap))
    begins = [number * (length - tile) // steps for number in range(steps + 1)]
    found = [Cut(0, 0, 0)]
    for before, begin in pairwise(begins):
        context = (before + tile - begin) // 4
        found.append(Cut(begin, begin + context, before + tile - context))
    return found


def blended(parts: Iterator[Tensor], cuts: Sequence[Cut], length: int, scale: int, dim: int) -> Tensor:
    """Join tiles along `dim` as they are made; apart from the result, only one of them is in memory at a time."""
    part = next(parts)
    if len(cuts) == 1:
        return part
    shape = list(part.shape)
    shape[dim] = length * scale
    joined = part.new_empty(shape)
    joined.narrow(dim, 0, part.shape[dim]).copy_(part)
    del part
    for part, cut in zip(parts, cuts[1:]):
        begin, fade, full = (pixels * scale for pixels in cut)
        fading, rest = full - fade, begin + part.shape[dim] - full
        weight = (torch.arange(fading, device=part.device, dtype=part.dtype) + 0.5) / max(fading, 1)
        shared = joined.narrow(dim, fade, fading)
        shared.lerp_(part.narrow(dim, fade - begin, fading), weight.view(-1, *[1] * (-1 - dim)).expand_as(shared))
        joined.narrow(dim, full, rest).copy_(part.narrow(dim, full - begin, rest))
        del part
    return joined


def over_orientations(upscale: Upscale, x: Tensor) -> Tensor:
    """Upscale the four rotations of `x` and of its mirror image, and average them turned back (self-ensemble x8)."""

    def turned(turns: int, mirrored: bool) -> Tensor:
        y = torch.rot90(upscale(torch.rot90(x.flip(-1) if mirrored else x, turns, (-2, -1))), -turns, (-2, -1))
        return y.flip(-1) if mirrored else y

    total = turned(0, False)
    for turns, mirrored in [(1, False), (2, False), (3, False), (0, True), (1, True), (2, True), (3, True)]:
        total = total + turned(turns, mirrored)
    return total / 8
