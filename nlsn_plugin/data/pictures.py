"""Pictures as they come from users: any usual format, 8 or 16 bits, gray, palette, alpha, CMYK, turned by a camera.

Pillow reads them, OpenCV what Pillow would cut from 16 bits to 8. Nothing of BasicSR's is needed.
"""

from __future__ import annotations

import contextlib
import io
import logging
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

from nlsn_plugin.compat import substituted
from nlsn_plugin.errors import DataError

logging.getLogger('PIL').addHandler(logging.NullHandler())  # what it logs of damage, it raises too

FORMATS = {
    'PNG': ('.png',),
    'JPEG': ('.jpg', '.jpeg'),
    'WEBP': ('.webp',),
    'TIFF': ('.tif', '.tiff'),
    'BMP': ('.bmp',),
}
"""Pillow's names, and how names of files end, the usual way first."""
SUFFIXES = {suffix: name for name, suffixes in FORMATS.items() for suffix in suffixes}
MOST_PIXELS = 100_000_000
"""In a picture, unless more are allowed: 'decompression bombs' claim far more than they have bytes for."""
DAMAGE = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, NotImplementedError),
    *(OSError, RuntimeError, SyntaxError, TypeError, ValueError, struct.error, zlib.error, cv2.error),
)
"""What Pillow and OpenCV raise on damaged files: whatever it is, the file is to blame."""
KEPT_TAGS = (
    *(ExifTags.Base.ImageDescription, ExifTags.Base.Make, ExifTags.Base.Model, ExifTags.Base.Software),
    *(ExifTags.Base.DateTime, ExifTags.Base.Artist, ExifTags.Base.Copyright, ExifTags.Base.XResolution),
    *(ExifTags.Base.YResolution, ExifTags.Base.ResolutionUnit, ExifTags.Base.Rating),
)
"""Of the main directory of EXIF; others say how the file was laid out."""
FOR_THE_OLD_PIXELS = (ExifTags.Base.MakerNote, ExifTags.Base.ExifInteroperabilityOffset)
PARTS = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
UPRIGHT = 1
TURNS = {2: (0, True), 3: (2, False), 4: (2, True), 5: (3, True), 6: (3, False), 7: (1, True), 8: (1, False)}
"""EXIF's orientations: quarter turns to the left, and then whether to mirror left and right."""


@dataclass(frozen=True)
class Picture:
    """A decoded picture, upright.

    Attributes:
        colour: uint8 or uint16, [H, W, 3] RGB, or [H, W] if it is gray.
        alpha: of the same type, [H, W], not multiplied into `colour`; None if all is opaque.
        format: one of FORMATS.
        icc: the profile of `colour`, if it has one.
        exif: the rest of what the camera wrote, as a block of EXIF; empty if there is none.
        notes: what was not kept as it was, a line each.
    """

    colour: np.ndarray
    alpha: np.ndarray | None = None
    format: str = 'PNG'
    icc: bytes | None = None
    exif: bytes = b''
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Header:
    """What a file says of itself: format, and width and height when upright."""

    format: str
    width: int
    height: int


def look(source: Path | bytes, named: str, most_pixels: int = MOST_PIXELS) -> Header:
    """Read the header alone.

    Raises:
        DataError: no picture, of no pixels, or of more than `most_pixels`.
    """
    with opened(source, named, most_pixels) as image:
        return Header(format_of(image), *upright_size(image))


def read(source: Path | bytes, named: str, most_pixels: int = MOST_PIXELS) -> Picture:
    """Decode a picture, to its last byte.

    Args:
        source: a file, or its content.
        named: in messages.
        most_pixels: what is larger is refused before memory is taken.

    Raises:
        DataError: no picture, a damaged or a too large one, or of a kind that has no 8 or 16 bits.
    """
    with opened(source, named, most_pixels) as image:
        notes = notes_on_frames(image)
        orientation = orientation_of(image)
        bits = bits_of(image, source)
        if bits not in (1, 2, 4, 8, 16) or image.mode in ('I', 'F'):
            raise DataError(f'{named} has {bits}-bit pixels of mode {image.mode}: 8 or 16 bits are expected')
        icc = image.info.get('icc_profile') or None
        image.load()
        exif = exif_of(image, upright_size(image, orientation), notes)
        picture = Picture(np.empty(0), format=format_of(image), icc=icc, exif=exif, notes=notes)
        if bits == 16 and image.mode in ('RGB', 'RGBA', 'LA'):
            return deep(picture, source, image, orientation)
        if bits == 16 and image.mode != 'I;16':
            notes.append(f'16 bits of mode {image.mode} were read as 8')
        shallow = upright(image, orientation)
    return of_pillow(shallow, picture, named)


@contextlib.contextmanager
def opened(source: Path | bytes, named: str, most_pixels: int) -> Iterator[Image.Image]:
    """Pillow's image, of a format and a size that are allowed; whatever it says of damage names the file."""
    try:
        with warnings.catch_warnings(), substituted(Image, MAX_IMAGE_PIXELS=None):  # the limit is ours
            warnings.simplefilter('ignore')  # of damage that goes on to raise, or does not matter
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=[*FORMATS]) as image:
                check_pixels(image, named, most_pixels)
                yield image
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f'{named} is no picture: PNG, JPEG, WebP, TIFF or BMP is expected') from error
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(f'{named} cannot be read: {error.strerror}') from error
        reason = ' '.join(str(error).split())[:200] or type(error).__name__
        raise DataError(f'{named} is truncated or damaged: {reason}') from error


def check_pixels(image: Image.Image, named: str, most_pixels: int) -> None:
    """Refuse a picture by what its header says, before memory is taken."""
    if min(image.size) < 1:
        raise DataError(f'{named} has {image.width}x{image.height} pixels')
    if image.width * image.height > most_pixels:
        raise DataError(
            f'{named} says that it has {image.width}x{image.height} pixels: {most_pixels / 1e6:g} megapixels '
            'are allowed, --max-megapixels sets another limit'
        )


def format_of(image: Image.Image) -> str:
    return 'JPEG' if image.format == 'MPO' else str(image.format)  # MPO: a JPEG with more pictures behind


def orientation_of(image: Image.Image) -> int:
    """EXIF's number, UPRIGHT if it is none; before the image is loaded, when Pillow turns TIFFs itself."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    except DAMAGE:  # of EXIF alone
        return UPRIGHT
    return found if found in TURNS else UPRIGHT


def upright_size(image: Image.Image, orientation: int | None = None) -> tuple[int, int]:
    """Width and height, turned upright."""
    orientation = orientation_of(image) if orientation is None else orientation
    swapped = orientation >= 5 and image.format != 'TIFF'  # whose size Pillow gives as turned
    return (image.height, image.width) if swapped else image.size


def upright(image: Image.Image, orientation: int) -> Image.Image:
    if orientation == UPRIGHT or image.format == 'TIFF':
        return image
    turns, mirrored = TURNS[orientation]
    turned = image.rotate(90 * turns, expand=True)
    return ImageOps.mirror(turned) if mirrored else turned


def bits_of(image: Image.Image, source: Path | bytes) -> int:
    """Bits of a sample in the file."""
    if image.format == 'PNG':
        if isinstance(source, bytes):
            return source[24]
        with source.open('rb') as file:
            return file.read(25)[24]
    if image.format == 'TIFF':
        bits = image.tag_v2.get(258, 1)  # type: ignore[attr-defined]
        return int(max(bits) if isinstance(bits, tuple) else bits)
    return 8


def notes_on_frames(image: Image.Image) -> list[str]:
    frames = getattr(image, 'n_frames', 1) if image.format != 'MPO' else 1
    return [f'the first of its {frames} pictures was taken'] if frames > 1 else []


def exif_of(image: Image.Image, size: tuple[int, int], notes: list[str]) -> bytes:
    """What there is to keep of EXIF: without the orientation, the thumbnail, and what describes the old file."""
    try:
        found, kept = image.getexif(), Image.Exif()
        for tag in KEPT_TAGS:
            if tag in found:
                kept[tag] = found[tag]
        for part in PARTS:
            tags = {tag: value for tag, value in found.get_ifd(part).items() if tag not in FOR_THE_OLD_PIXELS}
            if tags:
                kept.get_ifd(part).update(tags)
                kept[part] = kept.get_ifd(part)
        return kept.tobytes() if len(kept) else b''
    except DAMAGE:
        notes.append('its EXIF does not read and was left out')
        return b''


def deep(picture: Picture, source: Path | bytes, image: Image.Image, orientation: int) -> Picture:
    """A picture of 16 bits in colour, or gray with alpha, which Pillow cuts to 8.

    Raises:
        DataError: OpenCV does not read it.
    """
    content = source if isinstance(source, bytes) else source.read_bytes()
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 3:
        raise ValueError('16-bit pixels that OpenCV does not read')
    turns, mirrored = TURNS.get(orientation, (0, False))
    pixels = np.rot90(pixels, turns)
    pixels = pixels[:, ::-1] if mirrored else pixels
    colour, alpha = pixels[..., 2::-1], pixels[..., 3] if pixels.shape[2] == 4 else None
    if alpha is not None and image.format == 'TIFF' and 1 in as_tuple(image.tag_v2.get(338, 0)):  # type: ignore[attr-defined]
        full = np.maximum(alpha, 1)[..., None]  # colours are multiplied by it
        colour = np.minimum(colour.astype(np.uint32) * 65535 // full, 65535).astype(np.uint16)
    if image.mode == 'LA':
        colour = colour[..., 0]
    return checked_profile(replace(picture, colour=np.ascontiguousarray(colour), alpha=seen_through(alpha)))


def as_tuple(value: object) -> tuple[object, ...]:
    return value if isinstance(value, tuple) else (value,)


def of_pillow(image: Image.Image, picture: Picture, named: str) -> Picture:
    """`picture` with the pixels of a Pillow image of any mode that has 8 bits, or 16 in gray.

    Raises:
        DataError: another mode.
    """
    icc, notes = picture.icc, picture.notes
    if image.mode == 'CMYK':
        image, said = to_rgb(image, icc)
        icc, notes = None, [*notes, said]
    elif image.mode in ('P', 'PA'):
        image = image.convert('RGBA' if 'transparency' in image.info or image.mode == 'PA' else 'RGB')
    elif image.mode in ('RGBa', 'La'):
        image = image.convert({'RGBa': 'RGBA', 'La': 'LA'}[image.mode])
    elif image.mode in ('YCbCr', 'RGBX', 'HSV'):
        image = image.convert('RGB')
    elif image.mode == '1':
        image = image.convert('L')
    if image.mode in ('L', 'RGB') and 'transparency' in image.info:
        image = image.convert({'L': 'LA', 'RGB': 'RGBA'}[image.mode])
    if image.mode not in ('L', 'LA', 'RGB', 'RGBA', 'I;16', 'I;16B', 'I;16L'):
        raise DataError(
            f'{named} has the colour mode {image.mode}: gray, RGB, palette or CMYK, of 8 or 16 bits, is expected'
        )
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8:
        pixels = pixels.astype(np.uint16)  # whichever end of a number comes first
    if image.mode in ('LA', 'RGBA'):
        colour, alpha = pixels[..., :-1], seen_through(pixels[..., -1])
        colour = colour[..., 0] if image.mode == 'LA' else colour
    else:
        colour, alpha = pixels, None
    kept = replace(picture, colour=np.ascontiguousarray(colour), alpha=alpha, icc=icc, notes=notes)
    return checked_profile(kept)


def to_rgb(image: Image.Image, icc: bytes | None) -> tuple[Image.Image, str]:
    """CMYK as sRGB, and a word on how: through the image's own profile if that can be."""
    if icc is None:
        return image.convert('RGB'), 'CMYK without a profile was converted to RGB: its colours are a guess'
    try:
        own, srgb = ImageCms.ImageCmsProfile(io.BytesIO(icc)), ImageCms.createProfile('sRGB')
        converted = ImageCms.profileToProfile(image, own, srgb, outputMode='RGB')
    except (ImageCms.PyCMSError, *DAMAGE):
        return image.convert('RGB'), 'CMYK was converted to RGB, not by its profile, which does not read'
    if converted is None:  # only if done in place
        raise ValueError('no image was made')
    return converted, 'CMYK was converted to sRGB by its profile'


def seen_through(alpha: np.ndarray | None) -> np.ndarray | None:
    """None for an alpha channel in which all is opaque."""
    return None if alpha is None or alpha.min() == np.iinfo(alpha.dtype).max else np.ascontiguousarray(alpha)


def checked_profile(picture: Picture) -> Picture:
    """Without a profile that is for another kind of colours."""
    wanted = b'GRAY' if picture.colour.ndim == 2 else b'RGB '
    if picture.icc is None or picture.icc[16:20] == wanted:
        return picture
    return replace(picture, icc=None, notes=[*picture.notes, 'its colour profile does not fit it and was left out'])
