"""The kernels of `fused.py`, in Triton's language.

Letters and words as in `kernel_parts.py`.
"""

# Triton's language has no types; in it upper case, besides the letters L and C, is what the compiler knows.
# mypy: disable-error-code="import-untyped, import-not-found, untyped-decorator, no-untyped-def, no-untyped-call"
# ruff: noqa: N803, N806

from __future__ import annotations

import inspect

import triton
import triton.language as tl

from nlsn_plugin.ops.kernel_parts import (
    circle,
    dot,
    fill,
    load_along,
    load_pixels,
    load_rows,
    load_sums,
    multiply_rows,
    slots,
    store_rows,
    store_sums,
    tile,
    window,
    within,
    wrap,
)
from nlsn_plugin.ops.reference import KEY_EPS

EPS = tl.constexpr(KEY_EPS)
LOG2E, LN2 = tl.constexpr(1.4426950408889634), tl.constexpr(0.6931471805599453)
LARGEST_SCALE = tl.constexpr(LOG2E.value / EPS.value)  # of features shorter than EPS
INFINITY = tl.constexpr(float('inf'))

FOR_ANY = {
    'do_not_specialize': ['L', 'k', 'rounds', 'half', 'pitch'],
    'do_not_specialize_on_alignment': ['order', 'scale', 'total_bound', 'mean'],
}
"""Arguments whose values trigger no new compilation, which every new size of an image would have to wait for."""


def kernel(function):
    """Mark a kernel that PyTorch launches."""
    known = inspect.signature(triton.jit).parameters  # alignment is not among them in Triton 3.0
    return triton.jit(**{option: names for option, names in FOR_ANY.items() if option in known})(function)


@kernel
def circle_kernel(
    order, pixels, x, x_along, y, y_along, L, k, rounds, KEYS: tl.constexpr, BOTH: tl.constexpr, BLOCK: tl.constexpr
):
    """The pixel in each slot, counted through the batch, [N, r, L] -> [r, N, slots], and its numbers in x and, if BOTH,
    in y.

    If KEYS, the places missing in the last chunk repeat the last pixels. Queries are not repeated: there the missing
    places hold the very last pixel, as a stand-in whose output nobody takes.
    """
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    image, h = tl.program_id(1).to(tl.int64), tl.program_id(2)
    place = wrap(tl.minimum(at, fill(L, k) + 2 * k - 1) - k, L, k)
    exists = at < slots(L, k)
    if KEYS:
        place = tl.where(place < L, place, place - (fill(L, k) - L))
    pixel = tl.load(order + (image * rounds + h) * L + tl.minimum(place, L - 1)) + image * L
    slot = (h * tl.num_programs(1) + image) * slots(L, k) + at
    tl.store(pixels + slot, pixel, mask=exists)
    tl.store(x_along + slot, tl.load(x + pixel), mask=exists)
    if BOTH:
        tl.store(y_along + slot, tl.load(y + pixel), mask=exists)


@kernel
def length_kernel(match, bound, scale, L, c: tl.constexpr, BLOCK_M: tl.constexpr):
    """Of L pixels, in powers of two: the largest logarithm of a weight, |x|, and what makes a key of a feature,
    1 / max(|x|, eps)."""
    pixel = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    x = load_rows(match, tl.minimum(pixel, L - 1), c, c).to(tl.float32)
    length = tl.sqrt_rn(tl.sum(x * x, axis=1))
    tl.store(bound + pixel, length * LOG2E, mask=pixel < L)
    tl.store(scale + pixel, tl.where(length < EPS, LARGEST_SCALE, LOG2E / length), mask=pixel < L)


@triton.jit
def store_found(
    result, lower, shift, value, total, mass, query, exists,
    LAST: tl.constexpr, SHIFT: tl.constexpr, C: tl.constexpr, BLOCK_C: tl.constexpr, channel,
):  # fmt: skip
    """Store the numerators of queries so far; in the LAST round y instead and, if SHIFT, y_i - g(x_i)."""
    if LAST:
        total /= mass[:, None]
        store_rows(result, total, query, exists, C, BLOCK_C, channel)
        if SHIFT:
            own = load_rows(value, query, C, BLOCK_C, channel).to(tl.float32)
            store_rows(shift, total - own, query, exists, C, BLOCK_C, channel)
    else:
        store_sums(result, lower, total, query, exists, C, BLOCK_C, channel)


@kernel
def forward_kernel(
    match, value, bound, scale, order, checksum, result, lower, found_mass, result_mass, shift,
    L, k, c: tl.constexpr, C: tl.constexpr, PRECISION: tl.constexpr,
    BEFORE: tl.constexpr, SPAN: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr, SHIFT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """What BLOCK_M queries find in one round: numerators for one or two PARTS of BLOCK_C channels, and mass.

    result, lower: numerators, as `load_sums` has them, of the rounds before, unless FIRST; this one is added, and the
    LAST divides. found_mass, result_mass: before and with it. SHIFT stores y_i - g(x_i) with the LAST.
    """
    first, end = tile(tl.program_id(0), tl.load(checksum), L, k, L, BLOCK_M)
    if first >= end:
        return
    order, scale = circle(order, tl.program_id(1), L, k), circle(scale, tl.program_id(1), L, k)
    channel = tl.program_id(2) * PARTS * BLOCK_C

    place = tl.minimum(first + tl.arange(0, BLOCK_M), end - 1)
    query = tl.load(order + place)
    x = load_rows(match, query, c, c)
    highest = tl.load(bound + query)
    window_start = window(place, k, BEFORE)
    slots_first, slots_last = window(first, k, BEFORE), window(end - 1, k, BEFORE)  # of the first and the last window
    slots_end = slots_last + SPAN * k

    mass = tl.zeros([BLOCK_M], tl.float32) if FIRST else tl.load(found_mass + query)
    none = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    total = none if FIRST else load_sums(result, lower, query, C, BLOCK_C, channel)
    if PARTS == 2:
        second_total = none if FIRST else load_sums(result, lower, query, C, BLOCK_C, channel + BLOCK_C)
    ones = tl.full([BLOCK_N, 16], 1.0, tl.float32).to(value.dtype.element_ty)
    masses = tl.zeros([BLOCK_M, 16], tl.float32)  # alike: sums are a product, of a width that tensor cores take
    for start in range(slots_first, slots_end, BLOCK_N):
        slot = start + tl.arange(0, BLOCK_N)
        key = load_pixels(order, start, slots_end, BLOCK_N)
        score = dot(x, tl.trans(load_rows(match, key, c, c)), PRECISION)
        logit = score * load_along(scale, start, BLOCK_N)[None, :] - highest[:, None]
        if (start < slots_last) | (start + BLOCK_N > slots_first + SPAN * k):  # else within all windows
            logit = tl.where(within(slot[None, :], window_start[:, None], k, SPAN), logit, -INFINITY)
        values = load_rows(value, key, C, BLOCK_C, channel)
        weight = tl.exp2(logit).to(values.dtype)  # of which the sum is, so that a pixel alone finds its own value
        total += dot(weight, values, PRECISION)
        if PARTS == 2:
            second_total += dot(weight, load_rows(value, key, C, BLOCK_C, channel + BLOCK_C), PRECISION)
        masses += dot(weight, ones, PRECISION)

    exists = first + tl.arange(0, BLOCK_M) < end
    mass += tl.max(masses, axis=1)
    store_found(result, lower, shift, value, total, mass, query, exists, LAST, SHIFT, C, BLOCK_C, channel)
    if PARTS == 2:
        store_found(
            result, lower, shift, value, second_total, mass, query, exists, LAST, SHIFT, C, BLOCK_C, channel + BLOCK_C
        )
    if channel == 0:
        tl.store(result_mass + query, mass, mask=exists)


@kernel
def mean_kernel(
    grad, value, kept, bound, mass, mean, total_bound,
    L, C: tl.constexpr, SHIFT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Of L pixels: dy_i . y_i, the mean over the keys of dy_i . g(x_j); and the logarithm of exp(|x_i|) mass_i, which
    makes shares of scores, in powers of two. kept: y_i - g(x_i) if SHIFT, else y_i."""
    pixel = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    row = tl.minimum(pixel, L - 1)
    total = tl.zeros([BLOCK_M], tl.float32)
    for first in tl.static_range(0, C, BLOCK_C):
        y = load_rows(kept, row, C, BLOCK_C, first).to(tl.float32)
        if SHIFT:
            y += load_rows(value, row, C, BLOCK_C, first).to(tl.float32)
        total += tl.sum(load_rows(grad, row, C, BLOCK_C, first).to(tl.float32) * y, axis=1)
    tl.store(mean + pixel, total, mask=pixel < L)
    tl.store(total_bound + pixel, tl.load(bound + row) + tl.log2(tl.load(mass + row)), mask=pixel < L)


@kernel
def query_kernel(
    grad, match, value, total_bound, scale, order, checksum, mean, result, lower,
    L, k, c: tl.constexpr, C: tl.constexpr, PRECISION: tl.constexpr,
    BEFORE: tl.constexpr, SPAN: tl.constexpr, FIRST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Adds to `result` and `lower`, as `load_sums` has them, the gradient of BLOCK_M features as queries in one round;
    the FIRST fills them."""
    first, end = tile(tl.program_id(0), tl.load(checksum), L, k, L, BLOCK_M)
    if first >= end:
        return
    order, scale = circle(order, tl.program_id(1), L, k), circle(scale, tl.program_id(1), L, k)
    place = tl.minimum(first + tl.arange(0, BLOCK_M), end - 1)
    query = tl.load(order + place)
    x = load_rows(match, query, c, c)
    highest, mean_dy = tl.load(total_bound + query), tl.load(mean + query)
    window_start = window(place, k, BEFORE)
    slots_first, slots_last = window(first, k, BEFORE), window(end - 1, k, BEFORE)
    slots_end = slots_last + SPAN * k

    total = tl.zeros([BLOCK_M, c], tl.float32) if FIRST else load_sums(result, lower, query, c, c)
    for start in range(slots_first, slots_end, BLOCK_N):
        slot = start + tl.arange(0, BLOCK_N)
        key = load_pixels(order, start, slots_end, BLOCK_N)
        features = load_rows(match, key, c, c)
        to_key = load_along(scale, start, BLOCK_N)
        logit = dot(x, tl.trans(features), PRECISION) * to_key[None, :] - highest[:, None]
        dscore = multiply_rows(grad, query, value, key, C, BLOCK_C, PRECISION) - mean_dy[:, None]
        if features.dtype == tl.float16:  # which has no room for the product of a gradient and 1 / |x|
            features = (features * tl.where(slot < slots_end, to_key * LN2, 0.0)[:, None]).to(tl.float16)
        else:
            dscore *= (to_key * LN2)[None, :]
        if (start < slots_last) | (start + BLOCK_N > slots_first + SPAN * k):
            inside = within(slot[None, :], window_start[:, None], k, SPAN)
            logit = tl.where(inside, logit, -INFINITY)
            dscore = tl.where(inside, dscore, 0.0)
        dscore *= tl.exp2(logit)
        total += dot(dscore.to(features.dtype), features, PRECISION)

    store_sums(result, lower, total, query, first + tl.arange(0, BLOCK_M) < end, c, c)


@kernel
def key_kernel(
    grad, match, value, total_bound, scale, order, checksum, mean, result, lower, result_value, lower_value,
    L, k, c: tl.constexpr, C: tl.constexpr, PRECISION: tl.constexpr,
    BEFORE: tl.constexpr, SPAN: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The gradient of BLOCK_M features as keys, and of their values, in one round.

    result, lower: what the queries and the rounds before found for features, as `load_sums` has it; result_value,
    lower_value: for values, unless FIRST. This round is added, and the LAST makes results of sums.
    """
    # The last pixels of the order stand once more at the end of the last chunk: more queries meet them, some twice.
    doubled_from = 2 * L - fill(L, k)
    first, end = tile(tl.program_id(0), tl.load(checksum), L, k, doubled_from, BLOCK_M)
    if first >= end:
        return
    order, scale = circle(order, tl.program_id(1), L, k), circle(scale, tl.program_id(1), L, k)
    total_bound, mean = circle(total_bound, tl.program_id(1), L, k), circle(mean, tl.program_id(1), L, k)
    place = tl.minimum(first + tl.arange(0, BLOCK_M), end - 1)
    key = tl.load(order + place)
    features = load_rows(match, key, c, c)
    to_key = tl.load(scale + place)

    BEHIND: tl.constexpr = SPAN - 1 - BEFORE
    window_start = window(place, k, BEHIND)
    is_doubled = place >= doubled_from
    last_window_start = window(fill(L, k) - 1, k, BEHIND)
    slots_first, slots_last = window(first, k, BEHIND), window(end - 1, k, BEHIND)
    slots_end = tl.where(end > doubled_from, last_window_start, slots_last) + SPAN * k
    # Within all windows, queries that are no second copies, of keys that are not doubled.
    plain_end = tl.where(end > doubled_from, slots_first, tl.minimum(slots_first + SPAN * k, L))
    total = tl.zeros([BLOCK_M, c], tl.float32)
    total_value = tl.zeros([BLOCK_M, C], tl.float32) if FIRST else load_sums(result_value, lower_value, key, C, C)
    for start in range(slots_first, slots_end, BLOCK_N):
        slot = start + tl.arange(0, BLOCK_N)
        query = load_pixels(order, start, slots_end, BLOCK_N)
        x = load_rows(match, query, c, c)
        dy = load_rows(grad, query, C, C)
        highest, mean_dy = load_along(total_bound, start, BLOCK_N), load_along(mean, start, BLOCK_N)
        logit = dot(features, tl.trans(x), PRECISION) * to_key[:, None] - highest[None, :]
        dscore = multiply_rows(value, key, grad, query, C, BLOCK_C, PRECISION) - mean_dy[None, :]
        weight = tl.exp2(logit)
        if (start < tl.maximum(slots_last, 0)) | (start + BLOCK_N > plain_end):
            once = within(slot[None, :], window_start[:, None], k, SPAN)
            again = within(slot[None, :], last_window_start, k, SPAN) & is_doubled[:, None]
            is_query = (slot < slots_end) & (wrap(slot, L, k) < L)
            times = tl.where(is_query[None, :], once.to(tl.float32) + again.to(tl.float32), 0.0)
            weight = tl.where(times > 0, weight * times, 0.0)
            dscore = tl.where(times > 0, dscore, 0.0)
        total_value += dot(weight.to(dy.dtype), dy, PRECISION)
        total += dot((weight * dscore).to(x.dtype), x, PRECISION)

    # Through the normalisation of keys: what points along the feature is lost, unless eps took the place of its length.
    keys = features * (to_key * LN2)[:, None]
    along = tl.where(to_key == LARGEST_SCALE, 0.0, tl.sum(keys * total, axis=1))
    total = (total - keys * along[:, None]) * (to_key * LN2)[:, None]
    exists = first + tl.arange(0, BLOCK_M) < end
    total += load_sums(result, lower, key, c, c)
    if LAST:
        store_rows(result, total, key, exists, c, c)
        store_rows(result_value, total_value, key, exists, C, C)
    else:
        store_sums(result, lower, total, key, exists, c, c)
        store_sums(result_value, lower_value, total_value, key, exists, C, C)


@kernel
def hash_kernel(
    match, rotations, codes, L, rounds, half, pitch, c: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    """The codes of BLOCK_M pixels in one round; rotations: [c, r, pitch], of which m/2 are taken."""
    first, image, h = tl.program_id(0) * BLOCK_M, tl.program_id(1).to(tl.int64), tl.program_id(2)
    pixel = first + tl.arange(0, BLOCK_M)
    column = tl.arange(0, BLOCK_HALF)
    projected = tl.zeros([BLOCK_M, BLOCK_HALF], tl.float32)
    for start in range(0, c, BLOCK_K):
        row = start + tl.arange(0, BLOCK_K)
        x_offset = (image * L + tl.minimum(pixel, L - 1))[:, None] * c + row[None, :]
        x = tl.load(match + x_offset, mask=(row < c)[None, :], other=0.0)
        mask = (row < c)[:, None] & (column < half)[None, :]
        vertices = tl.load(rotations + (row[:, None] * rounds + h) * pitch + column[None, :], mask=mask, other=0.0)
        if x.dtype == tl.float32:
            projected += dot(x, vertices, 'ieee')
        else:  # the products with three parts of a number are those with the number, and tensor cores make them
            for _ in tl.static_range(3):
                part = vertices.to(x.dtype)
                projected += dot(x, part, 'ieee')
                vertices -= part.to(tl.float32)
    projected = tl.where(projected == projected, projected, 0.0)  # of a feature with a NaN in it the code is 0
    # The first of the largest, with two maxima of numbers: those that find a place as well take several times as long.
    magnitude = tl.where(column < half, tl.abs(projected), -1.0)
    vertex = tl.where(projected < 0, column + half, column)
    code = tl.min(tl.where(magnitude == tl.max(magnitude, axis=1)[:, None], vertex, 2 * half), axis=1)
    tl.store(codes + (image * rounds + h) * L + pixel, code.to(codes.dtype.element_ty), mask=pixel < L)
