"""Building blocks of the kernels of `kernels.py`: rows of tensors, sums over rounds, and the circle of chunks.

Letters as in `lsh.py` and `reference.py`; c and C are powers of two. Pixels are counted through the batch, so that
tensors are [N L, *]. A place is one in the sorted order, [0, L). A slot is one in the filled order as walked round the
circle of chunks, between -k and (n + 1) k: the window of chunk u is SPAN chunks of slots from (u - BEFORE) k on, and
where chunks coincide their slots do not.
"""

# Triton's language has no types; in it upper case, besides the letters L and C, is what the compiler knows.
# mypy: disable-error-code="import-untyped, import-not-found, untyped-decorator, no-untyped-def, no-untyped-call"
# ruff: noqa: N803

from __future__ import annotations

import triton
import triton.language as tl

SPARE = tl.constexpr(128)  # slots that a step may reach beyond the last: as many as it has at most


@triton.jit
def dot(a, b, PRECISION: tl.constexpr):
    """Return a @ b, summed in float32."""
    if INTERPRETED:  # the interpreter takes bfloat16 for integers
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


INTERPRETED = tl.constexpr(not isinstance(dot, triton.JITFunction))


@triton.jit
def row_offsets(pixel, first, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """Offsets of BLOCK channels of pixels, from channel `first` on: [pixels, BLOCK]."""
    return pixel.to(tl.int64)[:, None] * CHANNELS + (first + tl.arange(0, BLOCK))[None, :]


@triton.jit
def load_rows(x, pixel, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, first=0):
    """Load BLOCK channels of x from channel `first` on, [pixels, BLOCK]."""
    return tl.load(x + row_offsets(pixel, first, CHANNELS, BLOCK))


@triton.jit
def store_rows(x, rows, pixel, exists, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, first=0):
    """Store BLOCK channels of those rows that exist in x, from `first` on."""
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
    """Store sums in float32 as `load_sums` reads them, of those rows that exist."""
    if upper.dtype.element_ty == tl.float32:
        store_rows(upper, rows, pixel, exists, CHANNELS, BLOCK, first)
    else:
        bits = rows.to(tl.int32, bitcast=True)
        upper_bits = (bits >> 16).to(tl.int16).to(upper.dtype.element_ty, bitcast=True)
        store_rows(upper, upper_bits, pixel, exists, CHANNELS, BLOCK, first)
        store_rows(lower, bits.to(tl.int16), pixel, exists, CHANNELS, BLOCK, first)


@triton.jit
def multiply_rows(a, a_pixel, b, b_pixel, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr):
    """Dot products of the rows of a and of b, [a's pixels, b's pixels], summed over BLOCK channels at a time."""
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
    """Offset of slot 0 of an image in x, which has a number for each slot."""
    return x + image.to(tl.int64) * slots(L, k) + k


@triton.jit
def slots(L, k):
    """Number of slots of an image, including some at the end that a tile may read and that are never used."""
    return fill(L, k) + 2 * k + SPARE


@triton.jit
def load_pixels(order, start, end, BLOCK_N: tl.constexpr):
    """The pixels in the slots of a step; from `end` on, where nobody looks, that before it.

    The compiler loads the rows of the next steps early, and also where no step follows: then those of pixel 0, since a
    GPU may refuse an address that it is not to read from either.
    """
    slot = start + tl.arange(0, BLOCK_N)
    # The same for all slots, but one of each: the interpreter of Triton 3.9 takes no other mask.
    follows = start + tl.zeros([BLOCK_N], tl.int32) < end + BLOCK_N
    return tl.load(order + tl.minimum(slot, end - 1), mask=follows, other=0)


@triton.jit
def load_along(x, start, BLOCK_N: tl.constexpr):
    """Load the numbers in the slots of a step."""
    tl.static_assert(BLOCK_N <= SPARE)
    return tl.load(x + start + tl.arange(0, BLOCK_N))
