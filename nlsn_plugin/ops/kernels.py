"""The kernels of `fused.py`, in Triton's language.

Letters as in `lsh.py` and `reference.py`; c and C are powers of two. Pixels are counted through the batch, so that
tensors are [N L, *]. A place is one in the sorted order, [0, L). A slot is one in the filled order as walked round the
circle of chunks, between -k and (n + 1) k: the window of chunk u is SPAN chunks of slots from (u - BEFORE) k on, and
where chunks coincide their slots do not.
"""

# Triton's language has no types; in it upper case, besides the letters L and C, is what the compiler knows.
# mypy: disable-error-code="import-untyped, import-not-found, untyped-decorator, no-untyped-def, no-untyped-call"
# ruff: noqa: N803, N806

from __future__ import annotations

import inspect

import triton
import triton.language as tl

from nlsn_plugin.ops.reference import KEY_EPS

EPS = tl.constexpr(KEY_EPS)
LOG2E, LN2 = tl.constexpr(1.4426950408889634), tl.constexpr(0.6931471805599453)
LARGEST_SCALE = tl.constexpr(LOG2E.value / EPS.value)  # of features shorter than EPS
SPARE = tl.constexpr(128)  # slots that a step may reach beyond the last: as many as it has at most
INFINITY = tl.constexpr(float('inf'))


@triton.jit
def dot(a, b, PRECISION: tl.constexpr):
    """a @ b, summed in float32."""
    if INTERPRETED:  # the interpreter takes bfloat16 for integers
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


INTERPRETED = tl.constexpr(not isinstance(dot, triton.JITFunction))

FOR_ANY = {
    'do_not_specialize': ['L', 'k', 'rounds', 'half', 'pitch'],
    'do_not_specialize_on_alignment': ['order', 'scale', 'total_bound', 'mean'],
}
"""Arguments for whose values kernels are not compiled anew: an image of another size would wait for that."""


def kernel(function):
    """A kernel that PyTorch launches."""
    known = inspect.signature(triton.jit).parameters  # alignment is not among them in Triton 3.0
    return triton.jit(**{option: names for option, names in FOR_ANY.items() if option in known})(function)


@triton.jit
def row_offsets(pixel, first, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """Where BLOCK channels of pixels lie, from `first` on: [pixels, BLOCK]."""
    return pixel.to(tl.int64)[:, None] * CHANNELS + (first + tl.arange(0, BLOCK))[None, :]


@triton.jit
def load_rows(x, pixel, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, first=0):
    """BLOCK channels of x from `first` on, [pixels, BLOCK]."""
    return tl.load(x + row_offsets(pixel, first, CHANNELS, BLOCK))


@triton.jit
def store_rows(x, rows, pixel, exists, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, first=0):
    """The reverse, of rows that exist."""
    tl.store(x + row_offsets(pixel, first, CHANNELS, BLOCK), rows.to(x.dtype.element_ty), mask=exists[:, None])


@triton.jit
def load_sums(upper, lower, pixel, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, first=0):
    """Rows of sums in float32 that are to become `upper`. If that has half precision it holds their upper 16 bits until
    then, and `lower` the lower ones."""
    sums = load_rows(upper, pixel, CHANNELS, BLOCK, first)
    if sums.dtype != tl.float32:
        upper_bits = sums.to(tl.int16, bitcast=True).to(tl.int32) << 16
        lower_bits = load_rows(lower, pixel, CHANNELS, BLOCK, first).to(tl.int32) & 0xFFFF
        sums = (upper_bits | lower_bits).to(tl.float32, bitcast=True)
    return sums


@triton.jit
def store_sums(upper, lower, rows, pixel, exists, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, first=0):
    """The reverse, of rows that exist."""
    if upper.dtype.element_ty == tl.float32:
        store_rows(upper, rows, pixel, exists, CHANNELS, BLOCK, first)
    else:
        bits = rows.to(tl.int32, bitcast=True)
        upper_bits = (bits >> 16).to(tl.int16).to(upper.dtype.element_ty, bitcast=True)
        store_rows(upper, upper_bits, pixel, exists, CHANNELS, BLOCK, first)
        store_rows(lower, bits.to(tl.int16), pixel, exists, CHANNELS, BLOCK, first)


@triton.jit
def multiply_rows(a, a_pixel, b, b_pixel, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr):
    """Products of rows of a and b, [a's pixels, b's pixels], BLOCK channels at a time."""
    total = tl.zeros([a_pixel.shape[0], b_pixel.shape[0]], tl.float32)
    for first in tl.static_range(0, CHANNELS, BLOCK):
        left = load_rows(a, a_pixel, CHANNELS, BLOCK, first)
        total += dot(left, tl.trans(load_rows(b, b_pixel, CHANNELS, BLOCK, first)), PRECISION)
    return total


@triton.jit
def fill(L, k):
    """Length of the filled order, n k."""
    return tl.cdiv(L, k) * k


@triton.jit
def wrap(slot, L, k):
    """Places of slots in the filled order, [0, n k)."""
    return tl.where(slot < 0, slot + fill(L, k), tl.where(slot < fill(L, k), slot, slot - fill(L, k)))


@triton.jit
def window(place, k, BEFORE: tl.constexpr):
    """The first slot of the window of a place; the keys there meet its query. The queries that meet its key lie in the
    window that begins as many chunks before as the other ends behind."""
    return (place // k - BEFORE) * k


@triton.jit
def within(slot, window_start, k, SPAN: tl.constexpr):
    """Whether slots lie in windows of SPAN chunks, [1, slots], [windows, 1] -> [windows, slots]."""
    return (slot - window_start).to(tl.uint32, bitcast=True) < (SPAN * k).to(tl.uint32)  # one comparison for both ends


@triton.jit
def tile(program, checksum, L, k, seam, BLOCK_M: tl.constexpr):
    """The places [first, end) of a program; none, if there are more programs than tiles.

    A tile may reach over several chunks. Its pixels then meet others outside their windows, with weight 0, which hides
    any but those not finite: if there are such, as the sum of all tells, tiles end where their chunk does, and at the
    place `seam`.
    """
    all_finite = checksum - checksum == 0
    at_once = tl.minimum(program, tl.cdiv(L, BLOCK_M)) * BLOCK_M  # of the programs without tiles, in int32 too
    tiles = tl.cdiv(k, BLOCK_M) + 1  # of a chunk with the seam in it
    chunk_start, of_chunk = program // tiles * k, program % tiles * BLOCK_M
    chunk_end = tl.minimum(chunk_start + k, L)
    middle = tl.minimum(tl.maximum(seam, chunk_start), chunk_end)
    before = tl.cdiv(middle - chunk_start, BLOCK_M) * BLOCK_M
    is_before = of_chunk < before
    singly = tl.where(is_before, chunk_start + of_chunk, middle + of_chunk - before)
    first = tl.where(all_finite, at_once, singly)
    end = tl.where(all_finite, L, tl.where(is_before, middle, chunk_end))
    return first, tl.minimum(first + BLOCK_M, end)


@triton.jit
def circle(x, image, L, k):
    """Where x, with a number for each slot of an image, has that of slot 0."""
    return x + image.to(tl.int64) * slots(L, k) + k


@triton.jit
def slots(L, k):
    """Slots of an image, with some behind them that a tile may read and nobody looks at."""
    return fill(L, k) + 2 * k + SPARE


@triton.jit
def load_pixels(order, start, end, BLOCK_N: tl.constexpr):
    """The pixels in the slots of a step; from `end` on, where nobody looks, that before it.

    The compiler loads the rows of the next steps early, and also where no step follows: then those of pixel 0, since a
    GPU may refuse an address that it is not to read from either.
    """
    return tl.load(order + tl.minimum(start + tl.arange(0, BLOCK_N), end - 1), mask=start < end + BLOCK_N, other=0)


@triton.jit
def load_along(x, start, BLOCK_N: tl.constexpr):
    """The numbers in the slots of a step."""
    tl.static_assert(BLOCK_N <= SPARE)
    return tl.load(x + start + tl.arange(0, BLOCK_N))


@kernel
def circle_kernel(
    order, pixels, x, x_along, y, y_along, L, k, rounds, KEYS: tl.constexpr, BOTH: tl.constexpr, BLOCK: tl.constexpr
):
    """The pixel in each slot, counted through the batch, [N, r, L] -> [r, N, slots], and its numbers in x and, if BOTH,
    in y.

    Those that the last chunk lacks are the last pixels once more, if KEYS; of queries there are no more, and they
    stand for the very last.
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
def sums_before(result, lower, query, FIRST: tl.constexpr, C: tl.constexpr, BLOCK_C: tl.constexpr, channel):
    """The numerators that queries found in the rounds before the one under way."""
    if FIRST:
        total = tl.zeros([query.shape[0], BLOCK_C], tl.float32)
    else:
        total = load_sums(result, lower, query, C, BLOCK_C, channel)
    return total


@triton.jit
def store_found(
    result, lower, shift, value, total, mass, query, exists,
    LAST: tl.constexpr, SHIFT: tl.constexpr, C: tl.constexpr, BLOCK_C: tl.constexpr, channel,
):  # fmt: skip
    """Stores what queries have found by now: numerators; with the LAST round y, and if SHIFT y_i - g(x_i)."""
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
    total = sums_before(result, lower, query, FIRST, C, BLOCK_C, channel)
    if PARTS == 2:
        second_total = sums_before(result, lower, query, FIRST, C, BLOCK_C, channel + BLOCK_C)
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
