"""Convolution by 3x3 with a quarter of the multiplications (Winograd's minimal filtering), for CPUs.

Paper: Lavin, Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, F(4x4, 3x3).

Four outputs of a filter of three are a polynomial product read backwards (Toom and Cook): evaluate both factors at five
points and at infinity, multiply there, and interpolate. In two dimensions, for the tile d of 6x6 inputs under 4x4
outputs and the filter g,

    y = A^T [(G g G^T) * (B^T d B)] A,

36 multiplications in place of 144. Those, for all tiles, channels in and channels out, are 36 matrix products, and all
else is little beside them. A few tiles at a time pass through the cache.

With the usual points, 0, +-1, +-2, rounding errors are several times those of the sum itself. With 0, +-1/sqrt(2),
+-sqrt(2), the powers of which stay near one, they are about those of PyTorch's own sums with channels last.

Letters: N images of H x W pixels, C channels in, K out, T tiles at once.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nlsn_plugin.ops.packed import Packed, can_pack, is_exact
from nlsn_plugin.ops.scratch import scratch

EDGE, TAPS = 4, 3
"""Edges of the outputs of a tile and of the filter."""
SEEN = EDGE + TAPS - 1
"""Edge of the inputs under a tile."""
POINTS = (0.0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5))

TILES_AT_ONCE = 64
"""Tiles of a step for each thread: with 256 channels a step makes 2.4 MB."""
MOST_THREADS = 16

FILTERS_AT_ONCE = 128
"""Filters whose products are computed at once. The matrices of more would be so large that the system has to provide
their memory anew in each call."""

FEWEST_CHANNELS = 192
"""Fewest input and output channels: sums over fewer are too short to pay for the transforms."""
FEWEST_PIXELS, FEWEST_PIXELS_PACKED, SHORTEST_EDGE = 48 * 48, 80 * 80, 16
"""Fewest pixels of an image: with fewer the transform of the filters, or tiles beyond the edge, cost too much. Where
filters are packed, PyTorch's convolution is faster too."""


def is_faster(x: Tensor, weight: Tensor) -> bool:
    """Whether `conv3x3` is faster here than PyTorch's convolution, and as exact: it is on CPUs for many channels and
    pixels, unless PyTorch may round products of matrices or convolutions there."""
    # A single image without its batch is PyTorch's, and so are the errors about other shapes.
    if x.dim() != 4 or x.shape[1] != weight.shape[1]:
        return False
    height, width = x.shape[2:]
    fewest = FEWEST_PIXELS_PACKED if can_pack(weight) else FEWEST_PIXELS
    large = height * width >= fewest and min(height, width) >= SHORTEST_EDGE
    many = min(weight.shape[:2]) >= FEWEST_CHANNELS
    # Rounding may have been allowed for products of matrices, which this computes, but not for this convolution.
    return large and many and x.device.type == 'cpu' and is_exact()


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute `F.conv2d(x, weight, bias, padding=1)`, without gradients.

    NaN or infinity reaches all outputs of its tiles rather than its nine neighbours.

    Args:
        x: [N, C, H, W]; half precision too, which is computed with in the precision of `weight`.
        weight: [K, C, 3, 3], float32 or float64.
        bias: [K].

    Returns:
        [N, K, H, W] in the dtype of `x`, channels last in memory.
    """
    for_input, for_filter, for_output = (torch.from_numpy(matrix).to(weight.dtype) for matrix in transforms())
    images, channels, height, width = x.shape
    x = x.detach().permute(0, 2, 3, 1)  # [N, H, W, C]
    out = x.new_empty(images, height, width, len(weight))
    shift = weight.new_zeros(len(weight)) if bias is None else bias.detach()
    all_rows, all_columns = blocks(height, width)
    t, u = -(-len(all_rows[0]) // EDGE), -(-len(all_columns[0]) // EDGE)
    filters = [
        Packed((for_filter @ some.permute(2, 3, 0, 1).reshape(TAPS**2, -1)).view(SEEN**2, len(some), channels), t * u)
        for some in torch.split(weight.detach(), FILTERS_AT_ONCE)
    ]
    with scratch(x.device) as memory:

        def take(name: str, *shape: int) -> Tensor:
            return memory.take(name, shape, weight.dtype)

        for image, rows, columns in itertools.product(range(images), all_rows, all_columns):
            seen = take('seen', t * EDGE + TAPS - 1, u * EDGE + TAPS - 1, channels)
            seen = with_border(x[image], rows, columns, seen)
            windows = seen.unfold(0, SEEN, EDGE).unfold(1, SEEN, EDGE).permute(0, 1, 3, 4, 2)  # [t, u, 6, 6, C]
            tiles = take('tiles', *windows.shape).copy_(windows).view(t * u, SEEN**2, channels)
            factors = torch.bmm(for_input.expand(t * u, -1, -1), tiles, out=take('factors', *tiles.shape))
            target = out[image, rows.start : rows.stop, columns.start : columns.stop]
            parts = zip(filters, torch.split(shift, FILTERS_AT_ONCE), torch.split(target, FILTERS_AT_ONCE, -1))
            for packed, shifts, part in parts:
                outputs = take('outputs', t * u, EDGE**2, len(shifts))
                torch.bmm(for_output.expand(t * u, -1, -1), packed.multiply(factors), out=outputs)
                outputs = outputs.view(t, u, EDGE, EDGE, -1).transpose(1, 2)  # [t, 4, u, 4, K]
                block = torch.add(outputs, shifts, out=take('block', *outputs.shape)).view(t * EDGE, u * EDGE, -1)
                part.copy_(block[: len(rows), : len(columns)])
    return out.permute(0, 3, 1, 2)


@functools.cache
def transforms() -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """B^T, G and A^T for both directions at once, [36, 36], [36, 9] and [16, 36], in float64.

    Letters of the paper; row i of each is of the i-th point, p, the last of infinity (of A^T the column):
    G evaluates the filter, divided by what the other points' factors (p - q) give at p; B^T is their product as a
    polynomial, that of all factors for infinity; A^T has the powers of p.
    """
    for_input, for_filter = np.zeros((SEEN, SEEN)), np.zeros((SEEN, TAPS))
    for_output = np.zeros((EDGE, SEEN))
    for i, point in enumerate(POINTS):
        others = [other for other in POINTS if other != point]
        for_input[i, :-1] = np.poly(others)[::-1]
        for_filter[i] = point ** np.arange(TAPS) / np.prod(point - np.array(others))
        for_output[:, i] = point ** np.arange(EDGE)
    for_input[-1] = np.poly(POINTS)[::-1]
    for_filter[-1, -1] = for_output[-1, -1] = 1
    return np.kron(for_input, for_input), np.kron(for_filter, for_filter), np.kron(for_output, for_output)


def blocks(height: int, width: int) -> tuple[list[range], list[range]]:
    """Cut an image into blocks of rows and columns to compute at once, all of as many tiles."""
    tiles = TILES_AT_ONCE * min(torch.get_num_threads(), MOST_THREADS)
    columns = list(parts(width, tiles))
    return list(parts(height, max(1, tiles * EDGE // len(columns[0])))), columns


def parts(pixels: int, most: int) -> Iterator[range]:
    """Cut a row of pixels into as few parts of `most` tiles or fewer as there can be, all of as many tiles: the last
    may overlap the one before."""
    tiles = -(-pixels // EDGE)
    step = -(-tiles // -(-tiles // most))
    for first in range(0, tiles, step):
        first = min(first, tiles - step)
        yield range(first * EDGE, min((first + step) * EDGE, pixels))


def with_border(image: Tensor, rows: range, columns: range, seen: Tensor) -> Tensor:
    """Fill `seen`, [4 t + 2, 4 u + 2, C], with the pixels under a block of the image, [H, W, C]; outside are zeros."""
    top, left = rows.start - 1, columns.start - 1
    inside = image[max(top, 0) : top + seen.shape[0], max(left, 0) : left + seen.shape[1]]
    if inside.shape != seen.shape:
        seen.zero_()
    top, left = max(-top, 0), max(-left, 0)
    seen[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return seen
