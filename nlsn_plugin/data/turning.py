"""Pictures turned upright, as a camera's orientation says."""

from __future__ import annotations

import numpy as np
from PIL import ExifTags, Image

from nlsn_plugin.data.damage import DAMAGE

UPRIGHT = 1
TURNS = {2: (0, True), 3: (2, False), 4: (2, True), 5: (3, True), 6: (3, False), 7: (1, True), 8: (1, False)}
"""EXIF's orientations: quarter turns to the left, and then whether to mirror left and right."""


def orientation_of(image: Image.Image) -> int:
    """EXIF's number, UPRIGHT if it is none."""
    try:
        # not image.getexif(): of a PNG, that decodes the pixels to look behind them
        found = Image.Image.getexif(image).get(ExifTags.Base.Orientation, UPRIGHT)
    except DAMAGE:  # of EXIF alone
        return UPRIGHT
    return found if found in TURNS else UPRIGHT


def upright_size(width: int, height: int, orientation: int) -> tuple[int, int]:
    """Width and height, turned upright."""
    return (height, width) if orientation >= 5 else (width, height)


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """[H, W(, C)], turned."""
    turns, mirrored = TURNS.get(orientation, (0, False))
    turned = np.rot90(pixels, turns)
    return turned[:, ::-1] if mirrored else turned


def upright_image(image: Image.Image, orientation: int) -> Image.Image:
    """As `upright`, of Pillow's images."""
    turns, mirrored = TURNS.get(orientation, (0, False))
    turned = image.rotate(90 * turns, expand=True) if turns else image
    return turned.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else turned
