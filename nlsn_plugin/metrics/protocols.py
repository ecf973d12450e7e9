"""Protocols for scoring super-resolution. They differ by up to a tenth of a dB, so results name the protocol.

All shave a border, compute PSNR and SSIM by BasicSR's functions on Y of BT.601 and on RGB, and average over images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import cv2
import numpy as np
from basicsr.metrics import calculate_psnr, calculate_ssim
from basicsr.metrics.metric_util import to_y_channel
from basicsr.utils import bgr2ycbcr
from basicsr.utils.matlab_functions import imresize

from nlsn_plugin.checks import nearest
from nlsn_plugin.data.images import enlarge
from nlsn_plugin.errors import DataError, UserError

METRICS = ('psnr_y', 'ssim_y', 'psnr_rgb', 'ssim_rgb')
SSIM_WINDOW = 11
"""Edge of SSIM's Gaussian window, in pixels."""


@dataclass(frozen=True)
class Protocol:
    """Definition of what is compared with what.

    Attributes:
        name: name of the protocol.
        luma: 'float' takes Y of the 8-bit RGB image as it is; '8-bit' rounds it to 8 bits, as MATLAB's rgb2ycbcr does.
        gray: 'rgb' scores gray files as RGB images of three equal planes, whose Y spans 219 of 255 levels, so that
            errors shrink by 0.859; 'raw' scores their own plane, with outputs turned gray by the weights of BT.601.
        bicubic: for the bicubic baseline, 'rgb' takes Y of the enlarged 8-bit RGB image; 'y' reduces and enlarges Y
            itself, or the gray plane, without rounding in between.
        about: description, with whose convention it is.
    """

    name: str
    luma: Literal['float', '8-bit']
    gray: Literal['rgb', 'raw']
    bicubic: Literal['rgb', 'y']
    about: str


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol('basicsr', 'float', 'rgb', 'rgb', "BasicSR's metrics on 8-bit RGB images"),
        Protocol('matlab', '8-bit', 'rgb', 'rgb', "8-bit RGB images, Y by MATLAB's rgb2ycbcr"),
        Protocol('vdsr', '8-bit', 'raw', 'y', 'as SRCNN and VDSR: bicubic on Y alone, gray files as they are'),
    )
}


def find_protocol(name: str, gray: Literal['rgb', 'raw'] | None = None) -> Protocol:
    """Find a protocol by its name; another rule for gray files, if given, becomes part of its name.

    Raises:
        UserError: there is no protocol of this name.
    """
    if name not in PROTOCOLS:
        raise UserError(f'there is no protocol {name}{nearest(name, PROTOCOLS)}')
    protocol = PROTOCOLS[name]
    if gray in (None, protocol.gray):
        return protocol
    return replace(protocol, name=f'{name}, gray {gray}', gray=gray)


class Planes(NamedTuple):
    """Planes of an image to score, in [0, 255]: Y [H, W] and colour, BGR [H, W, 3], or a gray plane [H, W] for both."""

    y: np.ndarray
    rgb: np.ndarray


def planes(image: np.ndarray, protocol: Protocol, is_gray: bool) -> Planes:
    """Planes of an 8-bit image that a protocol scores.

    Args:
        image: BGR [H, W, 3], or gray [H, W].
        protocol: the protocol.
        is_gray: whether the ground truth is a gray file.
    """
    if is_gray and protocol.gray == 'raw':
        gray = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        return Planes(gray, gray)
    colour = in_colour(image)
    return Planes(luma(colour, protocol), colour)


def bicubic_planes(lr: np.ndarray, truth: np.ndarray, scale: int, protocol: Protocol) -> Planes:
    """Planes of the bicubic baseline that a protocol scores.

    Args:
        lr: 8-bit, [h, w, 3] or [h, w].
        truth: 8-bit, [h * scale, w * scale, 3] or [h * scale, w * scale].
        scale: factor by which `lr` is enlarged.
        protocol: the protocol.
    """
    found = planes(enlarge(lr, scale), protocol, truth.ndim == 2)
    if protocol.bicubic == 'rgb':
        return found
    plane = planes(truth, protocol, truth.ndim == 2).y.astype(np.float32) / 255
    resized = imresize(imresize(plane, 1 / scale), scale)
    return found._replace(y=(resized * 255).round().clip(0, 255))


def in_colour(image: np.ndarray) -> np.ndarray:
    """Convert a gray image to three equal planes; return one in colour as it is."""
    return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.ndim == 2 else image


def luma(image: np.ndarray, protocol: Protocol) -> np.ndarray:
    """Y of BT.601, in [16, 235], of an 8-bit BGR image."""
    return bgr2ycbcr(image, y_only=True) if protocol.luma == '8-bit' else to_y_channel(image)[..., 0]


def score(output: Planes, truth: Planes, border: int) -> dict[str, float]:
    """Compute METRICS for an image; PSNR is infinite where both are equal.

    Args:
        output, truth: planes of the same size.
        border: number of pixels left out along each edge.

    Raises:
        DataError: the image is too small for SSIM's window.
    """
    height, width = truth.y.shape[:2]
    if min(height, width) < SSIM_WINDOW + 2 * border:
        raise DataError(
            f'{width}x{height} pixels are too few for SSIM within a border of {border}: '
            f'at least {SSIM_WINDOW + 2 * border} each way are needed'
        )
    return {
        'psnr_y': float(calculate_psnr(output.y, truth.y, border)),
        'ssim_y': float(calculate_ssim(output.y, truth.y, border)),
        'psnr_rgb': float(calculate_psnr(output.rgb, truth.rgb, border)),
        'ssim_rgb': float(calculate_ssim(output.rgb, truth.rgb, border)),
    }


def mean(values: list[float]) -> float:
    """Mean of the finite values, or infinity if all are infinite, as the PSNR of equal images is.

    The sum is exact, so that the order of the values does not matter.

    Raises:
        DataError: there are no values.
    """
    if not values:
        raise DataError('no image was measured: there is no mean')
    finite = [value for value in values if not math.isinf(value)]
    return math.fsum(finite) / len(finite) if finite else values[0]
