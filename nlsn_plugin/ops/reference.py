"""Non-local sparse attention as published, step by step: the oracle every faster form is checked against.

Paper: Mei, Fan, Zhou, "Image Super-Resolution with Non-Local Sparse Attention", CVPR 2021, Section 3.3.

The letters are those of `lsh.py`; besides, C value channels and n = ceil(L / k) chunks. Where the paper leaves a
choice, this does what the authors' released code computes, so that their weights give their numbers:

* a chunk attends to itself, the previous and the next chunk (or to fewer, by NEIGHBOURS), circularly; where these
  coincide their keys count again;
* if k does not divide L, the last pixels of the sorted order stand twice: as keys they count twice, their second
  output is dropped;
* keys have unit length and queries keep theirs; there is no 1 / sqrt(c);
* fewer pixels than one chunk (where the released code crashes): plain attention over all of them, every key once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

KEY_EPS = 5e-5
"""Lower bound on a key's length when it is normalised; shorter features keep their direction and shrink."""

HALF = (torch.float16, torch.bfloat16)

NEIGHBOURS = {'both': (1, 1), 'previous': (1, 0), 'none': (0, 0)}
"""How many chunks before it, and how many behind it, a chunk attends to besides itself."""


def attend(match: Tensor, value: Tensor, order: Tensor, chunk_size: int, neighbours: str = 'both') -> Tensor:
    """Attend sparsely over hash buckets (Eqs. 8 to 11).

    Args:
        match: theta(x) = phi(x), queries and keys in one, [N, L, c].
        value: g(x), [N, L, C].
        order: pi, the pixels sorted by hash code, [N, r, L]; of lsh.py (Eq. 7).
        chunk_size: k <= L.
        neighbours: of NEIGHBOURS; the shapes below are those of 'both'.

    Returns:
        y, [N, L, C], in the dtype of `value`.
    """
    query = into_chunks(take_pixels(match, order), chunk_size)  # C_j of Eq. 8, [N, r, n, k, c]
    key = with_neighbours(normalise(query), neighbours)  # [N, r, n, 3k, c]
    chunk_value = with_neighbours(into_chunks(take_pixels(value, order), chunk_size), neighbours)  # [N, r, n, 3k, C]

    score = wide(query @ key.transpose(-1, -2))  # log f(x_i, x_j) for j in delta_i, [N, r, n, k, 3k]
    log_mass = score.logsumexp(dim=-1, keepdim=True)  # log of the sum of f over delta_i, [N, r, n, k, 1]
    attention = (score - log_mass).exp_()
    sparse = attention.to(chunk_value.dtype) @ chunk_value  # Att(x_i, delta_i), Eq. 10, [N, r, n, k, C]

    sparse = into_raster(sparse, order)  # [N, r, L, C]
    log_mass = into_raster(log_mass, order)  # [N, r, L, 1]
    share = log_mass.softmax(dim=1)  # what each round found, of what all rounds found
    return (sparse * share.to(sparse.dtype)).sum(dim=1)  # Eq. 11, [N, L, C]


def attend_densely(match: Tensor, value: Tensor) -> Tensor:
    """Standard non-local attention (Eq. 4) with the normalised keys of `attend`: [N, L, c], [N, L, C] -> [N, L, C]."""
    score = wide(match @ normalise(match).transpose(-1, -2))  # [N, L, L]
    return score.softmax(dim=-1).to(value.dtype) @ value


def normalise(x: Tensor) -> Tensor:
    """Scale features to unit length. The length is taken in float32: a float16 square overflows from 256 on."""
    return F.normalize(wide(x), dim=-1, eps=KEY_EPS).to(x.dtype)


def wide(x: Tensor) -> Tensor:
    """Half precision to float32; float32 and float64 as they are."""
    return x.float() if x.dtype in HALF else x


def take_pixels(x: Tensor, order: Tensor) -> Tensor:
    """Copy pixels into sorted order, once per round: [N, L, D], [N, r, L] -> [N, r, L, D]."""
    rounds, channels = order.shape[1], x.shape[-1]
    return x[:, None].expand(-1, rounds, -1, -1).gather(2, order[..., None].expand(-1, -1, -1, channels))


def into_chunks(x: Tensor, chunk_size: int) -> Tensor:
    """Cut the sorted order into chunks of k (Eq. 8), the last one filled up: [N, r, L, D] -> [N, r, n, k, D]."""
    images, rounds, length, channels = x.shape
    chunks = -(-length // chunk_size)
    missing = chunks * chunk_size - length
    filled = torch.cat([x, x[:, :, length - missing :]], dim=2)
    return filled.reshape(images, rounds, chunks, chunk_size, channels)


def with_neighbours(x: Tensor, neighbours: str) -> Tensor:
    """Let each chunk see [itself, the previous, the next], circularly: [N, r, n, k, D] -> [N, r, n, 3k, D]."""
    before, behind = NEIGHBOURS[neighbours]
    return torch.cat([x] + [x.roll(1, dims=2)] * before + [x.roll(-1, dims=2)] * behind, dim=3)


def into_raster(x: Tensor, order: Tensor) -> Tensor:
    """Undo the chunks and the sorting: [N, r, n, k, D], [N, r, L] -> [N, r, L, D]; outputs of filled places drop."""
    place = order.argsort(dim=-1)[..., None].expand(-1, -1, -1, x.shape[-1])  # where each pixel went
    return x.flatten(2, 3).gather(2, place)
