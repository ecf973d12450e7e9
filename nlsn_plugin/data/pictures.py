"""Reading users' pictures: any usual format, 8 or 16 bits, gray, palette, alpha, CMYK, turned by a camera.

Pillow reads them, except PNGs that it would cut from 16 bits to 8, which OpenCV reads, and TIFFs, which `tiff` reads.
BasicSR is not needed.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import tifffile
from PIL import Image, ImageCms, UnidentifiedImageError

from nlsn_plugin.data import png, tiff
from nlsn_plugin.data.damage import DAMAGE, named_in_errors, without_limits_of_pillow
from nlsn_plugin.data.provenance import of_image, of_tiff
from nlsn_plugin.data.turning import orientation_of, upright, upright_image, upright_size
from nlsn_plugin.errors import DataError

FORMATS = {
    'PNG': ('.png',),
    'JPEG': ('.jpg', '.jpeg', '.jfif'),
    'WEBP': ('.webp',),
    'TIFF': ('.tif', '.tiff'),
    'BMP': ('.bmp',),
}
"""File suffixes of each format, under Pillow's name of it; the usual suffix comes first."""
SUFFIXES = {suffix: name for name, suffixes in FORMATS.items() for suffix in suffixes}
MOST_PIXELS = 100_000_000
"""Default limit for the pixels of a picture: 'decompression bombs' claim far more than their size would suggest."""


@dataclass(frozen=True)
class Picture:
    """A decoded picture, upright.

    Attributes:
        colour: uint8 or uint16, [H, W, 3] RGB, or [H, W] if it is gray.
        alpha: same dtype, [H, W], not multiplied into `colour`; None if all is opaque.
        format: one of FORMATS.
        icc: the ICC profile of `colour`, if it has one.
        exif: what is kept of EXIF, as a block; empty if there is none.
        xmp: XMP, metadata in XML, which programs write beside or instead of EXIF; empty if there is none.
        dpi: pixels per inch, across and down, if the file says so.
        notes: one line for each thing that was not kept as it was.
    """

    colour: np.ndarray
    alpha: np.ndarray | None = None
    format: str = 'PNG'
    icc: bytes | None = None
    exif: bytes = b''
    xmp: bytes = b''
    dpi: tuple[float, float] | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Header:
    """Format of a picture, and its width and height when upright, as the file's header gives them."""

    format: str
    width: int
    height: int


def look(source: Path | bytes, named: str, most_pixels: int = MOST_PIXELS) -> Header:
    """Read only the header of a picture.

    Raises:
        DataError: it is no picture, is damaged, or has no pixels or more than `most_pixels`.
    """
    with opened(source, named) as file:
        if is_tiff(file):
            with tifffile.TiffFile(file) as pages:
                page = first(pages, named, most_pixels)
                return Header('TIFF', *upright_size(page.imagewidth, page.imagelength, tiff.orientation_of(page)))
        with pillow_image(file, named, most_pixels) as image:
            return Header(format_of(image), *upright_size(*image.size, orientation_of(image)))


def read(source: Path | bytes, named: str, most_pixels: int = MOST_PIXELS) -> Picture:
    """Decode a picture, to its last byte.

    Args:
        source: path or content of the file.
        named: name of the picture, for messages.
        most_pixels: a picture with more is refused before memory is allocated.

    Raises:
        DataError: it is no picture, is damaged, has too many pixels, or pixels of a kind that is not read.
    """
    with opened(source, named) as file:
        if is_tiff(file):
            with tifffile.TiffFile(file) as pages:
                page = first(pages, named, most_pixels)
                tiff.check(page, named)
                picture = Picture(np.empty(0), format='TIFF', **vars(of_tiff(page, file)))
                return read_tiff(page, file, picture, named)
        with pillow_image(file, named, most_pixels) as image:
            orientation = orientation_of(image)
            image.load()
            picture = Picture(np.empty(0), format=format_of(image), **vars(of_image(image)))
            if image.format == 'PNG':
                return read_png(image, file, picture, orientation, named)
            return of_pillow(upright_image(image, orientation), picture, named)


@contextlib.contextmanager
def opened(source: Path | bytes, named: str) -> Iterator[BinaryIO]:
    """Open a picture's file or content; errors of readers within the block become DataErrors that say `named`."""
    with named_in_errors(named), warnings.catch_warnings(), without_limits_of_pillow():
        warnings.simplefilter('ignore')  # about damage that either raises later or does no harm
        with io.BytesIO(source) if isinstance(source, bytes) else source.open('rb') as file:
            yield file


def is_tiff(file: BinaryIO) -> bool:
    head = file.read(4)
    file.seek(0)
    return head in tiff.SIGNATURES


def first(pages: tifffile.TiffFile, named: str, most_pixels: int) -> tifffile.TiffPage:
    """Return the first page, after checking its size."""
    page = pages.pages[0]
    if not isinstance(page, tifffile.TiffPage):
        raise ValueError('it has no first page')
    check_pixels(page.imagewidth, page.imagelength, named, most_pixels)
    return page


@contextlib.contextmanager
def pillow_image(file: BinaryIO, named: str, most_pixels: int) -> Iterator[Image.Image]:
    """Open an image with Pillow, after checking its format and size."""
    try:
        image = Image.open(file, formats=[kind for kind in FORMATS if kind != 'TIFF'])
    except UnidentifiedImageError as error:
        raise DataError(f'{named} is no picture: PNG, JPEG, WebP, TIFF or BMP is expected') from error
    with image:
        check_pixels(*image.size, named, most_pixels)
        if image.format == 'PNG':
            add_chunks(image, file)
        yield image


def add_chunks(image: Image.Image, file: BinaryIO) -> None:
    """Add to `image.info` what Pillow lacks of a PNG before decoding: cICP, and texts and EXIF behind the pixels."""
    place = file.tell()
    colours = png.find(file, b'cICP')
    if colours:
        image.info.setdefault('cicp', colours)
    with contextlib.suppress(*DAMAGE):  # which decoding reports
        behind = png.behind_pixels(file)
        if behind is not None:
            with Image.open(io.BytesIO(behind), formats=['PNG']) as told:
                image.info.update({key: value for key, value in told.info.items() if key not in image.info})
    file.seek(place)


def check_pixels(width: int, height: int, named: str, most_pixels: int) -> None:
    """Refuse a picture by the size in its header, before memory is allocated."""
    if min(width, height) < 1:
        raise DataError(f'{named} has {width}x{height} pixels')
    if width * height > most_pixels:
        raise DataError(
            f'{named} says that it has {width}x{height} pixels: {most_pixels / 1e6:g} megapixels '
            'are allowed, --max-megapixels sets another limit'
        )


def format_of(image: Image.Image) -> str:
    return 'JPEG' if image.format == 'MPO' else str(image.format)  # MPO: a JPEG followed by more pictures


def read_tiff(page: tifffile.TiffPage, file: BinaryIO, picture: Picture, named: str) -> Picture:
    """Return `picture` with the pixels of a TIFF's page."""
    orientation, bits = tiff.orientation_of(page), tiff.bits_of(page)
    place, is_multiplied, others = tiff.alpha_of(page)
    if others:
        picture.notes.append(f'channels that hold neither colour nor transparency were left out: {others}')
    if bits < 16 and not tiff.is_plain(page):
        return of_pillow(upright_image(tiff.image(page, file, named), orientation), picture, named)
    pixels = upright(tiff.samples(page, file), orientation)
    if page.photometric == tiff.CMYK:
        if bits == 16:
            picture.notes.append('16 bits of mode CMYK were read as 8')
            pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
        return of_pillow(Image.fromarray(np.ascontiguousarray(pixels[..., :4]), 'CMYK'), picture, named)
    if page.photometric == tiff.YCBCR:
        return of_pillow(Image.fromarray(np.ascontiguousarray(pixels[..., :3]), 'YCbCr'), picture, named)
    colour = pixels[..., : tiff.COLOURS[page.photometric]]
    alpha = None if place is None else pixels[..., place]
    if is_multiplied and alpha is not None:
        colour = divided(colour, alpha)
    return of_pixels(colour[..., 0] if colour.shape[2] == 1 else colour, alpha, picture)


def divided(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Undo the multiplication of `colour` [H, W, C] by `alpha` [H, W]."""
    full = np.maximum(alpha, 1).astype(np.uint32)[..., None]
    white = int(np.iinfo(colour.dtype).max)
    return np.minimum((colour.astype(np.uint32) * white + full // 2) // full, white).astype(colour.dtype)


def read_png(image: Image.Image, file: BinaryIO, picture: Picture, orientation: int, named: str) -> Picture:
    """Return `picture` with the pixels of a PNG. Pillow alone would cut some to 8 bits, and miss some transparency."""
    bits, transparent = png.bits_of(file), png.transparent(file)
    if image.mode == 'P' or (transparent is None and bits < 16):
        return of_pillow(upright_image(image, orientation), picture, named)
    if bits == 16 and not image.mode.startswith('I'):
        colour, alpha = png.deep(file)
    else:
        colour = np.asarray(image.convert('L') if image.mode == '1' else image)
        colour, alpha = colour.astype(np.uint16) if bits == 16 else colour, None
    if transparent is not None:
        alpha = png.alpha_of(colour, transparent, bits)
    alpha = None if alpha is None else upright(alpha, orientation)
    return of_pixels(upright(colour, orientation), alpha, picture)


def of_pillow(image: Image.Image, picture: Picture, named: str) -> Picture:
    """Return `picture` with the pixels of a Pillow image of a mode with 8 bits, or with 16 in gray.

    Raises:
        DataError: the image has another mode.
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
        image = image.convert('LA' if 'transparency' in image.info else 'L')
    if image.mode in ('L', 'RGB') and 'transparency' in image.info:
        image = image.convert({'L': 'LA', 'RGB': 'RGBA'}[image.mode])
    if image.mode not in ('L', 'LA', 'RGB', 'RGBA', 'I;16', 'I;16B', 'I;16L'):
        raise DataError(
            f'{named} has the colour mode {image.mode}: gray, RGB, palette or CMYK, of 8 or 16 bits, is expected'
        )
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8:
        pixels = pixels.astype(np.uint16)  # in native byte order
    picture = replace(picture, icc=icc, notes=notes)
    if image.mode == 'LA':
        return of_pixels(pixels[..., 0], pixels[..., 1], picture)
    if image.mode == 'RGBA':
        return of_pixels(pixels[..., :3], pixels[..., 3], picture)
    one = image.info.get('transparency') if pixels.dtype == np.uint16 else None
    return of_pixels(pixels, None if one is None else png.alpha_of(pixels, (one,), 16), picture)


def of_pixels(colour: np.ndarray, alpha: np.ndarray | None, picture: Picture) -> Picture:
    """Return `picture` with pixels; alpha is dropped if all is opaque, and a profile if it is for other colours."""
    if alpha is not None:
        opaque = alpha.min() == np.iinfo(alpha.dtype).max
        alpha = None if opaque else np.ascontiguousarray(alpha)
    icc, notes = picture.icc, picture.notes
    if icc is not None and icc[16:20] != (b'GRAY' if colour.ndim == 2 else b'RGB '):
        icc, notes = None, [*notes, 'its colour profile does not fit it and was left out']
    return replace(picture, colour=np.ascontiguousarray(colour), alpha=alpha, icc=icc, notes=notes)


def to_rgb(image: Image.Image, icc: bytes | None) -> tuple[Image.Image, str]:
    """Convert CMYK to RGB, by the image's own profile if possible; return the image, and a line that says how."""
    if icc is None:
        return image.convert('RGB'), 'CMYK without a profile was converted to RGB: its colours are a guess'
    try:
        own, srgb = ImageCms.ImageCmsProfile(io.BytesIO(icc)), ImageCms.createProfile('sRGB')
        converted = ImageCms.profileToProfile(image, own, srgb, outputMode='RGB')
    except (ImageCms.PyCMSError, *DAMAGE):
        return image.convert('RGB'), 'CMYK was converted to RGB, not by its profile, which does not read'
    if converted is None:  # never so unless the conversion is in place
        raise ValueError('no image was made')
    return converted, 'CMYK was converted to sRGB by its profile'
