"""Spherical locality-sensitive hashing: rotations, hash codes, bucket order.

Paper: Mei, Fan, Zhou, "Image Super-Resolution with Non-Local Sparse Attention", CVPR 2021, Sections 3.2 and 3.3.

Letters, here and in `reference.py`: N images, L = H * W pixels, c match channels, r rounds of hashing (`n_hashes`),
m buckets, k pixels per chunk (`chunk_size`).
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

MAX_BUCKETS = 128


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
        Codes in [0, m), int64, [N, r, L]; on a tie the first index. Computed in float32 under any autocast, since a
        code that flips with the precision moves its pixel to another bucket. No gradient flows through them.
    """
    with torch.no_grad(), without_autocast(x.device):
        projected = torch.einsum('nlc,crm->nrlm', x.float(), rotations.to(x.device, torch.float32))
        return torch.cat([projected, -projected], dim=-1).argmax(dim=-1)  # [N, r, L]


def bucket_order(codes: Tensor) -> Tensor:
    """Sort the pixels by hash code, each round on its own (the permutation of Section 3.3).

    Args:
        codes: [N, r, L].

    Returns:
        The pixel at each place of the sorted order, int64, [N, r, L]. Stable: equal codes keep raster order, so the
        chunks do not depend on the sorting algorithm.
    """
    return codes.argsort(dim=-1, stable=True)


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Compute in the tensors' own precision, also on devices that know no autocast (meta)."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()
