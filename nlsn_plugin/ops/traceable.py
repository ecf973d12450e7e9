"""The attention in a form for exported graphs: common operators only, every size a symbol, no branch.

Equal to `reference.py` for any number of pixels, also fewer than a chunk holds:

* How many buckets there are only masks the vertices that no pixel may take; codes number the vertices of the whole
  bank, which sorts the pixels as codes below m do.
* No two pixels have the same sorting key, so that a runtime need not sort stably.
* Eq. 11, written out, is one softmax over the windows of all rounds, and no score exceeds its query's length, which its
  own key attains. So one chunk of each window and one round is summed up after the other; all scores are never held.
* The sum of the weights is one more channel of the values. If there are fewer pixels than a chunk holds, those that
  fill it up weigh nothing: that is `reference.attend_densely`, with all keys counted equally often.

Letters as in `lsh.py` and `reference.py`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nlsn_plugin.ops.reference import NEIGHBOURS, normalise, wide


def attend(match: Tensor, value: Tensor, rotations: Tensor, chunk_size: int, neighbours: str = 'both') -> Tensor:
    """Non-local sparse attention, to be traced.

    Args:
        match: queries and keys in one, [N, L, c].
        value: [N, L, C].
        rotations: [c, r, M/2], of which the first m/2 are used.
        chunk_size: k >= 1.
        neighbours: of reference.NEIGHBOURS.

    Returns:
        y, [N, L, C], in the dtype of `value`; computed in float32 if that is half precision.
    """
    dtype = value.dtype
    match, value = wide(match), wide(value)
    images, length, channels = match.shape
    chunks = (length + chunk_size - 1) // chunk_size  # n
    places = chunks * chunk_size  # of the sorted order, the last chunk filled up
    # All images in one row: [N, n] or the like would make torch.export ask whether n is 1.
    image, place = divide(torch.arange(images * places, device=match.device), places)
    sorted_place = image * length + torch.where(place < length, place, place - (places - length)).clamp(min=0)
    counts = (place < length + length // chunk_size * chunk_size)[:, None]  # all, unless L < k
    windows = neighbouring(images, chunks, neighbours, match.device)

    match = match.flatten(0, 1)  # [N L, c]
    value = F.pad(value.flatten(0, 1), (0, 1), value=1.0)  # [N L, C + 1]: the last channel sums up the weights
    total = torch.zeros_like(value)
    for of_round in rotations.unbind(1):
        order = bucket_order(match, of_round, length, chunk_size)  # [N L]
        pixels = order.index_select(0, sorted_place)  # [N n k]
        query = match.index_select(0, pixels).view(-1, chunk_size, channels)  # [N n, k, c]
        key, bound = normalise(query), query.norm(dim=-1, keepdim=True)
        chunk_value = (value.index_select(0, pixels) * counts).view(-1, chunk_size, value.shape[1])  # [N n, k, C + 1]
        found = torch.zeros_like(chunk_value)
        for window in windows:
            score = query @ key.index_select(0, window).transpose(1, 2)  # [N n, k, k]
            found = found + (score - bound).exp() @ chunk_value.index_select(0, window)
        raster = torch.arange(images * length, device=match.device)
        image, place = divide(torch.zeros_like(order).scatter(0, order, raster), length)  # where each pixel went
        total = total + found.flatten(0, 1).index_select(0, image * places + place)
    return (total[:, :-1] / total[:, -1:]).view(images, length, -1).to(dtype)


def bucket_order(match: Tensor, rotations: Tensor, length: int, chunk_size: int) -> Tensor:
    """The pixels sorted by hash code, image by image; of equal codes in raster order: [N L, c], [c, M/2] -> [N L]."""
    vertex = torch.arange(rotations.shape[1], device=match.device)
    exists = (2 * vertex < length // chunk_size).repeat(2)  # vertex < m/2
    projected = match.float() @ rotations  # in float64 too, as `lsh.hash_codes` does
    codes = torch.cat([projected, -projected], dim=1).masked_fill(~exists, -torch.inf).argmax(dim=1)
    pixels = match.shape[0]
    pixel = torch.arange(pixels, device=match.device)
    image, _ = divide(pixel, length)
    keys = (image * exists.shape[0] + codes) * pixels + pixel
    return divide(keys.sort().values, pixels)[1]


def neighbouring(images: int, chunks: int, neighbours: str, device: torch.device) -> list[Tensor]:
    """The numbers of the chunks that each of the N n chunks attends to, circularly within its image, [N n] each."""
    image, own = divide(torch.arange(images * chunks, device=device), chunks)
    before, behind = NEIGHBOURS[neighbours]
    previous, following = torch.where(own > 0, own - 1, chunks - 1), torch.where(own < chunks - 1, own + 1, 0)
    return [image * chunks + chunk for chunk in [own] + [previous] * before + [following] * behind]


def divide(numbers: Tensor, by: int) -> tuple[Tensor, Tensor]:
    """Quotients and remainders, written out since PyTorch's exporter to ONNX has no remainder of symbols."""
    quotients = numbers // by
    return quotients, numbers - quotients * by
