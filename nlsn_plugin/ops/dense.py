"""The attentions that the paper compares with, over pixels in the image's own order: no hashing, no sorting.

Softmax by PyTorch's own kernels, which store no scores. Letters as in `lsh.py`; besides, an image of H x W pixels and
C value channels.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from nlsn_plugin.ops.context import is_exporting, without_autocast
from nlsn_plugin.ops.reference import normalise

LEAST_EDGE = 8
"""Least edge of the squares of queries that share their keys; half a window, if that is more."""

NUMBERS_AT_ONCE = 2**22
"""Most entries of the mask of a band: its queries times its keys."""

MULTIPLE = 8
"""PyTorch's kernels on a GPU want the number of channels to be a multiple of this."""


def attend_nearby(query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
    """Standard non-local attention, softmax(theta^T phi) g (Eq. 4), over the image or around each pixel.

    Args:
        query, key: theta(x) and phi(x), [N, H, W, c].
        value: g(x), [N, H, W, C].
        window: w; a pixel (i, j) attends to those of rows i - w // 2 to i - w // 2 + w - 1, and of such columns, that
            the image has. None for the whole image.

    Returns:
        y, [N, H, W, C].
    """
    height, width, channels = value.shape[1:]
    if window is None or (window - 1) // 2 >= max(height, width) - 1:
        over_all = softmax_attention(*(x.flatten(1, 2)[:, None] for x in (query, key, value)))
        return over_all.view(value.shape)
    # Strips of the image with all the columns that they attend to, and of them one band of rows after the other.
    columns = Cuts(width, max(LEAST_EDGE, window // 2), window)
    masked = len(columns.starts) * columns.size * columns.keys  # numbers in a row of each
    rows = Cuts(height, rows_at_once(height, columns.size, window, NUMBERS_AT_ONCE // masked), window)
    query, key, value = same_width(query, key, value)
    query = torch.stack([query[:, :, start : start + columns.size] for start in columns.starts], dim=1)
    key, value = (  # [N, strips, H, columns of a strip, *]
        torch.stack([x[:, :, start : start + columns.keys] for start in columns.key_starts], dim=1)
        for x in (key, value)
    )
    masks: dict[int, Tensor] = {}  # few: all bands far from the border have the same
    bands = []
    for start, key_start, kept in zip(rows.starts, rows.key_starts, rows.kept):
        shift = key_start - start
        if shift not in masks:
            masks[shift] = mask_of(rows.near(shift), [columns.near(shift) for shift in columns.shifts], query)
        queries = query[:, :, start : start + rows.size].flatten(2, 3)
        keys, values = (x[:, :, key_start : key_start + rows.keys].flatten(2, 3) for x in (key, value))
        band = softmax_attention(queries, keys, values, masks[shift])  # [N, strips, pixels, C]
        bands.append(band.reshape(*band.shape[:2], rows.size, columns.size, band.shape[-1])[:, :, :kept])
    strips = torch.cat(bands, dim=2).unbind(1)
    return torch.cat([strip[:, :, :kept] for strip, kept in zip(strips, columns.kept)], dim=2)[..., :channels]


class Cuts:
    """How one side of an image is cut: into pieces of one size, the last reaching back over the one before it.

    starts, key_starts: the first pixels of the pieces, and of the keys in reach of any pixel of a piece.
    size, keys: how many pixels a piece has, and how many keys. kept: how many pixels lie before the next piece.
    """

    def __init__(self, length: int, size: int, window: int) -> None:
        self.window = window
        self.size = min(size, length)
        self.keys = min(self.size + window - 1, length)
        self.starts = [min(start, length - self.size) for start in range(0, length, self.size)]
        self.key_starts = [min(max(start - window // 2, 0), length - self.keys) for start in self.starts]
        self.shifts = [key_start - start for key_start, start in zip(self.key_starts, self.starts)]
        self.kept = [after - start for start, after in zip(self.starts, self.starts[1:] + [length])]

    def near(self, shift: int) -> Tensor:
        """Whether each pixel reaches each key, [size, keys]; the first key lies `shift` pixels from the first pixel."""
        key, query = (torch.arange(length, device='cpu') for length in (self.keys, self.size))
        distance = shift + key - query[:, None]
        first = -(self.window // 2)
        return (distance >= first) & (distance < first + self.window)


def rows_at_once(height: int, most: int, window: int, numbers: int) -> int:
    """Most rows of a band such that its rows times the rows of its keys are at most `numbers`; at least 1."""
    rows = 1
    while rows < most and (rows + 1) * min(rows + window, height) <= numbers:
        rows += 1
    return rows


def mask_of(rows: Tensor, columns: list[Tensor], query: Tensor) -> Tensor:
    """Mask to add to the scores of a band, typed as `query`: [p, q], strips of [s, t] -> [1, strips, p s, q t]."""
    rows, of_strips = rows.to(query.device), torch.stack(columns).to(query.device)
    near = rows[None, :, None, :, None] & of_strips[:, None, :, None, :]
    mask = query.new_zeros(near.shape).masked_fill_(~near, out_of_reach(query.dtype))
    return mask.flatten(3, 4).flatten(1, 2)[None]


def out_of_reach(dtype: torch.dtype) -> float:
    """The number to add to a score so that its weight is zero.

    Scores of float16 are float32's, and may exceed its least number.
    """
    return -torch.inf if dtype == torch.float16 else torch.finfo(dtype).min


def attend_in_windows(match: Tensor, value: Tensor, window: int) -> Tensor:
    """What a bucket of NLSA does (Eq. 10), in windows of the image: queries keep their length, keys have unit length.

    Args:
        match: queries and keys in one, [N, H, W, c].
        value: [N, H, W, C].
        window: edge of the windows, which start in the upper left corner; the last of a row or column are as small as
            what is left.

    Returns:
        y, [N, H, W, C].
    """
    return in_windows(softmax_attention, window, match, normalise(match), value)


def in_windows(attend: Callable[..., Tensor], window: int, *tensors: Tensor) -> Tensor:
    """`attend` in each window of an image.

    Args:
        attend: tensors of [N, windows, pixels of one, *] -> [N, windows, pixels of one, C].
        window: edge of the windows, which start in the upper left corner; the last of a row or column are as small as
            what is left.
        tensors: its arguments, [N, H, W, *]; the last one has C channels.
    """
    shape = tensors[-1].shape
    bands = []
    for rows in whole_and_rest(shape[1], window):
        parts = []
        for columns in whole_and_rest(shape[2], window):
            part = [x[:, rows, columns] for x in tensors]
            size = min(window, part[0].shape[1]), min(window, part[0].shape[2])
            attended = attend(*(into_windows(x, *size) for x in part))
            parts.append(from_windows(attended, part[-1].shape, *size))
        bands.append(torch.cat(parts, dim=2))
    return torch.cat(bands, dim=1)


def whole_and_rest(length: int, window: int) -> list[slice]:
    """The part of [0, length) that whole windows cover, and the rest; either is left out if it is empty."""
    if torch.compiler.is_compiling() and not is_exporting():  # a graph for each size: of symbols it finds no end
        length = operator.index(length)
    covered = length // window * window
    return [part for part in (slice(0, covered), slice(covered, length)) if part.start < part.stop]


def into_windows(x: Tensor, height: int, width: int) -> Tensor:
    """Cut into windows: [N, H, W, D] -> [N, windows, height width, D], where height divides H and width W."""
    images, rows, columns, channels = x.shape
    windows = x.reshape(images, rows // height, height, columns // width, width, channels).transpose(2, 3)
    return windows.reshape(images, rows * columns // (height * width), height * width, channels)


def from_windows(x: Tensor, shape: torch.Size, height: int, width: int) -> Tensor:
    """Undo `into_windows`; `shape` is that of the result, [N, H, W, D]."""
    images, rows, columns, channels = shape
    windows = x.reshape(images, rows // height, columns // width, height, width, channels)
    return windows.transpose(2, 3).reshape(shape)


def softmax_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return softmax(query key^T + mask) value: [*, P, c], [*, K, c], [*, K, C], [*, P, K] -> [*, P, C]."""
    channels = value.shape[-1]
    with without_autocast(query.device):
        query, key, value = same_width(query, key, value)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=1.0)[..., :channels]


def same_width(*tensors: Tensor) -> list[Tensor]:
    """Pad channels with zeros until all have as many; otherwise PyTorch takes a kernel that stores all scores."""
    width = -(-max(x.shape[-1] for x in tensors) // MULTIPLE) * MULTIPLE
    return [F.pad(x, (0, width - x.shape[-1])) if x.shape[-1] < width else x for x in tensors]
