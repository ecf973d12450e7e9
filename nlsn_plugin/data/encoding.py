"""Encoding of pictures, with their profile, EXIF and XMP, and with 16 bits where the format has them."""

from __future__ import annotations

import contextlib
import io
import re
import struct
import zlib
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import tifffile
from PIL import Image

from nlsn_plugin.data import exif, png
from nlsn_plugin.data import tiff as tiffs
from nlsn_plugin.data.damage import DAMAGE
from nlsn_plugin.data.pictures import Picture
from nlsn_plugin.errors import DataError

LARGEST_EDGE = {'JPEG': 65500, 'WEBP': 16383}
"""Largest width and height in pixels: WebP's by its definition, JPEG's (which allows 65535) by libjpeg."""
LARGEST_OF_LIBPNG = 1_000_000
"""Largest width and height, in pixels, of PNGs that OpenCV writes."""
DEEP = ('PNG', 'TIFF')
LOSSY = ('JPEG', 'WEBP')
QUALITY = 95
LARGEST_JPEG_SEGMENT = 65533 - 6
XMP_OF_JPEG = b'http://ns.adobe.com/xap/1.0/\0'
XMP_OF_PNG = b'XML:com.adobe.xmp\0\0\0\0\0'
"""Start of an iTXt chunk: the keyword, then zeros for no compression, no language and no translated keyword."""


def check_size(width: int, height: int, kind: str, named: str, is_deep: bool = False) -> None:
    """Refuse, before the work begins, a picture that is too large for a format.

    Args:
        width, height: size of the picture to be written, in pixels.
        kind: one of pictures.FORMATS.
        named: name of the picture, for messages.
        is_deep: whether it has 16 bits in several channels, as far as that is known.

    Raises:
        DataError: it is too large.
    """
    largest, other = LARGEST_EDGE.get(kind), 'png'
    if kind == 'PNG' and is_deep:
        largest, other = LARGEST_OF_LIBPNG, 'tiff'
    if largest is not None and max(width, height) > largest:
        raise DataError(
            f'{named} would have {width}x{height} pixels, and {kind} holds {largest} along an edge: --format {other}'
        )


def encode(picture: Picture, kind: str, quality: int = QUALITY) -> tuple[bytes, list[str]]:
    """Encode a picture; return the bytes of the file, and a line for each thing that was not kept.

    Args:
        picture: what to write; its `format` and `notes` are ignored.
        kind: one of pictures.FORMATS.
        quality: quality of JPEG and WebP, 1 to 100.

    Raises:
        DataError: the picture, or what came with it, cannot be written.
    """
    notes: list[str] = []
    height, width = picture.colour.shape[:2]
    if picture.exif:
        picture = replace(picture, exif=exif.of_size(picture.exif, width, height))
    if picture.xmp:
        picture = replace(picture, xmp=xmp_of_size(picture.xmp, width, height))
    picture = holdable(picture, kind, notes)
    if kind == 'TIFF':
        return tiff(picture, notes), notes
    if kind == 'PNG':
        return as_png(picture), notes
    content = by_pillow(picture, kind, quality)
    return (with_xmp(content, picture.xmp) if kind == 'JPEG' and picture.xmp else content), notes


def holdable(picture: Picture, kind: str, notes: list[str]) -> Picture:
    """Convert or drop what a format cannot hold, with a line in `notes` for each."""
    if picture.colour.dtype == np.uint16 and kind not in DEEP:
        picture = shallow(picture)
        notes.append(f'{kind} has 8 bits: 16 were rounded')
    if picture.alpha is not None and kind in ('JPEG', 'BMP'):
        picture = on_white(picture)
        notes.append(f'{kind} has no transparency: it was laid on white')
    for name, overhead in (('exif', 0), ('xmp', len(XMP_OF_JPEG))):
        if kind == 'JPEG' and len(getattr(picture, name)) > LARGEST_JPEG_SEGMENT - overhead:
            picture = replace(picture, **{name: b''})  # type: ignore[arg-type]
            notes.append(f'its {name.upper()} is too long for JPEG and was left out')
    if kind == 'BMP' and (picture.exif or picture.icc or picture.xmp):
        picture = replace(picture, exif=b'', icc=None, xmp=b'')
        notes.append('BMP holds neither EXIF, XMP nor a colour profile: they were left out')
    if kind == 'WEBP' and picture.dpi and not exif.names(picture.exif, exif.RESOLUTION[0]):
        notes.append(f'WEBP holds no resolution: {picture.dpi[0]:.4g} dpi were left out')
    gray = picture.colour.ndim == 2
    if gray and picture.icc and kind == 'WEBP':
        picture = replace(picture, icc=None)
        notes.append('WEBP has no gray: its profile, which is for gray, was left out')
    if picture.colour.dtype == np.uint16 and gray and picture.alpha is not None:
        lost = ', without its profile' if picture.icc else ''
        picture = replace(picture, colour=np.dstack([picture.colour] * 3), icc=None)  # few programs read it as gray
        notes.append(f'gray of 16 bits with transparency was written as RGB{lost}')
    return picture


def xmp_of_size(xmp: bytes, width: int, height: int) -> bytes:
    """Replace the width and height that XMP names, if it names them."""
    for names, edge in ((rb'ImageWidth|PixelXDimension', width), (rb'ImageLength|PixelYDimension', height)):
        pattern = rb'((?:tiff|exif):(?:' + names + rb')\s*(?:=\s*["\']|>)\s*)\d+'
        xmp = re.sub(pattern, rb'\g<1>' + str(edge).encode(), xmp)
    return xmp


def shallow(picture: Picture) -> Picture:
    """Round a picture of 16 bits to 8."""

    def rounded(pixels: np.ndarray | None) -> np.ndarray | None:
        return None if pixels is None else ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)

    colour = rounded(picture.colour)
    return picture if colour is None else replace(picture, colour=colour, alpha=rounded(picture.alpha))


def on_white(picture: Picture) -> Picture:
    """Lay a picture with transparency on white."""
    if picture.alpha is None:
        return picture
    largest = np.iinfo(picture.colour.dtype).max
    share = picture.alpha.astype(np.float32) / largest
    share = share if picture.colour.ndim == 2 else share[..., None]
    flat = picture.colour * share + largest * (1 - share)
    return replace(picture, colour=flat.round().astype(picture.colour.dtype), alpha=None)


def stacked(picture: Picture) -> np.ndarray:
    """Stack colour and alpha into one array, [H, W(, channels)]."""
    return picture.colour if picture.alpha is None else np.dstack([picture.colour, picture.alpha])


def by_pillow(picture: Picture, kind: str, quality: int) -> bytes:
    """Encode with Pillow, with the metadata that it writes; XMP for WebP alone."""
    settings: dict[str, Any] = {'quality': quality} if kind in LOSSY else {}
    if kind == 'JPEG' and quality >= 90:
        settings['subsampling'] = 0  # no subsampling of chroma
    if picture.icc:
        settings['icc_profile'] = picture.icc
    if picture.exif:
        settings['exif'] = picture.exif
    if picture.dpi:
        settings['dpi'] = picture.dpi
    if picture.xmp and kind == 'WEBP':
        settings['xmp'] = picture.xmp
    stream = io.BytesIO()
    try:
        Image.fromarray(stacked(picture)).save(stream, kind, **settings)
    except DAMAGE as error:
        reason = 'too little memory' if isinstance(error, MemoryError) else error
        raise DataError(f'it cannot be written as {kind}: {reason}') from error
    return stream.getvalue()


def with_xmp(content: bytes, xmp: bytes) -> bytes:
    """Insert XMP into a JPEG, after the JFIF and EXIF segments that it begins with."""
    place = 2
    while content[place : place + 2] in (b'\xff\xe0', b'\xff\xe1'):
        place += 2 + int.from_bytes(content[place + 2 : place + 4], 'big')
    segment = XMP_OF_JPEG + xmp
    return content[:place] + b'\xff\xe1' + (len(segment) + 2).to_bytes(2, 'big') + segment + content[place:]


def as_png(picture: Picture) -> bytes:
    """Encode as PNG; 16-bit colour by OpenCV, since Pillow writes none, and with metadata that OpenCV leaves out."""
    chunks = [png.chunk(b'iTXt', XMP_OF_PNG + picture.xmp)] if picture.xmp else []
    if picture.colour.dtype != np.uint16 or picture.colour.ndim == 2:
        return png.with_chunks(by_pillow(picture, 'PNG', QUALITY), chunks)
    pixels = stacked(picture)
    order = [2, 1, 0, 3][: pixels.shape[2]]
    is_made = False
    with contextlib.suppress(cv2.error):  # OpenCV before 4.10 raises it instead of returning False
        is_made, made = cv2.imencode('.png', pixels[..., order])
    if not is_made:
        raise DataError(f'it cannot be written as PNG of 16 bits: at most {LARGEST_OF_LIBPNG} pixels along an edge')
    content = bytes(made.tobytes())
    if picture.icc:
        chunks.append(png.chunk(b'iCCP', b'ICC profile\0\0' + zlib.compress(picture.icc)))
    if picture.exif:
        chunks.append(png.chunk(b'eXIf', picture.exif.removeprefix(exif.PREFIX)))
    if picture.dpi:
        chunks.append(png.chunk(b'pHYs', struct.pack('>IIB', *(round(x / 0.0254) for x in picture.dpi), 1)))
    return png.with_chunks(content, chunks)


def tiff(picture: Picture, notes: list[str]) -> bytes:
    """Encode as TIFF, with the texts of EXIF. Pillow writes no 16-bit colour, nor EXIF into compressed files."""
    texts, is_more = exif.texts(picture.exif)
    if is_more:
        notes.append(
            'of its EXIF, the TIFF keeps only maker, model, computer, software, time, artist, copyright and description'
        )
    tags: list[tuple[Any, ...]] = [(tag, exif.TEXT, 0, text, True) for tag, text in texts.items()]
    if picture.xmp:
        tags.append((tiffs.XMP, 1, len(picture.xmp), picture.xmp, True))
    stream = io.BytesIO()
    tifffile.imwrite(
        stream,
        stacked(picture),
        photometric='minisblack' if picture.colour.ndim == 2 else 'rgb',
        planarconfig='contig',
        extrasamples=None if picture.alpha is None else ['unassalpha'],
        compression='zlib',
        iccprofile=picture.icc,
        resolution=picture.dpi,
        resolutionunit='INCH' if picture.dpi else None,
        extratags=tags,
        metadata=None,
        software=False,
    )
    return stream.getvalue()
