"""The attention in a form that a graph for other runtimes can hold: common operators only, every size a symbol.

Equal to `reference.py` for any number of pixels, in one graph and without a branch:

* How many buckets there are only masks the vertices that no pixel may take; so hash codes run over all vertices of the
  bank, which sorts the pixels as their true codes do.
* Every sorting key occurs once, so that it does not matter whether a runtime sorts stably.
* Eq. 11, written out, is one softmax over the windows of all rounds, and no score exceeds its query's length, which its
  own key attains. So windows are summed up one chunk and one round after the other, and all scores are never held.
* The sum of the weights is one more channel of the values. Where there are fewer pixels than a chunk holds, keys that
  fill it up weigh nothing: then this is `reference.attend_densely`, every key counted as often as any other.

Letters as in `lsh.py` and `reference.py`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nlsn_plugin.ops.reference import NEIGHBOURS, normalise


def attend(match: Tensor, value: Tensor, rotations: Tensor, chunk_size: int, neighbours: str = 'both') -> Tensor:
    """Non-local sparse attention, to be traced.

    Args:
        match: queries and keys in one, [N, L, c].
        value: [N, L, C].
        rotations: [c, r, M/2]: as many as there are, the first m/2 of which are taken.
        chunk_size: k >= 1.
        neighbours: of reference.NEIGHBOURS.

    Returns:
        y, [N, L, C].
    """
    images, length, channels = match.shape
    chunks = (length + chunk_size - 1) // chunk_size  # n
    places = chunks * chunk_size  # of the sorted order, the last chunk filled up
    # All images in one row, as then no size is 1 for some inputs only.
    every_place = torch.arange(images * places, device=match.device)
    place, first = every_place % places, every_place // places * length  # in its image; the image's first pixel
    sorted_place = first + torch.where(place < length, place, place - (places - length)).clamp(min=0)
    counts = (place < length + length // chunk_size * chunk_size)[:, None]  # all, unless L < k
    windows = neighbouring(images, chunks, neighbours, match.device)

    match = match.flatten(0, 1)  # [N L, c]
    value = F.pad(value.flatten(0, 1), (0, 1), value=1.0)  # [N L, C + 1], the last channel sums up the weights
    total = torch.zeros_like(value)
    for of_round in rotations.unbind(1):
        order = bucket_order(match, of_round, length, chunk_size)  # [N L]
        pixels = order[sorted_place]  # [N n k]
        query = match[pixels].view(-1, chunk_size, channels)  # [N n, k, c]
        key, bound = normalise(query), query.norm(dim=-1, keepdim=True)
        chunk_value = (value[pixels] * counts).view(-1, chunk_size, value.shape[-1])  # [N n, k, C + 1]
        found = torch.zeros_like(chunk_value)
        for window in windows:
            score = query @ key[window].transpose(-1, -2)  # [N n, k, k]
            found = found + (score - bound).exp() @ chunk_value[window]
        place_of_pixel = torch.zeros_like(order).scatter(0, order, torch.arange(images * length, device=match.device))
        total = total + found.flatten(0, 1)[place_of_pixel // length * places + place_of_pixel % length]
    return (total[:, :-1] / total[:, -1:]).view(images, length, -1)


def bucket_order(match: Tensor, rotations: Tensor, length: int, chunk_size: int) -> Tensor:
    """The pixels sorted by hash code, image by image; of equal codes in raster order: [N L, c], [c, M/2] -> [N L]."""
    vertex = torch.arange(rotations.shape[1], device=match.device)
    exists = (2 * vertex < length // chunk_size).repeat(2)  # vertex < m/2
    projected = match @ rotations
    codes = torch.cat([projected, -projected], dim=1).masked_fill(~exists, -torch.inf).argmax(dim=1)
    pixels = match.shape[0]
    pixel = torch.arange(pixels, device=match.device)
    keys = (pixel // length * len(exists) + codes) * pixels + pixel
    return keys.sort().values % pixels


def neighbouring(images: int, chunks: int, neighbours: str, device: torch.device) -> list[Tensor]:
    """For each of the N n chunks those that it attends to, circularly in its image: their numbers, [N n] each."""
    own = torch.arange(images * chunks, device=device)
    first = own // chunks * chunks
    before, behind = NEIGHBOURS[neighbours]
    return [own] + [first + (own + chunks - 1) % chunks] * before + [first + (own + 1) % chunks] * behind
