"""Conversion between pixels and tensors, bicubic enlargement, and transparency."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nlsn_plugin.data.pictures import Picture


def largest(dtype: np.dtype[Any]) -> float:
    """The value of white: the largest integer, or 1.0 for floats."""
    return float(np.iinfo(dtype).max) if dtype.kind == 'u' else 1.0


def as_tensor(colour: np.ndarray) -> Tensor:
    """Convert uint8, uint16 or float pixels [H, W(, 3)] to float32 [1, C, H, W] in [0, 1]."""
    colour = np.ascontiguousarray(colour)  # other strides would change the rounding of sums
    planes = np.moveaxis(colour, -1, 0) if colour.ndim == 3 else colour[None]
    return torch.from_numpy(np.divide(planes, largest(colour.dtype), dtype=np.float32))[None]


def quantised(pixels: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Clip pixels to [0, 1], and convert them to uint8 or uint16, rounded, or to float."""
    if dtype.kind != 'u':
        return np.ascontiguousarray(pixels.clip(0, 1), dtype=dtype)
    levels = np.multiply(pixels, largest(dtype), dtype=np.float32)
    np.rint(levels, out=levels)
    np.clip(levels, 0, largest(dtype), out=levels)
    return np.ascontiguousarray(levels, dtype=dtype)


def larger_alpha(alpha: np.ndarray, scale: int) -> np.ndarray:
    """Enlarge alpha by bicubic: opaque and clear areas stay so, which no network guarantees."""
    return quantised(bicubic(as_tensor(alpha), scale)[0, 0].numpy(), alpha.dtype)


def bicubic(x: Tensor, scale: int) -> Tensor:
    """Enlarge [N, C, H, W] to [N, C, H * scale, W * scale], with the kernel of MATLAB and Pillow (a = -0.5)."""
    size = [scale * edge for edge in x.shape[-2:]]
    return F.interpolate(x, size, mode='bicubic', align_corners=False, antialias=True)


def larger_by_bicubic(picture: Picture, scale: int) -> Picture:
    """Enlarge a picture by bicubic, for comparison with a network's."""
    colour = picture.colour if picture.alpha is None else bleed(picture.colour, picture.alpha)
    planes = bicubic(as_tensor(colour), scale)[0].numpy()
    pixels = quantised(np.moveaxis(planes, 0, -1) if colour.ndim == 3 else planes[0], colour.dtype)
    return Picture(pixels, None if picture.alpha is None else larger_alpha(picture.alpha, scale))


def bleed(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Replace the colour of each fully transparent pixel by that of the nearest pixel that is not.

    Otherwise the hidden colour, usually black, would show as a halo around visible areas after enlargement.
    """
    hidden = alpha == 0
    if not hidden.any() or hidden.all():
        return colour
    _, labels = cv2.distanceTransformWithLabels(
        hidden.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    of_label = np.zeros((labels.max() + 1, *colour.shape[2:]), colour.dtype)
    of_label[labels[~hidden]] = colour[~hidden]
    return of_label[labels]
