"""Pictures as bytes of a file, with their profile and EXIF, in 16 bits where the format has them."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import tifffile
from PIL import ExifTags, Image

from nlsn_plugin.data.pictures import DAMAGE, Picture
from nlsn_plugin.errors import DataError

LARGEST_EDGE = {'JPEG': 65535, 'WEBP': 16383}
"""In pixels, by the formats' own definitions."""
DEEP = ('PNG', 'TIFF')
LOSSY = ('JPEG', 'WEBP')
QUALITY = 95
LARGEST_JPEG_SEGMENT = 65533 - 6
TEXT_TAGS = (
    *(ExifTags.Base.ImageDescription, ExifTags.Base.Make, ExifTags.Base.Model, ExifTags.Base.DateTime),
    *(ExifTags.Base.Artist, ExifTags.Base.Copyright),
)


def check_size(width: int, height: int, kind: str, named: str) -> None:
    """Refuse what a format cannot hold, before any work.

    Raises:
        DataError: it is too large.
    """
    largest = LARGEST_EDGE.get(kind)
    if largest is not None and max(width, height) > largest:
        raise DataError(
            f'{named} would have {width}x{height} pixels, and {kind} holds {largest} along an edge: --format png'
        )


def encode(picture: Picture, kind: str, quality: int = QUALITY) -> tuple[bytes, list[str]]:
    """The bytes of a file, and what was not kept, a line each.

    Args:
        picture: what to write; `format` and `notes` of it do not matter.
        kind: one of pictures.FORMATS.
        quality: of JPEG and WebP, 1 to 100.

    Raises:
        DataError: what came with the picture cannot be written.
    """
    notes = []
    if picture.colour.dtype == np.uint16 and kind not in DEEP:
        picture = shallow(picture)
        notes.append(f'{kind} has 8 bits: 16 were rounded')
    if picture.alpha is not None and kind in ('JPEG', 'BMP'):
        picture = on_white(picture)
        notes.append(f'{kind} has no transparency: it was laid on white')
    if kind == 'JPEG' and len(picture.exif) > LARGEST_JPEG_SEGMENT:
        picture = replace(picture, exif=b'')
        notes.append('its EXIF is too long for JPEG and was left out')
    if kind == 'BMP' and (picture.exif or picture.icc):
        picture = replace(picture, exif=b'', icc=None)
        notes.append('BMP holds neither EXIF nor a colour profile: they were left out')
    if picture.colour.dtype == np.uint16 and picture.colour.ndim == 2 and picture.alpha is not None:
        picture = replace(picture, colour=np.dstack([picture.colour] * 3), icc=None)  # few programs read it as gray
        notes.append('gray of 16 bits with transparency was written as RGB')
    if kind == 'TIFF':
        return tiff(picture, notes), notes
    if picture.colour.dtype == np.uint16 and picture.colour.ndim == 3:
        return deep_png(picture), notes
    return by_pillow(picture, kind, quality), notes


def shallow(picture: Picture) -> Picture:
    """In 8 bits."""

    def rounded(pixels: np.ndarray | None) -> np.ndarray | None:
        return None if pixels is None else ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)

    colour = rounded(picture.colour)
    return picture if colour is None else replace(picture, colour=colour, alpha=rounded(picture.alpha))


def on_white(picture: Picture) -> Picture:
    """Without transparency."""
    if picture.alpha is None:
        return picture
    largest = np.iinfo(picture.colour.dtype).max
    share = picture.alpha.astype(np.float32) / largest
    share = share if picture.colour.ndim == 2 else share[..., None]
    flat = picture.colour * share + largest * (1 - share)
    return replace(picture, colour=flat.round().astype(picture.colour.dtype), alpha=None)


def stacked(picture: Picture) -> np.ndarray:
    """Colour and alpha in one array, [H, W(, channels)]."""
    return picture.colour if picture.alpha is None else np.dstack([picture.colour, picture.alpha])


def by_pillow(picture: Picture, kind: str, quality: int) -> bytes:
    settings: dict[str, Any] = {'quality': quality} if kind in LOSSY else {}
    if kind == 'JPEG' and quality >= 90:
        settings['subsampling'] = 0  # colours at full size
    if picture.icc:
        settings['icc_profile'] = picture.icc
    if picture.exif:
        settings['exif'] = picture.exif
    stream = io.BytesIO()
    try:
        Image.fromarray(stacked(picture)).save(stream, kind, **settings)
    except DAMAGE as error:
        raise DataError(f'it cannot be written as {kind}: {error}') from error
    return stream.getvalue()


def deep_png(picture: Picture) -> bytes:
    """A PNG of 16 bits in colour, which Pillow does not write; OpenCV knows nothing of profiles."""
    pixels = stacked(picture)
    order = [2, 1, 0, 3][: pixels.shape[2]]
    content = bytes(cv2.imencode('.png', pixels[..., order])[1].tobytes())
    end_of_header = 8 + 25  # the signature, and the first chunk, which is IHDR
    chunks = []
    if picture.icc:
        chunks.append(chunk(b'iCCP', b'ICC profile\0\0' + zlib.compress(picture.icc)))
    if picture.exif:
        chunks.append(chunk(b'eXIf', picture.exif.removeprefix(b'Exif\0\0')))
    return content[:end_of_header] + b''.join(chunks) + content[end_of_header:]


def chunk(name: bytes, content: bytes) -> bytes:
    """Of a PNG: length, name, content and checksum."""
    return struct.pack('>I', len(content)) + name + content + struct.pack('>I', zlib.crc32(name + content))


def tiff(picture: Picture, notes: list[str]) -> bytes:
    """A TIFF; Pillow writes none of 16 bits in colour, and no EXIF into compressed ones. Here texts at least."""
    tags = []
    if picture.exif:
        exif = Image.Exif()
        try:
            exif.load(picture.exif)
            tags = [(int(tag), 2, 0, str(exif[tag]), True) for tag in TEXT_TAGS if tag in exif]
        except DAMAGE:  # a block that was read before, and may still hold texts that are none
            tags = []
        notes.append('of its EXIF, the TIFF keeps only maker, model, time, artist, copyright and description')
    stream = io.BytesIO()
    tifffile.imwrite(
        stream,
        stacked(picture),
        photometric='minisblack' if picture.colour.ndim == 2 else 'rgb',
        planarconfig='contig',
        extrasamples=None if picture.alpha is None else ['unassalpha'],
        compression='zlib',
        iccprofile=picture.icc,
        extratags=tags,
        metadata=None,
        software=False,
    )
    return stream.getvalue()
