"""What Pillow and OpenCV leave undone in PNG: chunks, and the colour that is transparent."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from typing import BinaryIO

import numpy as np

END_OF_HEADER = 8 + 25
"""The signature, and the first chunk, which is IHDR."""
BITS = 24
"""Where the header has the bits of a sample."""


def chunk(name: bytes, content: bytes) -> bytes:
    """Length, name, content and checksum."""
    return struct.pack('>I', len(content)) + name + content + struct.pack('>I', zlib.crc32(name + content))


def with_chunks(content: bytes, chunks: Iterable[bytes]) -> bytes:
    """A file with chunks behind its header."""
    return content[:END_OF_HEADER] + b''.join(chunks) + content[END_OF_HEADER:]


def bits_of(file: BinaryIO) -> int:
    """Bits of a sample."""
    file.seek(BITS)
    return file.read(1)[0]


def late_exif(file: BinaryIO) -> bytes | None:
    """EXIF that lies behind the pixels, where Pillow finds it only once it has decoded them."""
    file.seek(END_OF_HEADER)
    while len(head := file.read(8)) == 8:
        length, name = struct.unpack('>I4s', head)
        if name == b'eXIf':
            return file.read(length)
        file.seek(length + 4, 1)
    return None


def alpha_of(pixels: np.ndarray, transparent: int | tuple[int, ...], bits: int) -> np.ndarray:
    """Alpha of [H, W(, 3)] in which one colour is transparent.

    Args:
        pixels: of the whole range of their type.
        transparent: the colour, in the `bits` of the file.
        bits: of a sample in the file.
    """
    white = np.iinfo(pixels.dtype).max
    colour = np.asarray(transparent) * (int(white) // (2**bits - 1))
    same = pixels == colour if pixels.ndim == 2 else (pixels == colour).all(axis=2)
    return np.where(same, 0, white).astype(pixels.dtype)
