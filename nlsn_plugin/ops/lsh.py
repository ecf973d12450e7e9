"""Spherical locality-sensitive hashing: rotations, hash codes, bucket order.

Paper: Mei, Fan, Zhou, "Image Super-Resolution with Non-Local Sparse Attention", CVPR 2021, Sections 3.2 and 3.3.

Letters, here and in `reference.py`: N images, L = H * W pixels, c match channels, r rounds of hashing (`n_hashes`),
m buckets, k pixels per chunk (`chunk_size`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nlsn_plugin.ops.context import without_autocast
from nlsn_plugin.ops.cpu_matmul import multiplies_exactly

MAX_BUCKETS = 128

PROJECTIONS_AT_ONCE = 2**20
"""Most numbers that hashing holds at once on a CPU, so that they stay in the cache."""

PROJECTIONS_AT_ONCE_ON_A_DEVICE = 2**25
"""The same on other devices: a quarter of a gigabyte in float64."""


def count_buckets(length: int, chunk_size: int) -> int:
    """Number of hash buckets m for `length` pixels: about one per chunk, even, at most 128 (Section 4.2).

    The paper writes min(hw / k, 128). The released code rounds an odd quotient up, because the vertices of a
    cross-polytope come in pairs. Zero when there are fewer pixels than a chunk holds: then nothing is hashed.
    """
    quotient = length // chunk_size
    return min(quotient + quotient % 2, MAX_BUCKETS)


def hash_codes(x: Tensor, rotations: Tensor) -> Tensor:
    """Hash every pixel once per round: the nearest vertex of a randomly rotated cross-polytope (Eq. 7).

    Args:
        x: features, [N, L, c]. Eq. 7 normalises them; the argmax does not depend on their length, so this does not.
        rotations: i.i.d. normal, [c, r, m/2]; the m vertices are the columns and their negatives.

    Returns:
        Codes in [0, m), uint8, [N, r, L]; on a tie the first index, for a feature with NaN 0. Computed in float32
        under any autocast (in float64 on a GPU, which no setting turns into TF32, and on a CPU that is set to round
        products), since a code that flips with the precision moves its pixel to another bucket. No gradient flows
        through them.
    """
    channels, rounds, half = rotations.shape
    images, length, _ = x.shape
    codes = x.new_empty(rounds, images * length, dtype=torch.uint8)
    with torch.no_grad(), without_autocast(x.device):
        is_exact = x.device.type != 'cuda' and (x.device.type != 'cpu' or multiplies_exactly())
        dtype = torch.float32 if is_exact else torch.float64
        columns = rotations.to(x.device, dtype).permute(1, 2, 0).reshape(rounds * half, channels)
        numbers = PROJECTIONS_AT_ONCE if x.device.type == 'cpu' else PROJECTIONS_AT_ONCE_ON_A_DEVICE
        at_once = min(max(1, numbers // len(columns)), images * length)
        buffer = columns.new_empty(len(columns) * at_once)
        for pixels, found in zip(torch.split(x.flatten(0, 1), at_once), torch.split(codes, at_once, dim=1)):
            projected = buffer[: len(columns) * len(pixels)].view(len(columns), -1)
            torch.mm(columns, pixels.to(dtype).mT, out=projected)
            found.copy_(nearest_vertex(projected.view(rounds, half, -1)))
    return codes.view(rounds, images, length).transpose(0, 1).contiguous()


def nearest_vertex(projected: Tensor) -> Tensor:
    """The first argmax over [projected, -projected] of [r, m/2, pixels] -> [r, pixels]; `projected` is overwritten.

    Written with maxima, which run along the pixels at the speed of memory; an argmax goes one by one.
    """
    half = projected.shape[1]
    nearest, farthest = projected.amax(dim=1, keepdim=True), projected.amin(dim=1, keepdim=True)
    opposite = -farthest > nearest
    # In place, and so in floating point: comparisons that give booleans take several times as long.
    is_vertex = projected.eq_(torch.where(opposite, farthest, nearest))
    rank = torch.arange(half, 0, -1, dtype=projected.dtype, device=projected.device)  # the first index ranks highest
    highest = is_vertex.mul_(rank[:, None]).amax(dim=1)  # 0 where nothing is equal: NaN
    return torch.where(highest > 0, half - highest + half * opposite[:, 0], 0)


def bucket_order(codes: Tensor) -> Tensor:
    """Sort the pixels by hash code, each round on its own (the permutation of Section 3.3).

    Args:
        codes: [N, r, L].

    Returns:
        The pixel at each place of the sorted order, int64, [N, r, L]. Stable: equal codes keep raster order, so the
        chunks do not depend on the sorting algorithm.
    """
    if codes.device.type == 'cpu':  # numpy sorts bytes by counting them, several times faster than torch
        return torch.from_numpy(np.argsort(codes.numpy(), axis=-1, kind='stable'))
    return codes.argsort(dim=-1, stable=True)
