"""View of what one pixel attends to: its buckets, their sizes, and the weights of sparse and of standard attention."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from nlsn_plugin import ops
from nlsn_plugin.errors import UserError
from nlsn_plugin.files import write_whole
from nlsn_plugin.layers.nlsa import NonLocalSparseAttention, attentions_of
from nlsn_plugin.ops.reference import into_chunks, normalise, with_neighbours

MOST_COLUMNS, MOST_ROUNDS = 8, 24
"""Most panels in a row, and most rounds whose buckets are drawn: more take minutes and are too large to look at."""
TALLEST = 2.0
"""Largest ratio of a panel's height to its width; narrower images leave its sides empty."""


@dataclass(frozen=True)
class View:
    """What one pixel of an image of H x W pixels attends to in one layer.

    Attributes:
        same_bucket: for each round, which pixels share the bucket of the pixel, [r, H, W].
        bucket_sizes: for each round and pixel, the number of pixels in its bucket, [r, H, W].
        sparse: weight of each pixel in NLSA, over all rounds together, [H, W]; the sum is 1.
        dense: weight of each pixel in standard attention over the whole image with the same features, [H, W].
    """

    same_bucket: Tensor
    bucket_sizes: Tensor
    sparse: Tensor
    dense: Tensor


def view(layer: NonLocalSparseAttention, x: Tensor, row: int, column: int) -> View:
    """Compute what pixel (row, column) attends to when `layer` is given the features `x`, [1, C, H, W].

    Raises:
        UserError: there are fewer pixels than a chunk holds, so nothing is hashed.
    """
    height, width = x.shape[-2:]
    pixel, length = row * width + column, height * width
    if length < layer.chunk_size:
        raise UserError(f'{width}x{height} pixels are fewer than a chunk of {layer.chunk_size}: all attend to all')
    with torch.no_grad():
        match = layer.conv_match(x).flatten(2).transpose(1, 2)  # [1, L, c]
        codes = ops.hash_codes(match, layer.rotations_for(length))[0].long()  # [r, L]
        order = ops.bucket_order(codes[None].to(torch.uint8))
        sparse = sparse_weights(match[0], order, layer.chunk_size, layer.neighbours, pixel)
        dense = (normalise(match[0]) @ match[0, pixel]).softmax(dim=0)
    sizes = torch.stack([torch.bincount(of_round)[of_round] for of_round in codes])
    same = codes == codes[:, pixel, None]
    return View(*(part.view(*part.shape[:-1], height, width) for part in (same, sizes, sparse, dense)))


def sparse_weights(match: Tensor, order: Tensor, chunk_size: int, neighbours: str, pixel: int) -> Tensor:
    """Weight of each pixel as a key for the query `pixel` (Eqs. 10 and 11): [L, c], [1, r, L] -> [L]."""
    pixels = into_chunks(order[..., None], chunk_size)  # [1, r, n, k, 1]
    windows = with_neighbours(pixels, neighbours)[0, ..., 0]  # [r, n, s k]
    places = (order[0] == pixel).nonzero()[:, 1]  # where the query stands in each round
    keys = torch.cat([windows[number, place // chunk_size] for number, place in enumerate(places)])
    score = normalise(match)[keys] @ match[pixel]
    weights = (score - match[pixel].norm()).exp()
    found = torch.zeros(len(match), dtype=weights.dtype, device=weights.device).index_add_(0, keys, weights)
    return found / found.sum()


def features_of(net: nn.Module, x: Tensor, number: int | None) -> tuple[NonLocalSparseAttention, Tensor]:
    """Return an attention layer of a network, and the features it attends over when the network is given `x`.

    Args:
        net: the network.
        x: the image, [1, C, H, W].
        number: of the layer, from 0, among those that hash the whole image; None for the last.

    Raises:
        UserError: the network has no such layer.
    """
    layers = [layer for layer in attentions_of(net) if layer.partition == 'lsh' and layer.window is None]
    if not layers:
        raise UserError('the network has no attention that hashes the whole image')
    if number is not None and number not in range(len(layers)):
        raise UserError(f'--layer {number}: the network has {len(layers)}, 0 to {len(layers) - 1}')
    layer = layers[-1 if number is None else number]
    kept: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
    try:
        with torch.no_grad():
            net(x)
    finally:
        hook.remove()
    return layer, kept[0]


def draw(image: np.ndarray, seen: View, row: int, column: int, title: str, path: Path) -> None:
    """Draw a view; the buckets are those of the first MOST_ROUNDS rounds.

    Args:
        image: BGR, uint8, [H, W, 3].
        seen: the view of one of its pixels.
        row, column: that pixel.
        title: heading of the picture.
        path: file to write, whose ending names the format, such as .png.
    """
    from matplotlib.figure import Figure

    rgb = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    rounds = min(len(seen.same_bucket), MOST_ROUNDS)
    if rounds < len(seen.same_bucket):
        title += f', the first {rounds} of {len(seen.same_bucket)} rounds'
    columns = min(max(4, rounds), MOST_COLUMNS)
    height, width = image.shape[:2]
    edge = 3.0
    rows = 1 + -(-rounds // columns)
    tall = edge * min(height / width, TALLEST)
    figure = Figure(figsize=(edge * columns, (tall + 0.4) * rows + 0.5), layout='constrained')
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis('off')
    share = 'log10(weight / largest)'
    panels = [
        ('image', rgb, None, ''),
        ('weights of NLSA', heat(seen.sparse), 'magma', share),
        ('weights of standard attention', heat(seen.dense), 'magma', share),
        ('sizes of buckets, round 1', seen.bucket_sizes[0].cpu().numpy(), 'viridis', 'pixels'),
    ]
    for axis, (name, picture, colours, unit) in zip(axes[0], panels):
        shown = axis.imshow(picture, cmap=colours)
        axis.set_title(name, fontsize=10)
        if colours:
            figure.colorbar(shown, ax=axis, shrink=0.7, label=unit)
        axis.plot(column, row, marker='o', markersize=7, markerfacecolor='none', color='red')
    for number, axis in enumerate(axes[1:].flat[:rounds]):
        same = seen.same_bucket[number].cpu().numpy()
        axis.imshow(np.where(same[..., None], rgb, rgb // 5))
        axis.plot(column, row, marker='o', markersize=7, markerfacecolor='none', color='red')
        axis.set_title(f'bucket of round {number + 1}: {same.sum()} pixels', fontsize=10)
    figure.suptitle(title, parse_math=False)
    write_whole(path, lambda temporary: figure.savefig(temporary, dpi=110, format=path.suffix[1:]))


def heat(weights: Tensor) -> np.ndarray:
    """log10 of the weights relative to the largest, no less than -3, so that small weights are visible."""
    relative = (weights / weights.max()).clamp_min(1e-3).log10()
    return np.asarray(relative.cpu().numpy())
