"""Damaged files: what readers raise on them, and the one line that is said of it."""

from __future__ import annotations

import contextlib
import logging
import struct
import zlib
from collections.abc import Iterator

import cv2
from PIL import Image, PngImagePlugin
from tifffile import TiffFileError

from nlsn_plugin.compat import substituted
from nlsn_plugin.errors import DataError

DAMAGE = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, NotImplementedError),
    *(OSError, RuntimeError, SyntaxError, TypeError, ValueError, struct.error, zlib.error, cv2.error),
    TiffFileError,
)
"""What Pillow, tifffile and OpenCV raise on damaged files: whatever it is, the file is to blame, or memory ran out."""
LONGEST_TEXT = PngImagePlugin.MAX_TEXT_MEMORY
"""Bytes of a PNG's profile or of one of its texts, which all together have no more."""

for reader in ('PIL', 'tifffile'):
    logging.getLogger(reader).addHandler(logging.NullHandler())  # what they log of damage is raised too


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether Python, NumPy or OpenCV had too little memory."""
    return isinstance(error, MemoryError) or getattr(error, 'code', None) == cv2.Error.StsNoMem


@contextlib.contextmanager
def without_limits_of_pillow() -> Iterator[None]:
    """Images of any size, whose limits are ours, and profiles and texts of PNGs as long as those of other formats."""
    with substituted(Image, MAX_IMAGE_PIXELS=None), substituted(PngImagePlugin, MAX_TEXT_CHUNK=LONGEST_TEXT):
        yield


@contextlib.contextmanager
def named_in_errors(named: str) -> Iterator[None]:
    """Whatever a reader raises becomes one line that names the file.

    Raises:
        DataError: in the place of everything in DAMAGE.
    """
    try:
        yield
    except DataError:
        raise
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(f'{named} cannot be read: {error.strerror}') from error
        if ran_out_of_memory(error):
            raise DataError(f'{named} cannot be read: too little memory') from error
        reason = ' '.join(str(error).split())[:200] or type(error).__name__
        raise DataError(f'{named} is truncated or damaged: {reason}') from error
