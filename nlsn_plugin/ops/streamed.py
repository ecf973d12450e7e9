"""Non-local sparse attention as a stream over groups of chunks: exact, on any device, memory independent of n_hashes.

What `reference.py` computes round by round and then merges is one softmax over the windows of all rounds together, and
its largest logarithm is known beforehand: keys have unit length and a pixel is among its own keys, so no score exceeds
|x_i|. Hence numerators and denominators of all rounds simply add up,

    y_i = sum_h sum_j w_ij g(x_j) / mass_i,   mass_i = sum_h sum_j w_ij,   w_ij = exp(x_i . x_j / |x_j| - |x_i|),

with no maximum to look for and nothing to rescale. (Rounding may lift a score above that, which is harmless up to
|x_i| = 1e7 in float32; of longer features the scores in `reference.py` have no right digit either.) The rows of a group
of chunks are gathered at once, and its weights pass through the cache a part at a time, which is of one chunk at least;
no more of the scores is ever stored. On the way back the weights are computed again.

Letters as in `lsh.py` and `reference.py`; besides, G chunks in a group, P in a part of it, and s in a window: 3, unless
`neighbours` says fewer. In here pixels of all images lie in one row.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from typing import NamedTuple

import torch
from torch import Tensor

from nlsn_plugin.ops.cpu_matmul import has_products_in, onednn_multiplies
from nlsn_plugin.ops.reference import HALF, KEY_EPS, NEIGHBOURS, wide
from nlsn_plugin.ops.scratch import Scratch, scratch

LOG2E = 1.4426950408889634
"""Scores are taken in powers of two: exp2 is several times faster than exp on a CPU."""

NUMBERS_AT_ONCE = 450_000
"""Weights and channels of a part's queries for each thread of a CPU (4 chunks of 144, C 256): its cache has room."""

NUMBERS_AT_ONCE_ON_A_DEVICE = 24_000_000
"""The same elsewhere, where few large steps count more than a cache."""

NUMBERS_GATHERED = 1_500_000
"""Channels of a group's pixels (32 chunks of 144, C 256), unless a part has more: more gain little and take memory."""


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
    has_shift = differentiable and value.dtype in HALF
    found, mass = wide_zeros(values), wide_zeros(match[..., 0].flatten())
    dtype = found.dtype if differentiable else product_dtype(values)  # shift is rounded at the end alone
    with scratch(match.device) as memory:
        for group in groups(match, value, order, chunk_size, neighbours, memory):
            windows = group.windows(values, dtype)
            numerators = group.take('numerators', values.shape[1], dtype)  # [G, k, C]
            masses = group.take('masses', 1, mass.dtype)[..., 0]  # [G, k]
            for part in group.parts():
                weight = group.weights(part, group.keys(part))  # [P, k, s k]
                rounded = group.cast('rounded', weight, dtype)
                torch.bmm(rounded, group.of_part('value_windows', windows, part), out=numerators[part])
                torch.sum(weight.copy_(rounded), dim=-1, out=masses[part])  # of what the values were weighted with
            group.add(found, numerators)
            group.add(mass, masses)
    out = found.div_(mass[:, None]).to(value.dtype)
    shift = found.sub_(values).to(value.dtype).view(value.shape) if has_shift else value.new_empty(0)
    return out.view(value.shape), mass.view(value.shape[:2]), shift


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
    x, values, grad = (tensor.flatten(0, 1) for tensor in (match, value, grad))  # [N L, *]
    for_query, for_key, for_value = wide_zeros(x), wide_zeros(x), wide_zeros(values)
    dtype = product_dtype(values)
    mass = mass.view(-1, 1)
    mean = dot(grad, kept.flatten(0, 1))  # of dy_i . g(x_j) over the keys of i, [N L, 1]: dy_i . y_i
    if value.dtype in HALF:
        mean += dot(grad, values)
    with scratch(match.device) as memory:
        for group in groups(match, value, order, chunk_size, neighbours, memory):
            # Wide in half precision too: where one key has all the weight, this product and `mean` all but cancel.
            windows = group.windows(values, for_value.dtype)
            # A query's weights are shares of its mass. The gradients, which are fewer numbers than the weights, are
            # divided by it instead. Taken off the bound, its logarithm would be lost where features are long.
            own_mass = group.own('mass', mass)
            own_mean = group.own('mean', mean).div_(own_mass)
            own_grad = group.cast('wide_grad', group.own('grad', grad), for_value.dtype).div_(own_mass)  # [G, k, C]
            for rows in (own_mean, own_grad):  # second copies are no queries; 0 times what is not a number would be one
                group.second_copies(rows, slice(0, len(rows))).zero_()
            terms = group.cast('terms_for_values', own_grad, dtype)
            query_sums = group.take('query_sums', x.shape[1], for_query.dtype)
            key_sums = group.zeros_for_keys('key_sums', x.shape[1], for_key.dtype)
            value_sums = group.zeros_for_keys('value_sums', values.shape[1], dtype)
            for part in group.parts():
                keys = group.keys(part)
                weight = group.weights(part, keys)  # [P, k, s k]
                group.second_copies(weight, part).zero_()
                part_windows = group.of_part('value_windows', windows, part)
                grad_score = group.product('grad_score', own_grad[part], part_windows.mT)  # [P, k, s k]
                grad_score.sub_(own_mean[part]).mul_(weight)
                torch.bmm(grad_score, keys, out=query_sums[part])
                group.sum_for_keys(key_sums, grad_score, group.query[part], part)
                group.sum_for_keys(value_sums, group.cast('rounded', weight, dtype), terms[part], part)
            group.add(for_query, query_sums)
            group.add_to_keys(for_key, key_sums)
            group.add_to_keys(for_value, value_sums)
    for_match = for_query.add_(through_normalisation(for_key, x))
    return for_match.to(match.dtype).view(match.shape), for_value.to(value.dtype).view(value.shape)


def groups(
    match: Tensor, value: Tensor, order: Tensor, chunk_size: int, neighbours: str, memory: Scratch
) -> Iterator[Group]:
    """All chunks of all rounds and images, some at a time: of one ring of chunks, or of several whole ones."""
    cut = how_to_cut(match, value, chunk_size, neighbours)
    k, before, behind = cut.chunk_size, cut.before, cut.behind
    _, rounds, length = order.shape
    chunks = -(-length // k)
    features = wide(match).flatten(0, 1)
    lengths = features.norm(dim=-1, keepdim=True)
    chunks_at_once = evenly(chunks, cut.group_size)
    orders = order.flatten(0, 1)
    rings_at_once = evenly(len(orders), max(1, cut.group_size // chunks))
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
            yield Group(features, lengths, around, queries, cut, memory)


def evenly(count: int, most: int) -> int:
    """How many to take at a time, at most `most`, so that the last time is like the others."""
    times = max(1, -(-count // most))
    return max(1, -(-count // times))


class Cut(NamedTuple):
    """How the order is cut.

    Args:
        chunk_size: k.
        before, behind: chunks of a window before and behind its own, s - 1 together.
        part_size, group_size: P and G at most.
        copied: types of which windows are copied though they may overlap in memory.
    """

    chunk_size: int
    before: int
    behind: int
    part_size: int
    group_size: int
    copied: Set[torch.dtype]


def how_to_cut(match: Tensor, value: Tensor, chunk_size: int, neighbours: str) -> Cut:
    """By the memory of a group and of a part of it."""
    before, behind = NEIGHBOURS[neighbours]
    window = (before + 1 + behind) * chunk_size
    channels = match.shape[-1] + value.shape[-1]
    on_cpu = match.device.type == 'cpu'
    numbers = NUMBERS_AT_ONCE * min(torch.get_num_threads(), 16) if on_cpu else NUMBERS_AT_ONCE_ON_A_DEVICE
    part_size = max(1, numbers // (window + channels) // chunk_size)
    group_size = max(part_size, NUMBERS_GATHERED // channels // chunk_size)
    # What overlaps itself oneDNN copies, to fresh memory each time.
    copied = frozenset(x.dtype for x in (value[:0], wide(value[:0]), wide(match[:0])) if onednn_multiplies(x))
    return Cut(chunk_size, before, behind, part_size, group_size, copied)


class Group:
    """G chunks: neighbours in each of b rings, G / b from each. A ring is the order of one round of one image.

    Args:
        features, lengths: x and |x| of all images, [N L, c] and [N L, 1].
        pixels: those of the chunks and, in each ring, of the chunks before and behind, [b, (G / b + s - 1) k].
        queries: how many of the G k / b pixels in a ring are queries; the rest are second copies at its end.
        cut: how the order is cut.
        memory: where results lie; each is overwritten by that of the next group or part.
    """

    def __init__(
        self, features: Tensor, lengths: Tensor, pixels: Tensor, queries: int, cut: Cut, memory: Scratch
    ) -> None:
        self.pixels, self.queries, self.cut, self.memory = pixels, queries, cut, memory
        self.chunk_size, self.span = cut.chunk_size, cut.before + 1 + cut.behind
        self.ring_chunks = pixels.shape[1] // self.chunk_size - self.span + 1
        self.own_pixels = pixels[:, cut.before * cut.chunk_size :][:, : self.ring_chunks * cut.chunk_size]
        self.query = self.own('query', features)  # [G, k, c]
        # Scores and what bounds them are in powers of two.
        scaled = self.take('scaled_query', features.shape[1], features.dtype)
        self.scaled_query = torch.mul(self.query, LOG2E, out=scaled)
        self.bound = self.own('bound', lengths).mul_(LOG2E)  # [G, k, 1]
        key = self.gather('key', features, pixels).div_(self.gather('length', lengths, pixels).clamp_min_(KEY_EPS))
        self.key_windows = self.in_windows(key)

    def parts(self) -> Iterator[slice]:
        """Which chunks, of G, are looked at together: whole rings, or some of one ring."""
        rings, chunks = len(self.pixels), self.ring_chunks
        if self.cut.part_size >= 2 * chunks:
            rings_at_once = evenly(rings, self.cut.part_size // chunks)
            for ring in range(0, rings, rings_at_once):
                yield slice(ring * chunks, min(ring + rings_at_once, rings) * chunks)
        else:
            chunks_at_once = evenly(chunks, self.cut.part_size)
            for ring in range(rings):
                for first in range(0, chunks, chunks_at_once):
                    yield slice(ring * chunks + first, ring * chunks + min(first + chunks_at_once, chunks))

    def in_rings(self, part: slice) -> tuple[slice, slice]:
        """The rings of a part, of b, and its chunks in each of them, of G / b."""
        chunks = self.ring_chunks
        first = part.start // chunks
        if part.stop - part.start < chunks:
            return slice(first, first + 1), slice(part.start - first * chunks, part.stop - first * chunks)
        return slice(first, part.stop // chunks), slice(0, chunks)

    def weights(self, part: slice, keys: Tensor) -> Tensor:
        """w of a part's queries for its keys, [P, s k, c] -> [P, k, s k]."""
        score = self.product('score', self.scaled_query[part], keys.mT)
        return score.sub_(self.bound[part]).exp2_()

    def keys(self, part: slice) -> Tensor:
        """The keys of a part's windows, [P, s k, c]."""
        return self.of_part('keys', self.key_windows, part)

    def own(self, name: str, x: Tensor) -> Tensor:
        """The rows of the chunks' own pixels, [N L, D] -> [G, k, D]."""
        return self.gather(name, x, self.own_pixels).view(-1, self.chunk_size, x.shape[1])

    def windows(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """Of each chunk with its neighbours, [N L, C] -> as `in_windows`."""
        return self.in_windows(self.cast('values in another type', self.gather('values', values, self.pixels), dtype))

    def in_windows(self, rows: Tensor) -> Tensor:
        """[b (G / b + s - 1) k, D] -> [b, G / b, s k, D], overlapping in memory."""
        k, channels = self.chunk_size, rows.shape[1]
        rings, length = self.pixels.shape
        shape = rings, self.ring_chunks, self.span * k, channels
        return rows.as_strided(shape, (length * channels, k * channels, channels, 1))

    def of_part(self, name: str, windows: Tensor, part: slice) -> Tensor:
        """Of `in_windows` those of a part, [P, s k, D]; of one ring they may overlap in memory, those of several are
        copied."""
        windows = windows[self.in_rings(part)]
        if windows.shape[0] == 1 and windows.dtype not in self.cut.copied:
            return windows[0]
        return self.memory.take(name, tuple(windows.shape), windows.dtype).copy_(windows).flatten(0, 1)

    def gather(self, name: str, x: Tensor, pixels: Tensor) -> Tensor:
        """[N L, D], [b, P] -> [b P, D]."""
        rows = self.memory.take(name, (pixels.numel(), x.shape[1]), x.dtype)
        return torch.index_select(x, 0, pixels.flatten(), out=rows)

    def product(self, name: str, left: Tensor, right: Tensor) -> Tensor:
        """[P, p, q], [P, q, s] -> [P, p, s]."""
        shape = (*left.shape[:2], right.shape[2])
        return torch.bmm(left, right, out=self.memory.take(name, shape, left.dtype))

    def cast(self, name: str, x: Tensor, dtype: torch.dtype) -> Tensor:
        """`x` in another type."""
        return x if x.dtype == dtype else self.memory.take(name, tuple(x.shape), dtype).copy_(x)

    def take(self, name: str, channels: int, dtype: torch.dtype) -> Tensor:
        """Room for a row for each query, [G, k, D]."""
        return self.memory.take(name, (*self.query.shape[:2], channels), dtype)

    def second_copies(self, x: Tensor, part: slice) -> Tensor:
        """What of a part, [P, k, *], is for pixels that stand a second time at the end of their ring."""
        rings, chunks = self.in_rings(part)
        rows = x.view(rings.stop - rings.start, -1, *x.shape[2:])
        return rows[:, max(self.queries - chunks.start * self.chunk_size, 0) :]

    def add(self, total: Tensor, terms: Tensor) -> None:
        """Add what the queries found, [G, k, *], to their pixels, [N L, *]."""
        terms = terms.view(len(self.pixels), -1, *terms.shape[2:])[:, : self.queries].flatten(0, 1)
        total.index_add_(0, self.own_pixels[:, : self.queries].flatten(), self.cast('terms', terms, total.dtype))

    def zeros_for_keys(self, name: str, channels: int, dtype: torch.dtype) -> Tensor:
        """A row for each pixel, to sum in, [b, (G / b + s - 1) k, D]."""
        return self.memory.take(name, (*self.pixels.shape, channels), dtype).zero_()

    def sum_for_keys(self, sums: Tensor, weight: Tensor, terms: Tensor, part: slice) -> None:
        """Add the terms of a part's queries, [P, k, D], each by its weight, [P, k, s k], for their keys."""
        k, channels = self.chunk_size, terms.shape[-1]
        rings, chunks = self.in_rings(part)
        for step in range(self.span):  # each query's chunk before, its own, the one behind
            keys = sums[rings, (chunks.start + step) * k : (chunks.stop + step) * k]
            to_chunk = weight[:, :, step * k : (step + 1) * k].mT
            if keys.shape[0] == 1:
                keys.view(-1, k, channels).baddbmm_(to_chunk, terms)
            else:  # the rings' keys do not lie side by side
                keys.add_((to_chunk @ terms).view(keys.shape))

    def add_to_keys(self, total: Tensor, sums: Tensor) -> None:
        """Add what was summed for keys to their pixels, [N L, D]."""
        total.index_add_(0, self.pixels.flatten(), self.cast('terms', sums.flatten(0, 1), total.dtype))


def wide_zeros(x: Tensor) -> Tensor:
    """Zeros of the shape of `x`, to sum in: float32 for half precision."""
    return torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))


def product_dtype(values: Tensor) -> torch.dtype:
    """That of `values`, to multiply and sum in, unless a CPU has no arithmetic for it or it has no room for a sum of
    numbers that it holds, as float16: then a wider one."""
    slow = values.device.type == 'cpu' and not has_products_in(values.dtype)
    return wide(values[:0]).dtype if slow or values.dtype == torch.float16 else values.dtype


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
