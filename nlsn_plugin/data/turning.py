"""Turning pictures upright, by the orientation that a camera wrote."""

from __future__ import annotations

import numpy as np
from PIL import ExifTags, Image

from nlsn_plugin.data.damage import DAMAGE

UPRIGHT = 1
TURNS = {2: (0, True), 3: (2, False), 4: (2, True), 5: (3, True), 6: (3, False), 7: (1, True), 8: (1, False)}
"""For each orientation of EXIF: the number of quarter turns to the left, and whether to mirror left and right then."""


def orientation_of(image: Image.Image) -> int:
    """Orientation as EXIF numbers it; UPRIGHT if it is missing or invalid."""
    try:
        # Not image.getexif(): for a PNG that decodes the pixels, to look behind them.
        found = Image.Image.getexif(image).get(ExifTags.Base.Orientation, UPRIGHT)
    except DAMAGE:  # to EXIF alone: the pixels may be intact
        return UPRIGHT
    return found if found in TURNS else UPRIGHT


def upright_size(width: int, height: int, orientation: int) -> tuple[int, int]:
    """Width and height after turning upright."""
    return (height, width) if orientation >= 5 else (width, height)


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn pixels [H, W(, C)] upright."""
    turns, mirrored = TURNS.get(orientation, (0, False))
    turned = np.rot90(pixels, turns)
    return turned[:, ::-1] if mirrored else turned


def upright_image(image: Image.Image, orientation: int) -> Image.Image:
    """Turn a Pillow image upright."""
    turns, mirrored = TURNS.get(orientation, (0, False))
    turned = image.rotate(90 * turns, expand=True) if turns else image
    return turned.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else turned
