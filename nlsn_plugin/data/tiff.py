"""Reading TIFF: its tags, and its pixels as the file stores them, not yet turned upright.

tifffile reads files that are uncompressed or deflated, in any order of bytes and planes. Other compressions need
libtiff: that of OpenCV for 16 bits, which Pillow cuts to 8, and otherwise that of Pillow.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from typing import BinaryIO

import cv2
import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError

from nlsn_plugin.data.turning import TURNS, UPRIGHT
from nlsn_plugin.errors import DataError

SIGNATURES = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')
BITS, ORIENTATION, FRACTIONS, UNIT, EXTRA = 258, 274, (282, 283), 296, 338
XMP, IPTC, PHOTOSHOP, ICC = 700, 33723, 34377, 34675
"""Codes of tags."""
COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3}
"""Channels of each photometric interpretation that is read: gray (0 is white, or black), RGB, palette, CMYK, YCbCr."""
WHITE_IS_ZERO, PALETTE, CMYK, YCBCR = 0, 3, 5, 6
PLAIN, DEFLATED = 1, (8, 32946)
OF_OPENCV = (5, 32773)
OF_PILLOW = (PLAIN, 2, 3, 4, 5, 6, 7, *DEFLATED, 32773, 34925, 50000)
"""Compressions that OpenCV is used for (LZW, PackBits) and Pillow (also none, fax, JPEG, Deflate, LZMA, Zstandard)."""
SEPARATE = 2
UNSIGNED = 1
MULTIPLIED, TRANSPARENT = 1, 2
"""Kinds of extra channels: alpha that the colours are multiplied by, and alpha that they are not."""
MOST_CHANNELS = 8
SLACK = 2**20
"""Bytes that a strip or a tile may have beyond its pixels; it may cover 16 times as many pixels beyond the image's."""


def as_tuple(value: object) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else () if value is None else (int(value),)  # type: ignore[call-overload]


def tag(page: tifffile.TiffPage, code: int) -> object:
    """Value of a tag; None if it is not there."""
    found = page.tags.get(code)
    return None if found is None else found.value


def bytes_of(page: tifffile.TiffPage, code: int) -> bytes:
    """Value of a tag as bytes; b'' if it is not there."""
    found = tag(page, code)
    return found.encode() if isinstance(found, str) else bytes(found) if isinstance(found, (bytes, tuple)) else b''


def name(number: object) -> str:
    """Name of a member of an enumeration, such as 'LZW'; other numbers as they are."""
    return str(getattr(number, 'name', number))


def bits_of(page: tifffile.TiffPage) -> int:
    """Bits per sample."""
    return max(as_tuple(tag(page, BITS)), default=1)


def orientation_of(page: tifffile.TiffPage) -> int:
    """Orientation as EXIF numbers it; UPRIGHT if it is missing or invalid."""
    found = tag(page, ORIENTATION)
    return int(found) if isinstance(found, int) and found in TURNS else UPRIGHT


def dpi_of(page: tifffile.TiffPage) -> tuple[float, float] | None:
    """Pixels per inch, across and down; None if the file does not say."""
    unit, fractions = tag(page, UNIT), [as_tuple(tag(page, code)) for code in FRACTIONS]
    scale = {None: 1.0, 2: 1.0, 3: 2.54}.get(unit)  # type: ignore[call-overload]
    if scale is None or any(len(fraction) != 2 or 0 in fraction for fraction in fractions):
        return None
    across, down = (scale * fraction[0] / fraction[1] for fraction in fractions)
    return across, down


def check(page: tifffile.TiffPage, named: str) -> None:
    """Refuse, by its header, a page with pixels of a kind that is not read.

    Raises:
        DataError: the message names the first reason.
    """
    bits, kind = as_tuple(tag(page, BITS)) or (1,), page.sampleformat
    if kind != UNSIGNED or max(bits) not in (1, 2, 4, 8, 16) or len({*bits}) > 1:
        told = {2: f'int{bits[0]}', 3: f'float{bits[0]}'}.get(kind, f'{"-, ".join(map(str, sorted({*bits})))}-bit')
        raise DataError(f'{named} is a TIFF of {told} pixels: 8 or 16 bits, without a sign, are expected')
    least = COLOURS.get(page.photometric)
    if least is None:
        raise DataError(
            f'{named} is a TIFF of the colours {name(page.photometric)}: gray, RGB, palette or CMYK is expected'
        )
    if not least <= page.samplesperpixel <= MOST_CHANNELS or page.imagedepth != 1:
        raise DataError(
            f'{named} is a TIFF of {name(page.photometric)} with {page.samplesperpixel} channels, '
            f'{page.imagedepth} deep: {least}, and one of transparency, are expected'
        )
    if not (is_plain(page) or is_for_libtiff(page)):
        raise not_read(page, named)


def not_read(page: tifffile.TiffPage, named: str) -> DataError:
    channels = page.samplesperpixel
    layout = f' with {channels} channels' if channels > COLOURS.get(page.photometric, channels) else ''
    layout += ' in separate planes' if page.planarconfig == SEPARATE and channels > 1 else ''
    return DataError(
        f'{named} is a TIFF of {bits_of(page)}-bit {name(page.photometric)}{layout} in compression '
        f'{name(page.compression)}, which is not read: save it without compression, or as PNG'
    )


def is_plain(page: tifffile.TiffPage) -> bool:
    """Whether tifffile reads the page without codecs of other packages."""
    return (
        bits_of(page) in (8, 16)
        and page.photometric != PALETTE
        and (page.photometric != YCBCR or (bits_of(page) == 8 and as_tuple(page.subsampling) == (1, 1)))
        and page.compression in (PLAIN, *DEFLATED)
        and page.fillorder == 1
    )


def is_for_libtiff(page: tifffile.TiffPage) -> bool:
    """Whether the libtiff of OpenCV (16 bits) or Pillow (fewer) reads the page correctly."""
    is_in_planes = page.planarconfig == SEPARATE and page.samplesperpixel > 1
    if bits_of(page) == 16:
        is_known = page.photometric in (0, 1, 2) and page.samplesperpixel in (1, 3, 4)
        return page.compression in OF_OPENCV and is_known and not is_in_planes
    if page.photometric == YCBCR and page.compression == PLAIN:  # Pillow reads it without libtiff, and fails or guesses
        return False
    return page.compression in OF_PILLOW


def alpha_of(page: tifffile.TiffPage) -> tuple[int | None, bool, int]:
    """Index of the alpha channel or None, whether colours are multiplied by it, and how many channels are neither."""
    least = COLOURS[page.photometric]
    there, kinds = page.samplesperpixel - least, as_tuple(tag(page, EXTRA))
    if not kinds and there == 1 and page.photometric != CMYK:  # some programs write no tag
        return least, False, 0
    for number, kind in enumerate(kinds[:there]):
        if kind in (MULTIPLIED, TRANSPARENT) and page.photometric != CMYK:
            return least + number, kind == MULTIPLIED, there - 1
    return None, False, there


def samples(page: tifffile.TiffPage, file: BinaryIO) -> np.ndarray:
    """Decode all channels to uint8 or uint16 [H, W, C], in the file's orientation, with 0 for black in gray.

    Raises:
        Exception of DAMAGE: the file is truncated, or otherwise damaged.
    """
    if is_plain(page):
        check_parts(page, file)
        planes = page.asarray(squeeze=False)[:, 0]
        found = planes[0] if len(planes) == 1 else planes[..., 0].transpose(1, 2, 0)
        found = found.astype(found.dtype.newbyteorder('='), copy=False)
    else:
        found = cv2.imdecode(np.frombuffer(as_upright(page, file), np.uint8), cv2.IMREAD_UNCHANGED)
        if found is None:
            raise ValueError(f'pixels that OpenCV does not read, in compression {name(page.compression)}')
        found = found[..., None] if found.ndim == 2 else found[..., [2, 1, 0, 3][: found.shape[2]]]
    shape = (page.imagelength, page.imagewidth, page.samplesperpixel)
    if found.shape != shape or found.dtype.itemsize != bits_of(page) // 8:
        raise ValueError(f'{found.dtype} pixels of the shape {list(found.shape)} in the place of {list(shape)}')
    return np.invert(found) if page.photometric == WHITE_IS_ZERO else found


def image(page: tifffile.TiffPage, file: BinaryIO, named: str) -> Image.Image:
    """Decode a page of at most 8 bits with Pillow, in the file's orientation.

    Raises:
        DataError: Pillow does not read this kind.
        Exception of DAMAGE: the file is truncated, or otherwise damaged.
    """
    try:
        found = Image.open(io.BytesIO(as_upright(page, file)), formats=['TIFF'])  # not a path: some then decode wrongly
    except UnidentifiedImageError as error:
        raise not_read(page, named) from error
    found.getexif()[ORIENTATION] = UPRIGHT  # so that Pillow does not turn it by its XMP
    found.load()
    return found


def as_upright(page: tifffile.TiffPage, file: BinaryIO) -> bytes:
    """Content of the file with its orientation set to upright: Pillow and OpenCV turn only some kinds of TIFF."""
    file.seek(0)
    content = file.read()
    found = page.tags.get(ORIENTATION)
    if found is None:
        return content
    patched, order = bytearray(content), page.parent.byteorder
    struct.pack_into(order + {1: 'B', 3: 'H', 4: 'I'}[int(found.dtype)], patched, found.valueoffset, UPRIGHT)
    return bytes(patched)


def check_parts(page: tifffile.TiffPage, file: BinaryIO) -> None:
    """Check that all strips or tiles are there and of the right length.

    tifffile would fill in missing ones, and allocate any amount of memory.

    Raises:
        ValueError: a part is missing, too short or too large.
    """
    height, width = page.imagelength, page.imagewidth
    rows, columns = (page.tilelength, page.tilewidth) if page.is_tiled else (min(page.rowsperstrip, height), width)
    if min(rows, columns) < 1 or rows * columns > height * width + 16 * SLACK:
        raise ValueError(f'parts of {columns}x{rows} pixels')
    planes = page.samplesperpixel if page.planarconfig == SEPARATE else 1
    down = math.ceil(height / rows)
    bytes_of_row = columns * (page.samplesperpixel // planes) * bits_of(page) // 8
    parts = planes * down * math.ceil(width / columns)
    if min(len(page.dataoffsets), len(page.databytecounts)) < parts:
        raise ValueError(f'{len(page.dataoffsets)} of {parts} parts are there')
    end = file.seek(0, io.SEEK_END)
    for number, (place, length) in enumerate(zip(page.dataoffsets[:parts], page.databytecounts)):
        there = rows if page.is_tiled else min(rows, height - rows * (number % down))
        most = bytes_of_row * rows + SLACK
        if place < 8 or place + length > end:
            raise ValueError(f'part {number + 1} of {parts} lies behind the end of the file')
        if page.compression != PLAIN:
            file.seek(place)
            length = inflated(file.read(length), most)
        if length < bytes_of_row * there:
            raise ValueError(f'part {number + 1} of {parts} has {length} bytes of {bytes_of_row * there}')


def inflated(content: bytes, most: int) -> int:
    """Count the bytes that deflated content decompresses to, without keeping them.

    Raises:
        ValueError: there are more than `most`, or the content ends early.
    """
    inflater, length = zlib.decompressobj(), 0
    while not inflater.eof:
        part = inflater.decompress(content, SLACK)
        content = inflater.unconsumed_tail
        length += len(part)
        if length > most:
            raise ValueError('it has more bytes than its size says')
        if not part and not content:
            raise ValueError('a part of it ends early')
    return length
