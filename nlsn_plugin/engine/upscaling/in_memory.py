"""`nlsn_plugin.upscale`, which enlarges an image in memory."""

from __future__ import annotations

import functools
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from nlsn_plugin import checks
from nlsn_plugin.data.damage import named_in_errors
from nlsn_plugin.data.pictures import Picture, of_pillow
from nlsn_plugin.data.pixels import largest
from nlsn_plugin.data.turning import orientation_of, upright_image
from nlsn_plugin.engine.upscaling import memory
from nlsn_plugin.engine.upscaling.upscaler import OVERLAP, Settings, Upscaler, check
from nlsn_plugin.errors import ArgumentError

Img = TypeVar('Img', np.ndarray, Image.Image)


@functools.lru_cache(maxsize=4)
def upscaler_for(settings: Settings, arguments: str, changed: int) -> Upscaler:
    """Build an upscaler; the last four are cached, so that the next image does not load the weights again.

    Args:
        settings: all settings but the network's arguments.
        arguments: arguments of the network, as JSON.
        changed: modification time of the file of weights, so that a changed file is loaded anew.
    """
    return Upscaler(replace(settings, arguments=json.loads(arguments)))


@memory.named_if_it_runs_out('the image')
def upscale(
    image: Img,
    scale: int | None = None,
    weights: str | Path | None = None,
    *,
    n_hashes: int | None = None,
    self_ensemble: bool = False,
    device: str | None = None,
    dtype: str = 'float32',
    tile: int | str = 'auto',
    overlap: int = OVERLAP,
    **arguments: Any,
) -> Img:
    """Enlarge an image.

    Args:
        image: a NumPy array [H, W], [H, W, 3] RGB or [H, W, 4] RGBA, of uint8, uint16, or floats in [0, 1]; or a
            Pillow image of any mode of 8 bits, or 16 in gray, which is turned upright if its EXIF says so.
        scale: 2, 3 or 4, or with `weights` the scale that these are for; by default that of `weights`, or 2.
        weights, n_hashes, self_ensemble, device, dtype, tile, overlap: see `Settings`.
        arguments: arguments of the network that the file of weights does not say.

    Returns:
        An array [H * scale, W * scale(, channels)] of the same dtype; or a Pillow image, upright, gray or RGB, with
        alpha if the original has it, with the original's colour profile and without its EXIF.

    Raises:
        ArgumentError (a ValueError): an image or an argument is not allowed.
        DataError: a Pillow image is of a damaged file, or of another mode.
        UserError: there are no weights, or too little memory.
    """
    scale = whole_scale(scale)
    if weights is not None and not isinstance(weights, (str, os.PathLike)):
        raise ArgumentError(f'weights={weights!r} is not allowed: a path is expected')
    if device is not None and not isinstance(device, (str, torch.device)):
        raise ArgumentError(f"device={device!r} is not allowed: 'cpu', 'cuda' or 'cuda:N' is expected")
    settings = Settings(scale, weights, None, n_hashes, self_ensemble, device, dtype, tile, overlap)
    check(settings)  # before the cache, which fails on settings that cannot be hashed
    picture = of_image(image) if isinstance(image, Image.Image) else of_array(image)
    changed = Path(weights).stat().st_mtime_ns if weights is not None and Path(weights).is_file() else 0
    upscaler = upscaler_for(settings, as_json(arguments), changed)
    larger = upscaler.enlarge(picture, 'the image').picture
    channels = larger.colour if larger.alpha is None else np.dstack([larger.colour, larger.alpha])
    if not isinstance(image, Image.Image):
        return fourth_channel(channels, image)
    made = Image.fromarray(channels)
    if image.has_transparency_data and made.mode in ('L', 'RGB'):
        made.putalpha(255)
    if larger.icc:
        made.info['icc_profile'] = larger.icc
    return made


def whole_scale(scale: object) -> int | None:
    """Convert a scale to an int; 2.0 and NumPy's numbers are accepted too, and None is returned as it is.

    Raises:
        ArgumentError: it is not a whole number, or less than 1.
    """
    if scale is None:
        return None
    is_whole = isinstance(scale, (float, np.floating)) and float(scale).is_integer()
    return checks.whole('scale', int(scale) if is_whole else scale, least=1)  # type: ignore[call-overload]


def as_json(arguments: dict[str, Any]) -> str:
    """Arguments of a network as JSON, by which the cache compares them.

    Raises:
        ArgumentError: JSON cannot hold one of them, even with NumPy's numbers and arrays as plain ones.
    """

    def plain(value: object) -> object:
        if isinstance(value, (np.generic, np.ndarray)):
            return value.tolist()
        raise TypeError

    for name, value in arguments.items():
        try:
            json.dumps(value, default=plain)
        except (TypeError, ValueError) as error:
            raise ArgumentError(
                f'{name}={value!r} is not allowed: a number, a text or a list of them is expected'
            ) from error
    return json.dumps(arguments, default=plain)


def of_image(image: Image.Image) -> Picture:
    """Convert a Pillow image to an upright picture.

    Raises:
        ArgumentError: Pillow has no mode for the enlarged image.
        DataError: its file is damaged, or its mode is not supported.
    """
    with named_in_errors('the image'):
        image.load()
        turned = upright_image(image, orientation_of(image))
        picture = of_pillow(turned, Picture(np.empty(0), icc=image.info.get('icc_profile')), 'the image')
    if picture.colour.dtype == np.uint16 and picture.alpha is not None:
        raise ArgumentError('the image is gray of 16 bits with transparency, for which Pillow has no mode')
    return picture


def fourth_channel(channels: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Add an opaque alpha channel to the result `channels` if the original `image` had one and it was dropped."""
    if image.ndim == 3 and image.shape[2] == 4 and channels.shape[2] == 3:
        opaque = np.full(channels.shape[:2], largest(channels.dtype), channels.dtype)
        return np.dstack([channels, opaque])
    return channels


def of_array(image: np.ndarray) -> Picture:
    """Convert an array to a picture.

    Raises:
        ArgumentError: its shape or dtype is not allowed, or it has floats outside [0, 1].
    """
    if not isinstance(image, np.ndarray):
        raise ArgumentError(f'image is a {type(image).__name__}: a NumPy array or a Pillow image is expected')
    shapes = '[H, W], [H, W, 3] or [H, W, 4]'
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (3, 4)) or 0 in image.shape:
        raise ArgumentError(f'image has the shape {list(image.shape)}: {shapes} is expected')
    if image.dtype not in (np.uint8, np.uint16, np.float16, np.float32, np.float64):
        raise ArgumentError(f'image has {image.dtype} pixels: uint8, uint16 or floats in [0, 1] are expected')
    if image.dtype.kind == 'f' and not (image.min() >= 0 and image.max() <= 1):
        raise ArgumentError(f'image has values from {image.min():g} to {image.max():g}: floats in [0, 1] are expected')
    if image.ndim == 2 or image.shape[2] == 3:
        return Picture(image)
    alpha = image[..., 3]
    return Picture(image[..., :3], None if alpha.min() == largest(image.dtype) else np.ascontiguousarray(alpha))
