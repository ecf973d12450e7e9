"""Non-local sparse attention as a stream over groups of chunks: exact, on any device, memory independent of n_hashes.

What `reference.py` computes round by round and then merges is one softmax over the windows of all rounds together, and
its largest logarithm is known beforehand: keys have unit length and a pixel is among its own keys, so no score exceeds
|x_i|. Hence numerators and denominators of all rounds simply add up,

    y_i = sum_h sum_j w_ij g(x_j) / mass_i,   mass_i = sum_h sum_j w_ij,   w_ij = exp(x_i . x_j / |x_j| - |x_i|),

with no maximum to look for and nothing to rescale. A few chunks at a time pass through the cache; nothing of the size
of the scores is ever stored. On the way back the weights are computed again.

Letters as in `lsh.py` and `reference.py`; besides, G chunks in a group.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from nlsn_plugin.ops.reference import KEY_EPS, wide

LOG2E = 1.4426950408889634
"""Scores are taken in powers of two: exp2 is several times faster than exp on a CPU."""


PIXELS_AT_ONCE = 1152
"""Queries of a group on a CPU: its weights [G, k, 3k] stay in the cache (2 MB at k = 144)."""

PIXELS_AT_ONCE_ON_A_DEVICE = 32768
"""The same elsewhere, where few large steps count more than a cache."""


def forward(match: Tensor, value: Tensor, order: Tensor, chunk_size: int) -> tuple[Tensor, Tensor]:
    """Attend.

    Args:
        match: [N, L, c].
        value: [N, L, C].
        order: the pixels sorted by hash code, [N, r, L].
        chunk_size: k <= L.

    Returns:
        y, [N, L, C] in the dtype of `value`, and mass, [N, L] in float32 (float64 if `match` is).
    """
    out, mass = torch.empty_like(value), wide(match.new_empty(match.shape[:2]))
    scratch = Scratch(match.device)
    for n in range(len(order)):
        found, found_mass = wide(out[n].zero_()), mass[n].zero_()
        for group in groups(match[n], order[n], chunk_size, scratch):
            weight = group.weights()  # [G, k, 3k]
            group.add(found_mass, weight.sum(dim=-1))
            values = group.windows(group.rows('values', value[n]))  # [G, 3k, C]
            group.add(found, group.product('found', group.cast('rounded', weight, value.dtype), values))
        torch.div(found, found_mass[:, None], out=out[n])
    return out, mass


def backward(
    grad: Tensor, match: Tensor, value: Tensor, out: Tensor, mass: Tensor, order: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """The gradients of `match` and `value`, from that of y and what `forward` took and returned."""
    grad_match, grad_value = torch.empty_like(match), torch.empty_like(value)
    scratch = Scratch(match.device)
    for n in range(len(order)):
        mean = (wide(grad[n]) * wide(out[n])).sum(dim=-1, keepdim=True)  # of dy_i . g(x_j) over the keys of i, [L, 1]
        for_query, for_key = torch.zeros(2, *match[n].shape, dtype=mass.dtype, device=mass.device)
        for_value = wide(grad_value[n].zero_())
        for group in groups(match[n], order[n], chunk_size, scratch):
            attention = group.weights().div_(group.own('mass', mass[n, :, None]))  # softmax over all rounds, [G, k, 3k]
            attention.flatten(0, 1)[group.queries :] = 0  # the second copies are no queries
            grad_out = group.own('grad_out', grad[n])  # [G, k, C]
            values = group.windows(group.rows('values', value[n]))  # [G, 3k, C]
            grad_score = group.product('grad_score', grad_out, values.mT)  # [G, k, 3k]
            grad_score = group.cast('wide_grad_score', grad_score, attention.dtype)
            grad_score.sub_(group.own('mean', mean)).mul_(attention)
            group.add(for_query, group.product('for_query', grad_score, group.windows(group.key)))
            group.add_to_keys(for_key, grad_score, group.query)
            group.add_to_keys(for_value, group.cast('rounded', attention, value.dtype), grad_out)
        grad_match[n] = for_query + through_normalisation(for_key, match[n])
        grad_value[n] = for_value
    return grad_match, grad_value


class Scratch:
    """Memory that all groups of a call share. Asking the system for it anew costs more than the arithmetic."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.memory: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of any content, the same memory for the same name."""
        size = math.prod(shape)
        memory = self.memory.get((name, dtype))
        if memory is None or len(memory) < size:
            memory = self.memory[name, dtype] = torch.empty(size, dtype=dtype, device=self.device)
        return memory[:size].view(shape)


def groups(match: Tensor, order: Tensor, chunk_size: int, scratch: Scratch) -> Iterator[Group]:
    """All chunks of all rounds of one image, a few at a time; [L, c], [r, L]."""
    x = wide(match)
    length = x.norm(dim=-1, keepdim=True)
    chunks = -(-len(x) // chunk_size)
    missing = chunks * chunk_size - len(x)
    at_once = max(1, (PIXELS_AT_ONCE if x.device.type == 'cpu' else PIXELS_AT_ONCE_ON_A_DEVICE) // chunk_size)
    for places in order:
        filled = torch.cat([places, places[len(x) - missing :]])
        ring = torch.cat([filled[-chunk_size:], filled, filled[:chunk_size]])
        for first in range(0, chunks, at_once):
            last = min(first + at_once, chunks)
            queries = min(last * chunk_size, len(x)) - first * chunk_size
            yield Group(x, length, ring[first * chunk_size : (last + 2) * chunk_size], queries, chunk_size, scratch)


class Group:
    """G neighbouring chunks of one round.

    Args:
        x, length: features and their lengths, [L, c] and [L, 1].
        pixels: those of the chunks, with the chunk before and the chunk behind, [(G + 2) k].
        queries: how many of the G k pixels are queries; the rest are second copies at the end of the order.
        chunk_size: k.
        scratch: where results lie; every one is overwritten by that of the next group.
    """

    def __init__(
        self, x: Tensor, length: Tensor, pixels: Tensor, queries: int, chunk_size: int, scratch: Scratch
    ) -> None:
        self.pixels, self.queries, self.chunk_size, self.scratch = pixels, queries, chunk_size, scratch
        self.own_pixels = pixels[chunk_size:-chunk_size]
        features, lengths = self.rows('features', x), self.rows('lengths', length)
        self.query = self.in_chunks(features[chunk_size:-chunk_size])  # [G, k, c]
        self.bound = self.in_chunks(lengths[chunk_size:-chunk_size])  # [G, k, 1]
        self.key = features / lengths.clamp_min(KEY_EPS)  # [(G + 2) k, c]

    def weights(self) -> Tensor:
        """w of every query for its 3 k keys, [G, k, 3k]."""
        score = self.product('score', self.query * LOG2E, self.windows(self.key).mT)
        return score.sub_(self.bound * LOG2E).exp2_()

    def product(self, name: str, left: Tensor, right: Tensor) -> Tensor:
        """[G, a, b], [G, b, c] -> [G, a, c]."""
        shape = (*left.shape[:2], right.shape[2])
        return torch.bmm(left, right, out=self.scratch.take(name, shape, left.dtype))

    def cast(self, name: str, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x if x.dtype == dtype else self.scratch.take(name, tuple(x.shape), dtype).copy_(x)

    def rows(self, name: str, x: Tensor) -> Tensor:
        """[L, D] -> [(G + 2) k, D]."""
        return self.gather(name, x, self.pixels)

    def own(self, name: str, x: Tensor) -> Tensor:
        """[L, D] -> [G, k, D]."""
        return self.in_chunks(self.gather(name, x, self.own_pixels))

    def gather(self, name: str, x: Tensor, pixels: Tensor) -> Tensor:
        """[L, D], [P] -> [P, D]."""
        return torch.index_select(x, 0, pixels, out=self.scratch.take(name, (len(pixels), x.shape[1]), x.dtype))

    def in_chunks(self, rows: Tensor) -> Tensor:
        """[G k, D] -> [G, k, D]."""
        return rows.view(-1, self.chunk_size, rows.shape[-1])

    def windows(self, rows: Tensor) -> Tensor:
        """Each chunk with both neighbours, overlapping in memory: [(G + 2) k, D] -> [G, 3k, D]."""
        k, channels = self.chunk_size, rows.shape[-1]
        return rows.as_strided((len(rows) // k - 2, 3 * k, channels), (k * channels, channels, 1))

    def add(self, total: Tensor, terms: Tensor) -> None:
        """Add what the queries found, [G, k, *], to their pixels, [L, *]."""
        terms = terms.flatten(0, 1)[: self.queries]
        total.index_add_(0, self.own_pixels[: self.queries], terms.to(total.dtype))

    def add_to_keys(self, total: Tensor, weight: Tensor, terms: Tensor) -> None:
        """Add the terms of the queries, [G, k, D], each by its weight, [G, k, 3k], to the pixels of the keys, [L, D]."""
        k = self.chunk_size
        summed = self.scratch.take('summed', (len(self.pixels), terms.shape[-1]), terms.dtype).zero_()
        for part in range(3):  # each query's chunk before, its own, the one behind
            keys = summed[part * k : len(summed) - (2 - part) * k]
            self.in_chunks(keys).baddbmm_(weight[:, :, part * k : (part + 1) * k].mT, terms)
        total.index_add_(0, self.pixels, summed.to(total.dtype))


def through_normalisation(grad_key: Tensor, match: Tensor) -> Tensor:
    """The gradient of the features from that of the keys, x / max(|x|, eps); both [L, c]."""
    x = wide(match)
    length = x.norm(dim=-1, keepdim=True)
    key = x / length.clamp_min(KEY_EPS)
    along = key * (key * grad_key).sum(dim=-1, keepdim=True)
    return (grad_key - along.where(length >= KEY_EPS, 0)) / length.clamp_min(KEY_EPS)
