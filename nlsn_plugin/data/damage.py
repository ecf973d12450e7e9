"""Damaged files: what readers raise on them, and the one-line error that replaces it."""

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
"""What Pillow, tifffile and OpenCV raise on damaged files, or when memory runs out."""
LONGEST_TEXT = PngImagePlugin.MAX_TEXT_MEMORY
"""Most bytes of a PNG's profile, and of each of its texts: as many as Pillow allows for all its texts together."""

for reader in ('PIL', 'tifffile'):
    logging.getLogger(reader).addHandler(logging.NullHandler())  # damage that they log is raised too


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, NumPy or OpenCV means that memory ran out."""
    return isinstance(error, MemoryError) or getattr(error, 'code', None) == cv2.Error.StsNoMem


@contextlib.contextmanager
def without_limits_of_pillow() -> Iterator[None]:
    """Let Pillow open images of any size, which callers limit themselves, and long profiles and texts of PNGs."""
    with substituted(Image, MAX_IMAGE_PIXELS=None), substituted(PngImagePlugin, MAX_TEXT_CHUNK=LONGEST_TEXT):
        yield


@contextlib.contextmanager
def named_in_errors(named: str) -> Iterator[None]:
    """Turn what a reader raises into an error of one line that names the file.

    Raises:
        DataError: in place of any error of DAMAGE.
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
