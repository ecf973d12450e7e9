"""The kernels of `fused.py`, in Triton's language.

Letters as in `lsh.py` and `reference.py`. Pixels are counted through the batch, so that tensors are [N L, *]. A place
is one in the sorted order, [0, L). A slot is one in the filled order as walked round the circle of chunks, between
-k and (n + 1) k: the window of chunk u is SPAN chunks of slots from (u - BEFORE) k on, and where chunks coincide their
slots do not.
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
LOG2E = tl.constexpr(1.4426950408889634)
INFINITY = tl.constexpr(float('inf'))


@triton.jit
def dot(a, b, PRECISION: tl.constexpr):
    """a @ b, summed in float32."""
    if INTERPRETED:  # the interpreter takes bfloat16 for integers
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


INTERPRETED = tl.constexpr(not isinstance(dot, triton.JITFunction))

FOR_ANY = {'do_not_specialize': ['L', 'k', 'rounds', 'half'], 'do_not_specialize_on_alignment': ['order']}
"""Arguments for whose values kernels are not compiled anew: an image of another size would wait for that."""


def kernel(function):
    """A kernel that PyTorch launches."""
    known = inspect.signature(triton.jit).parameters  # alignment is not among them in Triton 3.0
    return triton.jit(**{option: names for option, names in FOR_ANY.items() if option in known})(function)


@triton.jit
def load_rows(x, pixel, exists, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, first=0):
    """BLOCK channels of x from `first` on, 0 where pixel or channel do not exist: [pixels, BLOCK]."""
    channel = first + tl.arange(0, BLOCK)
    offset = pixel.to(tl.int64)[:, None] * CHANNELS + channel[None, :]
    return tl.load(x + offset, mask=exists[:, None] & (channel < CHANNELS)[None, :], other=0.0)


@triton.jit
def store_rows(x, rows, pixel, exists, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, first=0):
    """The reverse."""
    channel = first + tl.arange(0, BLOCK)
    offset = pixel.to(tl.int64)[:, None] * CHANNELS + channel[None, :]
    tl.store(x + offset, rows.to(x.dtype.element_ty), mask=exists[:, None] & (channel < CHANNELS)[None, :])


@triton.jit
def multiply_rows(
    a, a_pixel, a_exists, b, b_pixel, b_exists, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr
):
    """Products of rows of a and b, [a's pixels, b's pixels], BLOCK channels at a time."""
    total = tl.zeros([a_pixel.shape[0], b_pixel.shape[0]], tl.float32)
    for first in tl.static_range(0, CHANNELS, BLOCK):
        left = load_rows(a, a_pixel, a_exists, CHANNELS, BLOCK, first)
        total += dot(left, tl.trans(load_rows(b, b_pixel, b_exists, CHANNELS, BLOCK, first)), PRECISION)
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
    return (slot >= window_start) & (slot < window_start + SPAN * k)


@triton.jit
def tile(program, all_finite, L, k, seam, BLOCK_M: tl.constexpr):
    """The places [first, end) of a program; none, if there are more programs than tiles.

    A tile may reach over several chunks. Its pixels then meet others outside their windows, with weight 0, which hides
    any but those not finite: if there are such, tiles end where their chunk does, and at the place `seam`.
    """
    at_once = program * BLOCK_M
    tiles = tl.cdiv(k, BLOCK_M) + 1  # of a chunk with the seam in it
    chunk, of_chunk = program // tiles * k, program % tiles * BLOCK_M
    chunk_end = tl.minimum(chunk + k, L)
    middle = tl.minimum(tl.maximum(seam, chunk), chunk_end)
    before = tl.cdiv(middle - chunk, BLOCK_M) * BLOCK_M
    is_before = of_chunk < before
    singly = tl.where(is_before, chunk + of_chunk, middle + of_chunk - before)
    first = tl.where(all_finite, at_once, singly)
    end = tl.where(all_finite, L, tl.where(is_before, middle, chunk_end))
    return first, tl.minimum(first + BLOCK_M, end)


@triton.jit
def load_keys(order, slot, end, L, k):
    """Pixels of the keys in slots, and whether the slots lie before `end`: the last pixels stand twice."""
    place = wrap(slot, L, k)
    place = tl.where(place < L, place, place - (fill(L, k) - L))
    return tl.load(order + place, mask=slot < end, other=0), slot < end


@triton.jit
def load_scale(length, pixel):
    """1 / max(|x|, eps), which makes keys of features."""
    return 1 / tl.maximum(tl.load(length + pixel), EPS)


@triton.jit
def weigh(score, scale, bound, inside):
    """w from x_i . x_j, 1 / |x_j| and |x_i|; 0 outside the window."""
    return tl.where(inside, tl.exp2(score * (scale * LOG2E) - bound * LOG2E), 0.0)


@kernel
def forward_kernel(
    match, value, length, order, all_finite, found, found_mass, result, result_mass, shift,
    L, k, c: tl.constexpr, C: tl.constexpr, PRECISION: tl.constexpr,
    BEFORE: tl.constexpr, SPAN: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr, SHIFT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """What BLOCK_M queries find in one round: numerators for BLOCK_C channels, and mass.

    found, found_mass: of the rounds before, unless FIRST; result, result_mass: with this one. LAST divides. SHIFT then
    stores y_i - g(x_i) too.
    """
    first, end = tile(tl.program_id(0), tl.load(all_finite), L, k, L, BLOCK_M)
    if first >= end:
        return
    order += tl.program_id(1).to(tl.int64) * L
    channel = tl.program_id(2) * BLOCK_C

    place = first + tl.arange(0, BLOCK_M)
    exists = place < end
    query = tl.load(order + place, mask=exists, other=0)
    x = load_rows(match, query, exists, c, BLOCK_K)
    bound = tl.load(length + query)
    window_start = window(place, k, BEFORE)

    total = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    mass = tl.zeros([BLOCK_M], tl.float32)
    slots_end = window(end - 1, k, BEFORE) + SPAN * k
    for start in range(window(first, k, BEFORE), slots_end, BLOCK_N):
        slot = start + tl.arange(0, BLOCK_N)
        key, is_key = load_keys(order, slot, slots_end, L, k)
        inside = within(slot[None, :], window_start[:, None], k, SPAN)
        score = dot(x, tl.trans(load_rows(match, key, is_key, c, BLOCK_K)), PRECISION)
        weight = weigh(score, load_scale(length, key)[None, :], bound[:, None], inside)
        values = load_rows(value, key, is_key, C, BLOCK_C, channel)
        weight = weight.to(values.dtype)  # before the sum too, so that a pixel alone with itself finds its own value
        mass += tl.sum(weight.to(tl.float32), axis=1)
        total += dot(weight, values, PRECISION)

    if not FIRST:
        total += load_rows(found, query, exists, C, BLOCK_C, channel)
        mass += tl.load(found_mass + query)
    if LAST:
        total /= mass[:, None]
    store_rows(result, total, query, exists, C, BLOCK_C, channel)
    if LAST and SHIFT:
        own = load_rows(value, query, exists, C, BLOCK_C, channel).to(tl.float32)
        store_rows(shift, total - own, query, exists, C, BLOCK_C, channel)
    if channel == 0:
        tl.store(result_mass + query, mass, mask=exists)


@kernel
def query_kernel(
    grad, match, value, kept, length, mass, order, all_finite, mean, found,
    L, k, c: tl.constexpr, C: tl.constexpr, PRECISION: tl.constexpr,
    BEFORE: tl.constexpr, SPAN: tl.constexpr, FIRST: tl.constexpr, SHIFT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Adds to `found` the gradient of BLOCK_M features as queries in one round; the FIRST fills it and `mean`.

    mean: dy_i . y_i, the mean over the keys of dy_i . g(x_j), [N L]. kept: y_i - g(x_i) if SHIFT, else y_i.
    """
    first, end = tile(tl.program_id(0), tl.load(all_finite), L, k, L, BLOCK_M)
    if first >= end:
        return
    order += tl.program_id(1).to(tl.int64) * L
    place = first + tl.arange(0, BLOCK_M)
    exists = place < end
    query = tl.load(order + place, mask=exists, other=0)
    x = load_rows(match, query, exists, c, BLOCK_K)
    bound = tl.load(length + query)
    window_start = window(place, k, BEFORE)
    if FIRST:
        dy = load_rows(grad, query, exists, C, WIDTH).to(tl.float32)
        y = load_rows(kept, query, exists, C, WIDTH).to(tl.float32)
        if SHIFT:
            y += load_rows(value, query, exists, C, WIDTH).to(tl.float32)
        mean_dy = tl.sum(dy * y, axis=1)
        tl.store(mean + query, mean_dy, mask=exists)
    else:
        mean_dy = tl.load(mean + query)

    total = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    slots_end = window(end - 1, k, BEFORE) + SPAN * k
    for start in range(window(first, k, BEFORE), slots_end, BLOCK_N):
        slot = start + tl.arange(0, BLOCK_N)
        key, is_key = load_keys(order, slot, slots_end, L, k)
        inside = within(slot[None, :], window_start[:, None], k, SPAN)
        features = load_rows(match, key, is_key, c, BLOCK_K)
        scale = load_scale(length, key)
        weight = weigh(dot(x, tl.trans(features), PRECISION), scale[None, :], bound[:, None], inside)
        dweight = multiply_rows(grad, query, exists, value, key, is_key, C, BLOCK_C, PRECISION)
        ds = tl.where(inside, weight * (dweight - mean_dy[:, None]), 0.0)
        keys = tl.where(is_key[:, None], features * scale[:, None], 0.0)  # rather than ds * scale: float16 has no room
        total += dot(ds.to(x.dtype), keys.to(x.dtype), PRECISION)

    total /= tl.load(mass + query)[:, None]
    if not FIRST:
        total += load_rows(found, query, exists, c, BLOCK_K)
    store_rows(found, total, query, exists, c, BLOCK_K)


@kernel
def key_kernel(
    grad, match, value, length, mass, order, all_finite, mean, found, found_value, result, result_value,
    L, k, c: tl.constexpr, C: tl.constexpr, PRECISION: tl.constexpr,
    BEFORE: tl.constexpr, SPAN: tl.constexpr, FIRST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The gradient of BLOCK_M features as keys, and of their values, in one round.

    found: what the queries and the rounds before found for features; found_value: for values, unless FIRST; result,
    result_value: with this round.
    """
    # The last pixels of the order stand once more at the end of the last chunk: more queries meet them, some twice.
    doubled_from = 2 * L - fill(L, k)
    first, end = tile(tl.program_id(0), tl.load(all_finite), L, k, doubled_from, BLOCK_M)
    if first >= end:
        return
    order += tl.program_id(1).to(tl.int64) * L
    place = first + tl.arange(0, BLOCK_M)
    exists = place < end
    key = tl.load(order + place, mask=exists, other=0)
    features = load_rows(match, key, exists, c, BLOCK_K)
    scale = load_scale(length, key)

    BEHIND: tl.constexpr = SPAN - 1 - BEFORE
    window_start = window(place, k, BEHIND)
    is_doubled = (place >= doubled_from) & exists
    last_window_start = window(fill(L, k) - 1, k, BEHIND)
    total = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    total_value = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    slots_end = tl.where(end > doubled_from, last_window_start, window(end - 1, k, BEHIND)) + SPAN * k
    for start in range(window(first, k, BEHIND), slots_end, BLOCK_N):
        slot = start + tl.arange(0, BLOCK_N)
        query_place = wrap(slot, L, k)
        is_query = (slot < slots_end) & (query_place < L)  # second copies are none
        query = tl.load(order + query_place, mask=is_query, other=0)
        once = within(slot[None, :], window_start[:, None], k, SPAN)
        again = within(slot[None, :], last_window_start, k, SPAN) & is_doubled[:, None]
        times = tl.where(is_query[None, :], once.to(tl.float32) + again.to(tl.float32), 0.0)
        x = load_rows(match, query, is_query, c, BLOCK_K)
        dy = load_rows(grad, query, is_query, C, WIDTH)
        bound = tl.load(length + query)
        weight = weigh(dot(features, tl.trans(x), PRECISION), scale[:, None], bound[None, :], times > 0)
        attention = weight * (times / tl.load(mass + query, mask=is_query, other=1.0)[None, :])
        total_value += dot(attention.to(dy.dtype), dy, PRECISION)
        dattention = multiply_rows(value, key, exists, grad, query, is_query, C, BLOCK_C, PRECISION)
        ds = tl.where(times > 0, attention * (dattention - tl.load(mean + query)[None, :]), 0.0)
        total += dot(ds.to(x.dtype), x, PRECISION)

    # Through the normalisation of keys: what points along the feature is lost, unless eps took the place of its length.
    keys = features * scale[:, None]
    along = tl.where(tl.load(length + key) < EPS, 0.0, tl.sum(keys * total, axis=1))
    total = (total - keys * along[:, None]) * scale[:, None]
    total += load_rows(found, key, exists, c, BLOCK_K)
    store_rows(result, total, key, exists, c, BLOCK_K)
    if not FIRST:
        total_value += load_rows(found_value, key, exists, C, WIDTH)
    store_rows(result_value, total_value, key, exists, C, WIDTH)


@kernel
def hash_kernel(
    match, rotations, codes, L, rounds, half, c: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    """The codes of BLOCK_M pixels in one round; rotations: [c, r * m/2]."""
    first, image, h = tl.program_id(0) * BLOCK_M, tl.program_id(1).to(tl.int64), tl.program_id(2)
    pixel = first + tl.arange(0, BLOCK_M)
    column = tl.arange(0, BLOCK_HALF)
    projected = tl.zeros([BLOCK_M, BLOCK_HALF], tl.float32)
    for start in range(0, c, BLOCK_K):
        x = load_rows(match, image * L + pixel, pixel < L, c, BLOCK_K, start)
        row = start + tl.arange(0, BLOCK_K)
        mask = (row < c)[:, None] & (column < half)[None, :]
        vertices = tl.load(rotations + (row[:, None] * rounds + h) * half + column[None, :], mask=mask, other=0.0)
        projected += dot(x.to(tl.float32), vertices, 'ieee')
    projected = tl.where(projected == projected, projected, 0.0)  # of what is not a number the code is 0
    nearest = tl.where(column < half, projected, -INFINITY)
    farthest = tl.where(column < half, projected, INFINITY)
    opposite = -tl.min(farthest, axis=1) > tl.max(nearest, axis=1)
    code = tl.where(opposite, tl.argmin(farthest, axis=1) + half, tl.argmax(nearest, axis=1))
    tl.store(codes + (image * rounds + h) * L + pixel, code.to(codes.dtype.element_ty), mask=pixel < L)
