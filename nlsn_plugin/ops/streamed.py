"""Non-local sparse attention as a stream over groups of chunks: exact, on any device, memory independent of n_hashes.

What `reference.py` computes round by round and then merges is one softmax over the windows of all rounds together, and
its largest logarithm is known beforehand: keys have unit length and a pixel is among its own keys, so no score exceeds
|x_i|. Hence numerators and denominators of all rounds simply add up,

    y_i = sum_h sum_j w_ij g(x_j) / mass_i,   mass_i = sum_h sum_j w_ij,   w_ij = exp(x_i . x_j / |x_j| - |x_i|),

with no maximum to look for and nothing to rescale. A few chunks at a time pass through the cache; nothing of the size
of the scores is ever stored. On the way back the weights are computed again.

Letters as in `lsh.py` and `reference.py`; besides, G chunks in a group, and s chunks in a window: 3, unless
`neighbours` says fewer. In here pixels of all images lie in one row.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from nlsn_plugin.ops.cpu_matmul import has_products_in, onednn_multiplies
from nlsn_plugin.ops.reference import HALF, KEY_EPS, NEIGHBOURS, wide
from nlsn_plugin.ops.scratch import Scratch

LOG2E = 1.4426950408889634
"""Scores are taken in powers of two: exp2 is several times faster than exp on a CPU."""

NUMBERS_AT_ONCE = 900_000
"""Weights and channels of a group's queries for each thread of a CPU (8 chunks of 144, C 256): they stay in cache."""

NUMBERS_AT_ONCE_ON_A_DEVICE = 24_000_000
"""The same elsewhere, where few large steps count more than a cache."""


def forward(
    match: Tensor, value: Tensor, order: Tensor, chunk_size: int, differentiable: bool, neighbours: str = 'both'
) -> tuple[Tensor, Tensor, Tensor]:
    """Attend.

    Args:
        match: [N, L, c].
        value: [N, L, C].
        order: the pixels sorted by hash code, [N, r, L].
        chunk_size: k <= L.
        differentiable: whether a backward pass is to follow.
        neighbours: of reference.NEIGHBOURS.

    Returns:
        y, [N, L, C] in the dtype of `value`;
        mass, [N, L] in float32 (float64 if `match` is);
        shift, y_i - g(x_i), like y, if that is half precision and `differentiable`; else empty. Where a pixel attends
        to itself alone, the gradient of its score is the difference of two products, of dy_i with g(x_i) and with y_i.
        From a rounded y the rounding would be left.
    """
    values = value.flatten(0, 1)  # [N L, C]
    found, mass = wide_zeros(values), wide_zeros(match[..., 0].flatten())
    dtype = found.dtype if differentiable else product_dtype(values)  # shift is rounded at the end alone
    for group in groups(match, value, order, chunk_size, neighbours):
        weight = group.weights()  # [G, k, s k]
        rounded = group.cast('rounded', weight, dtype)
        group.add(found, group.product('found', rounded, group.windows(values, dtype)))
        group.add(mass, weight.copy_(rounded).sum(dim=-1))  # of what the values were weighted with
    out = found.div_(mass[:, None]).to(value.dtype)
    is_half = value.dtype in HALF
    shift = found.sub_(values).to(value.dtype) if differentiable and is_half else value.new_empty(0)
    return out.view(value.shape), mass.view(value.shape[:2]), shift.view(value.shape) if len(shift) else shift


def backward(
    grad: Tensor,
    match: Tensor,
    value: Tensor,
    kept: Tensor,
    mass: Tensor,
    order: Tensor,
    chunk_size: int,
    neighbours: str = 'both',
) -> tuple[Tensor, Tensor]:
    """The gradients of `match` and `value`, from that of y and what `forward` took and returned.

    kept: shift, if `value` has half precision; else y.
    """
    x, values, grad, mass = (tensor.flatten(0, 1) for tensor in (match, value, grad, mass[..., None]))  # [N L, *]
    for_query, for_key, for_value = wide_zeros(x), wide_zeros(x), wide_zeros(values)
    dtype = product_dtype(values)
    mean = dot(grad, kept.flatten(0, 1))  # of dy_i . g(x_j) over the keys of i, [N L, 1]: dy_i . y_i
    if value.dtype in HALF:
        mean += dot(grad, values)
    for group in groups(match, value, order, chunk_size, neighbours):
        attention = group.weights().div_(group.own('mass', mass))  # softmax over all rounds, [G, k, s k]
        group.by_ring(attention)[:, group.queries :] = 0  # the second copies are no queries
        grad_own = group.own('grad', grad)  # [G, k, C]
        # In half precision too this product is wide: where one key has all the weight, it and `mean` all but cancel.
        wide_grad = group.cast('wide_grad', grad_own, for_value.dtype)
        grad_score = group.product('grad_score', wide_grad, group.windows(values, for_value.dtype).mT)  # [G, k, s k]
        grad_score.sub_(group.own('mean', mean)).mul_(attention)
        group.add(for_query, group.product('for_query', grad_score, group.key_windows))
        group.add_to_keys(for_key, grad_score, group.query)
        grad_own = grad_own if dtype == grad_own.dtype else wide_grad
        group.add_to_keys(for_value, group.cast('rounded', attention, dtype), grad_own)
    for_match = for_query.add_(through_normalisation(for_key, x))
    return for_match.to(match.dtype).view(match.shape), for_value.to(value.dtype).view(value.shape)


def groups(match: Tensor, value: Tensor, order: Tensor, chunk_size: int, neighbours: str) -> Iterator[Group]:
    """All chunks of all rounds and images, a few at a time: part of a ring of chunks, or as many rings as fit."""
    k = chunk_size
    before, behind = NEIGHBOURS[neighbours]
    window = (before + 1 + behind) * k
    _, rounds, length = order.shape
    chunks = -(-length // k)
    features = wide(match).flatten(0, 1)
    lengths = features.norm(dim=-1, keepdim=True)
    on_cpu = match.device.type == 'cpu'
    numbers = NUMBERS_AT_ONCE * min(torch.get_num_threads(), 16) if on_cpu else NUMBERS_AT_ONCE_ON_A_DEVICE
    chunks_at_once = max(1, numbers // (window + match.shape[-1] + value.shape[-1]) // k)
    rings_at_once = max(1, chunks_at_once // chunks)
    chunks_at_once = -(-chunks // -(-chunks // chunks_at_once))  # alike for all groups of a ring
    scratch = Scratch(match.device)
    orders = order.flatten(0, 1)
    for ring in range(0, len(orders), rings_at_once):
        pixels = orders[ring : ring + rings_at_once]  # [b, L]
        image = torch.arange(ring, ring + len(pixels), device=order.device)[:, None] // rounds
        pixels = pixels + length * image  # of all images, [0, N L)
        filled = torch.cat([pixels, pixels[:, length - -length % k :]], dim=1)  # [b, n k]
        ends = filled[:, (chunks - before) * k :], filled[:, : behind * k]
        circle = torch.cat([ends[0], filled, ends[1]], dim=1)  # [b, (n + s - 1) k]
        for first in range(0, chunks, chunks_at_once):
            last = min(first + chunks_at_once, chunks)
            queries = min(last * k, length) - first * k
            around = circle[:, first * k : (last + before + behind) * k]
            yield Group(features, lengths, around, queries, k, before, behind, scratch)


class Group:
    """G chunks: neighbours in each of b rings, G / b from each. A ring is the order of one round of one image.

    Args:
        features, lengths: x and |x| of all images, [N L, c] and [N L, 1].
        pixels: those of the chunks and, in each ring, of the chunks before and behind, [b, (G / b + s - 1) k].
        queries: how many of the G k / b pixels in a ring are queries; the rest are second copies at its end.
        chunk_size: k.
        before, behind: chunks of a window before and behind its own, s - 1 together.
        scratch: where results lie; each is overwritten by that of the next group.
    """

    def __init__(
        self,
        features: Tensor,
        lengths: Tensor,
        pixels: Tensor,
        queries: int,
        chunk_size: int,
        before: int,
        behind: int,
        scratch: Scratch,
    ) -> None:
        self.chunk_size, self.span, self.queries, self.scratch = chunk_size, before + 1 + behind, queries, scratch
        self.pixels = pixels
        self.own_pixels = pixels[:, before * chunk_size : pixels.shape[1] - behind * chunk_size]
        self.query = self.own('query', features)  # [G, k, c]
        self.bound = self.own('bound', lengths)  # [G, k, 1]
        key = self.gather('key', features, pixels).div_(self.gather('length', lengths, pixels).clamp_min_(KEY_EPS))
        self.key_windows = self.in_windows('key_windows', key)  # [G, s k, c]

    def weights(self) -> Tensor:
        """w of every query for its s k keys, [G, k, s k]."""
        score = self.product('score', self.query * LOG2E, self.key_windows.mT)
        return score.sub_(self.bound * LOG2E).exp2_()

    def own(self, name: str, x: Tensor) -> Tensor:
        """Of the chunks themselves, [N L, D] -> [G, k, D]."""
        return self.gather(name, x, self.own_pixels).view(-1, self.chunk_size, x.shape[1])

    def windows(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Of each chunk with its neighbours, [N L, D] -> [G, s k, D]."""
        return self.in_windows('windows', self.cast('window', self.gather('window', x, self.pixels), dtype))

    def in_windows(self, name: str, rows: Tensor) -> Tensor:
        """[b (G / b + s - 1) k, D] -> [G, s k, D], overlapping in memory if they may."""
        k, channels = self.chunk_size, rows.shape[1]
        rings, length = self.pixels.shape
        strides = (length * channels, k * channels, channels, 1)
        windows = rows.as_strided((rings, length // k - self.span + 1, self.span * k, channels), strides)
        if onednn_multiplies(rows):  # which else copies them itself, to fresh memory each time
            windows = self.scratch.take(name, tuple(windows.shape), rows.dtype).copy_(windows)
        return windows.flatten(0, 1)

    def gather(self, name: str, x: Tensor, pixels: Tensor) -> Tensor:
        """[N L, D], [b, P] -> [b P, D]."""
        rows = self.scratch.take(name, (pixels.numel(), x.shape[1]), x.dtype)
        return torch.index_select(x, 0, pixels.flatten(), out=rows)

    def product(self, name: str, left: Tensor, right: Tensor) -> Tensor:
        """[G, p, q], [G, q, s] -> [G, p, s]."""
        shape = (*left.shape[:2], right.shape[2])
        return torch.bmm(left, right, out=self.scratch.take(name, shape, left.dtype))

    def cast(self, name: str, x: Tensor, dtype: torch.dtype) -> Tensor:
        """`x` in another type."""
        return x if x.dtype == dtype else self.scratch.take(name, tuple(x.shape), dtype).copy_(x)

    def by_ring(self, x: Tensor) -> Tensor:
        """[G, k, *] -> [b, G k / b, *]."""
        return x.view(len(self.pixels), -1, *x.shape[2:])

    def add(self, total: Tensor, terms: Tensor) -> None:
        """Add what the queries found, [G, k, *], to their pixels, [N L, *]."""
        terms = self.by_ring(terms)[:, : self.queries].flatten(0, 1)
        total.index_add_(0, self.own_pixels[:, : self.queries].flatten(), self.cast('terms', terms, total.dtype))

    def add_to_keys(self, total: Tensor, weight: Tensor, terms: Tensor) -> None:
        """Add the terms of the queries, [G, k, D], each by its weight, [G, k, s k], to their keys' pixels, [N L, D]."""
        k, channels = self.chunk_size, terms.shape[-1]
        summed = self.scratch.take('summed', (*self.pixels.shape, channels), terms.dtype).zero_()
        for part in range(self.span):  # each query's chunk before, its own, the one behind
            keys = summed[:, part * k : summed.shape[1] - (self.span - 1 - part) * k]
            of_part = weight[:, :, part * k : (part + 1) * k].mT
            if len(summed) == 1:
                keys.view(-1, k, channels).baddbmm_(of_part, terms)
            else:  # the rings' keys do not lie side by side
                keys.add_(self.by_ring(of_part @ terms))
        total.index_add_(0, self.pixels.flatten(), self.cast('terms', summed.flatten(0, 1), total.dtype))


def wide_zeros(x: Tensor) -> Tensor:
    """Zeros of the shape of `x`, to sum in: float32 for half precision."""
    return torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))


def product_dtype(values: Tensor) -> torch.dtype:
    """That of `values`, to multiply in, unless a CPU has no arithmetic for it: then the wider one that it has."""
    slow = values.device.type == 'cpu' and not has_products_in(values.dtype)
    return torch.promote_types(values.dtype, torch.float32) if slow else values.dtype


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The product of each row of `a` with that of `b`, [P, D] -> [P, 1]; a few at a time, without a third [P, D]."""
    parts = zip(torch.split(a, 4096), torch.split(b, 4096))
    return torch.cat([(wide(x) * wide(y)).sum(dim=-1, keepdim=True) for x, y in parts])


def through_normalisation(grad_key: Tensor, match: Tensor) -> Tensor:
    """The gradient of the features from that of the keys, x / max(|x|, eps); both [N L, c]."""
    x = wide(match)
    length = x.norm(dim=-1, keepdim=True)
    key = x / length.clamp_min(KEY_EPS)
    along = key * (key * grad_key).sum(dim=-1, keepdim=True)
    return (grad_key - along.where(length >= KEY_EPS, 0)) / length.clamp_min(KEY_EPS)
