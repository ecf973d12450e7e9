"""Bicubic and a network's result side by side, at full size; of a large picture the part where they differ most."""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from nlsn_plugin.data.encoding import by_pillow, on_white, shallow
from nlsn_plugin.data.pictures import Picture
from nlsn_plugin.data.pixels import larger_by_bicubic
from nlsn_plugin.engine.details import densest

LARGEST = 800
"""Largest edge of the part that is shown of each picture, in pixels."""
BAR = 28
"""Height in pixels of the bar for the names."""
GAP = 8


def side_by_side(original: Picture, larger: Picture, scale: int) -> bytes:
    """Encode a PNG with bicubic on the left and the result on the right."""
    panels = [in_colour(picture) for picture in (larger_by_bicubic(original, scale), larger)]
    top, left = where_they_differ(*panels)
    panels = [panel[top : top + LARGEST, left : left + LARGEST] for panel in panels]
    height, width = panels[0].shape[:2]
    sheet = Image.new('RGB', (2 * width + GAP, height + BAR), 'white')
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(16)
    for number, (name, panel) in enumerate(zip((f'bicubic x{scale}', f'network x{scale}'), panels)):
        sheet.paste(Image.fromarray(panel), (number * (width + GAP), BAR))
        draw.text((number * (width + GAP) + 4, 4), name, 'black', font)
    return by_pillow(Picture(np.asarray(sheet), icc=larger.icc if larger.colour.ndim == 3 else None), 'PNG', 100)


def in_colour(picture: Picture) -> np.ndarray:
    """Convert a picture to 8-bit RGB, with transparent parts on white."""
    flat = on_white(shallow(picture) if picture.colour.dtype == np.uint16 else picture).colour
    return np.ascontiguousarray(flat if flat.ndim == 3 else np.dstack([flat] * 3))


def where_they_differ(one: np.ndarray, other: np.ndarray) -> tuple[int, int]:
    """Top and left of the part of LARGEST x LARGEST pixels in which two pictures differ most."""
    return densest(cv2.absdiff(one, other).sum(axis=2, dtype=np.float32), LARGEST, LARGEST)[:2]
