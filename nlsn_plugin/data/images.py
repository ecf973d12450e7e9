"""Photographs on disk: finding, checking to the last byte, reading and writing, and resizing as MATLAB does."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from basicsr.utils.matlab_functions import imresize
from PIL import Image

from nlsn_plugin.data.damage import named_in_errors, without_limits_of_pillow
from nlsn_plugin.errors import DataError, SaveError, UserError
from nlsn_plugin.files import exists, is_dir, is_file, write_whole

IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp', '.ppm')
SMALLEST_IMAGE = 24
"""Smallest width and height, in pixels: below it, bicubic reduction by 4 has too few pixels to mirror at the border."""
PNG_COMPRESSION = 1
"""Light compression, since a training run decodes each sub-image many times."""


@dataclass(frozen=True)
class Sighting:
    """What decoding an image showed.

    Attributes:
        height, width: size in pixels.
        digest: SHA-256 of the file's bytes.
        png_share: size as PNG relative to that of the raw pixels, estimated from a part of at most 256 x 256 pixels.
    """

    height: int
    width: int
    digest: str
    png_share: float


def list_images(folders: Sequence[Path]) -> list[Path]:
    """List the images in folders, sorted by name.

    Raises:
        UserError: a folder is missing or holds no images, or two images have the same key (see `key_of`).
    """
    images = []
    for folder in folders:
        if not is_dir(folder):
            what = f'{folder} is no folder' if exists(folder) else f'there is no folder {folder}'
            raise UserError(f'{what}: give one that holds images')
        named_so = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES]
        found = [path for path in named_so if is_file(path) or not exists(path)]  # dangling links fail later
        if not found:
            raise UserError(f'{folder} holds no images ({", ".join(IMAGE_SUFFIXES)})')
        images += found
    images.sort(key=lambda path: path.name)
    named: dict[str, Path] = {}
    for path in images:
        twin = named.setdefault(key_of(path), path)
        if twin is not path:
            raise UserError(
                f'several images named {key_of(path)}, {twin} and {path}: names must differ, without their endings, '
                'in letters and digits'
            )
    return images


def passed_over(folder: Path) -> str:
    """Say in words what `list_images` leaves out of a folder, hidden files aside; '' if nothing."""
    others = [path for path in folder.iterdir() if path.suffix.lower() not in IMAGE_SUFFIXES and path.name[0] != '.']
    folders = sum(path.is_dir() for path in others)
    counts = ((folders, 'folder', ''), (len(others) - folders, 'file', f' other than {", ".join(IMAGE_SUFFIXES)}'))
    return ' and '.join(f'{count} {what}{"s" * (count > 1)}{kind}' for count, what, kind in counts if count)


def key_of(path: Path) -> str:
    """Turn the image's name into a key of an LMDB: BasicSR cuts keys at the first dot and writes them as ASCII."""
    return ''.join(letter if letter.isascii() and (letter.isalnum() or letter in '-_') else '_' for letter in path.stem)


def look_at(path: Path) -> Sighting:
    """Decode a whole image, and return its size and digest.

    Raises:
        DataError: it is truncated or damaged, not of 8 bits, or has an alpha channel.
    """
    content = contents(path)
    image = decode_whole(content, str(path))
    height, width = image.shape[:2]
    middle = image[height // 4 : height // 4 + 256, width // 4 : width // 4 + 256]
    return Sighting(height, width, hashlib.sha256(content).hexdigest(), len(encode(middle, '.png')) / middle.size)


def contents(path: Path) -> bytes:
    """Read the bytes of a file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f'{path} cannot be read: {error.strerror}') from error


def decode_whole(content: bytes, named: str) -> np.ndarray:
    """Decode with OpenCV and again with Pillow: OpenCV accepts truncated files, and Pillow shows 16 bits as 8.

    Raises:
        DataError: it is truncated or damaged, or `decode` refuses it; the message says `named`.
    """
    image = decode(content, named)
    with named_in_errors(named), without_limits_of_pillow(), Image.open(io.BytesIO(content)) as opened:
        opened.load()
    return image


def read_image(path: Path, keep_gray: bool = False) -> np.ndarray:
    """Read an 8-bit image, BGR [H, W, 3]; with keep_gray, a gray file as [H, W].

    Raises:
        DataError: it cannot be read, or is not an 8-bit image without alpha.
    """
    image = decode(contents(path), str(path))
    return image if keep_gray or image.ndim == 3 else cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)


def decode(content: bytes, named: str) -> np.ndarray:
    """Decode an 8-bit image to uint8, BGR [H, W, 3] or gray [H, W].

    Raises:
        DataError: it is no image, is not of 8 bits, or has an alpha channel.
    """
    with named_in_errors(named):
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED) if content else None
    if image is None:
        raise DataError(f'{named} does not read as an image: replace or remove it')
    if image.dtype != np.uint8:
        raise DataError(f'{named} has {image.dtype} pixels: 8-bit images are expected')
    if image.ndim == 3 and image.shape[2] == 4:
        raise DataError(f'{named} has an alpha channel: flatten it onto a background first')
    return image


def encode(image: np.ndarray, suffix: str) -> bytes:
    """Encode an image as '.png', or as '.bmp', which stores the pixels uncompressed."""
    settings = [cv2.IMWRITE_PNG_COMPRESSION, PNG_COMPRESSION] if suffix == '.png' else []
    return cv2.imencode(suffix, image, settings)[1].tobytes()


def write_image(path: Path, image: np.ndarray) -> None:
    """Write a PNG, as a whole or not at all; its folder is made if needed.

    Raises:
        SaveError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SaveError(f'{path} could not be saved: {error.strerror}') from error
    write_whole(path, lambda temporary: temporary.write_bytes(encode(image, '.png')))


def reduce(image: np.ndarray, scale: int) -> np.ndarray:
    """MATLAB-style antialiased bicubic reduction: uint8 [H, W(, C)] -> uint8 [H / scale, W / scale(, C)]."""
    return resize_bicubic(image, 1 / scale)


def enlarge(image: np.ndarray, scale: int) -> np.ndarray:
    """MATLAB-style bicubic enlargement: uint8 [H, W(, C)] -> uint8 [H * scale, W * scale(, C)]."""
    return resize_bicubic(image, scale)


def resize_bicubic(image: np.ndarray, factor: float) -> np.ndarray:
    resized = imresize(image.astype(np.float32) / 255, factor)
    return (resized * 255).round().clip(0, 255).astype(np.uint8)


def crop_to_multiple(image: np.ndarray, unit: int) -> np.ndarray:
    """Cut off the bottom and the right so that height and width are multiples of `unit` pixels."""
    height, width = image.shape[:2]
    return image[: height - height % unit, : width - width % unit]
