"""From a folder of photographs to what BasicSR's datasets read: bicubic LR, sub-images, LMDB, meta info.

Training data are pairs of LMDBs of sub-images, named as BasicSR's DIV2K recipe names them:

    <output>/<name>_HR_sub.lmdb, <output>/<name>_LR_bicubic_X<scale>_sub.lmdb, each with its meta_info.txt

Test data are folders, laid out as the benchmark archive of EDSR and of the NLSN authors:

    <output>/HR/<image>.png, <output>/LR_bicubic/X<scale>/<image>x<scale>.png
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from basicsr.utils.lmdb_util import LmdbMaker
from basicsr.utils.matlab_functions import imresize
from tqdm import tqdm

from nlsn_plugin.errors import ArgumentError, UserError

IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp', '.ppm')
SMALLEST_IMAGE = 24
"""In pixels: below that, bicubic reduction by 4 finds no neighbours to mirror at the border."""
PNG_COMPRESSION = 1
"""Light: a training run decodes each sub-image many times."""


def prepare_training_data(
    source: Path,
    output: Path,
    name: str = 'DIV2K_train',
    scales: Sequence[int] = (2,),
    crop_size: int = 480,
    step: int = 240,
) -> list[Path]:
    """Write one LMDB of HR sub-images and one of LR sub-images per scale.

    Args:
        source: folder of HR images, 8-bit, any of IMAGE_SUFFIXES.
        output: where the LMDBs go.
        name: what their names begin with, such as DIV2K_train.
        scales: reductions to make; every HR image is first cropped to a multiple of all of them.
        crop_size: edge of an HR sub-image, in pixels; an image smaller than it gives one smaller sub-image.
        step: distance between neighbouring sub-images, in pixels; the last ones end at the image's edge.

    Returns:
        The LMDBs, HR first.

    Raises:
        UserError: no images, an unreadable one (named), or an LMDB that exists already.
        ArgumentError: crop_size or step is no multiple of the scales.
    """
    scales = sorted(set(scales))
    unit = math.lcm(*scales)
    for argument, value in (('crop_size', crop_size), ('step', step)):
        if value < unit or value % unit:
            nearest = max(unit, round(value / unit) * unit)
            raise ArgumentError(
                f'{argument}={value} is not a multiple of {unit}, as scale {join(scales)} needs: {nearest}'
            )
    if step > crop_size:
        raise ArgumentError(f'step={step} is more than crop_size={crop_size}: pixels between sub-images would be lost')
    images = list_images(source)
    lmdbs = [output / f'{name}_HR_sub.lmdb']
    lmdbs += [output / f'{name}_LR_bicubic_X{scale}_sub.lmdb' for scale in scales]
    for lmdb in lmdbs:
        refuse_existing(lmdb)

    with building(lmdbs) as unfinished, contextlib.ExitStack() as opened:
        makers = [LmdbMaker(str(path), compress_level=PNG_COMPRESSION) for path in unfinished]
        for maker in makers:
            opened.callback(maker.close)
        for path in tqdm(images, desc=f'sub-images of {name}', unit='image'):
            hr = crop_to_multiple(read_image(path), unit, path)
            for maker, image, scale in zip(makers, [hr, *(reduce(hr, s) for s in scales)], [1, *scales]):
                for index, (top, left) in enumerate(sub_image_corners(hr.shape, crop_size, step, unit), start=1):
                    rows = slice(top // scale, (top + crop_size) // scale)
                    columns = slice(left // scale, (left + crop_size) // scale)
                    sub_image = image[rows, columns]
                    maker.put(encode_png(sub_image), f'{path.stem}_s{index:03d}', sub_image.shape)
    return lmdbs


def prepare_test_data(source: Path, output: Path, scales: Sequence[int]) -> list[Path]:
    """Write HR images as PNG, and their LR images for each scale, made after cropping to a multiple of that scale.

    Gray images stay gray.

    Returns:
        The folders, HR first.

    Raises:
        UserError: no images, an unreadable one (named), or a folder that exists already.
    """
    scales = sorted(set(scales))
    images = list_images(source)
    folders = [output / 'HR', *(output / 'LR_bicubic' / f'X{scale}' for scale in scales)]
    for folder in folders:
        refuse_existing(folder)
    with building(folders) as (hr_folder, *lr_folders):
        for folder in (hr_folder, *lr_folders):
            folder.mkdir()
        for path in tqdm(images, desc=f'test images of {output.name}', unit='image'):
            hr = read_image(path, keep_gray=True)
            write_png(hr_folder / f'{path.stem}.png', hr)
            for lr_folder, scale in zip(lr_folders, scales):
                write_png(lr_folder / f'{path.stem}x{scale}.png', reduce(crop_to_multiple(hr, scale, path), scale))
    return folders


def reduce(image: np.ndarray, scale: int) -> np.ndarray:
    """MATLAB-style antialiased bicubic reduction: uint8 [H, W(, C)] -> uint8 [H / scale, W / scale(, C)]."""
    return resize_bicubic(image, 1 / scale)


def enlarge(image: np.ndarray, scale: int) -> np.ndarray:
    """MATLAB-style bicubic enlargement: uint8 [H, W(, C)] -> uint8 [H * scale, W * scale(, C)]."""
    return resize_bicubic(image, scale)


def resize_bicubic(image: np.ndarray, factor: float) -> np.ndarray:
    resized = imresize(image.astype(np.float32) / 255, factor)
    return (resized * 255).round().clip(0, 255).astype(np.uint8)


def crop_to_multiple(image: np.ndarray, unit: int, path: Path) -> np.ndarray:
    """Cut off the bottom and the right so that height and width are multiples of `unit` pixels."""
    height, width = image.shape[:2]
    if min(height, width) < SMALLEST_IMAGE:
        raise UserError(f'{path} is of {width}x{height} pixels: at least {SMALLEST_IMAGE} each way are expected')
    return image[: height - height % unit, : width - width % unit]


def sub_image_corners(shape: Sequence[int], crop_size: int, step: int, unit: int) -> Iterator[tuple[int, int]]:
    """Top-left corners of the sub-images of an image of `shape`, row by row, all multiples of `unit`."""
    for top in starts(shape[0], crop_size, step, unit):
        for left in starts(shape[1], crop_size, step, unit):
            yield top, left


def starts(length: int, crop_size: int, step: int, unit: int) -> list[int]:
    last = max(0, length - crop_size) // unit * unit
    regular = list(range(0, last + 1, step))
    return regular if regular[-1] == last else [*regular, last]


def list_images(folder: Path) -> list[Path]:
    """The images of a folder, sorted by name."""
    if not folder.is_dir():
        raise UserError(f'there is no folder {folder}: give the folder that holds the HR images')
    images = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not images:
        raise UserError(f'{folder} holds no images ({", ".join(IMAGE_SUFFIXES)})')
    twins = {path.stem for path in images if sum(other.stem == path.stem for other in images) > 1}
    if twins:
        raise UserError(
            f'{folder} holds several images named {", ".join(sorted(twins))}: names must differ without ending'
        )
    return images


def read_image(path: Path, keep_gray: bool = False) -> np.ndarray:
    """Read an 8-bit image, BGR [H, W, 3]; with keep_gray, a gray file as [H, W]."""
    image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED) if path.stat().st_size else None
    if image is None:
        raise UserError(f'{path} does not read as an image: replace or remove it')
    if image.dtype != np.uint8:
        raise UserError(f'{path} has {image.dtype} pixels: 8-bit images are expected')
    if image.ndim == 2:
        return image if keep_gray else cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    if image.shape[2] == 4:
        raise UserError(f'{path} has an alpha channel: flatten it onto a background first')
    return image


def encode_png(image: np.ndarray) -> bytes:
    return cv2.imencode('.png', image, [cv2.IMWRITE_PNG_COMPRESSION, PNG_COMPRESSION])[1].tobytes()


def write_png(path: Path, image: np.ndarray) -> None:
    path.write_bytes(encode_png(image))


def refuse_existing(path: Path) -> None:
    if path.exists():
        raise UserError(f'{path} exists already: remove it, or give another --output or --name')


@contextlib.contextmanager
def building(targets: Sequence[Path]) -> Iterator[list[Path]]:
    """Give paths to write to beside `targets`, moved into place at the end: an interrupted run leaves nothing."""
    root = Path(os.path.commonpath([target.parent for target in targets]))
    try:
        root.mkdir(parents=True, exist_ok=True)
        workshop = Path(tempfile.mkdtemp(prefix='.preparing_', dir=root))
    except OSError as error:
        raise UserError(f'cannot write to {root}: {error.strerror}') from error
    try:
        unfinished = [workshop / f'{index}_{target.name}' for index, target in enumerate(targets)]
        yield unfinished
        for made, target in zip(unfinished, targets):
            target.parent.mkdir(parents=True, exist_ok=True)
            made.rename(target)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def join(values: Sequence[int]) -> str:
    return ' and '.join(map(str, values))
