"""Parts of PNG that Pillow does not handle: some chunks, 16 bits in several channels, and some transparent colours."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import cv2
import numpy as np

END_OF_HEADER = 8 + 25
"""Length in bytes of the signature and the first chunk, IHDR."""
BITS, KIND = 24, 25
"""Offsets of the bit depth and the colour type."""
GRAY_AND_ALPHA = 4
PIXELS, SAYING = b'IDAT', (b'eXIf', b'iTXt', b'tEXt', b'zTXt')
"""Names of the chunks of pixels, and of EXIF and texts (XMP too), which may also stand behind the pixels."""


def chunk(name: bytes, content: bytes) -> bytes:
    """Encode a chunk: length, name, content and checksum."""
    return struct.pack('>I', len(content)) + name + content + struct.pack('>I', zlib.crc32(name + content))


def with_chunks(content: bytes, chunks: Iterable[bytes]) -> bytes:
    """Insert chunks into a file, after its header."""
    return content[:END_OF_HEADER] + b''.join(chunks) + content[END_OF_HEADER:]


def bits_of(file: BinaryIO) -> int:
    """Bits per sample, by the header."""
    file.seek(BITS)
    return file.read(1)[0]


def deep(file: BinaryIO) -> tuple[np.ndarray, np.ndarray | None]:
    """Decode a PNG of 16 bits in several channels, into colour [H, W, 3] or [H, W] and alpha [H, W] or None.

    Raises:
        ValueError: OpenCV cannot decode it.
    """
    file.seek(0)
    content = file.read()
    found = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if found is None or found.dtype != np.uint16 or found.ndim != 3:
        raise ValueError('16-bit pixels that OpenCV does not read')
    colour = found[..., 0] if content[KIND] == GRAY_AND_ALPHA else found[..., 2::-1]
    return colour, found[..., 3] if found.shape[2] == 4 else None


def chunks_of(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Yield name and length of each chunk between header and end, with the file positioned at its content."""
    place = file.seek(END_OF_HEADER)
    while len(head := file.read(8)) == 8:
        length, name = struct.unpack('>I4s', head)
        if name == b'IEND':
            return
        yield name, length
        place = file.seek(place + 8 + length + 4)


def find(file: BinaryIO, wanted: bytes) -> bytes | None:
    """Content of the first chunk of this name before the pixels; None if there is none."""
    for name, length in chunks_of(file):
        if name == PIXELS:
            break
        if name == wanted:
            return file.read(length)
    return None


def behind_pixels(file: BinaryIO) -> bytes | None:
    """Make a PNG without pixels of the texts and EXIF behind the pixels (as ExifTool writes them); None without any."""
    said, is_behind = [], False
    for name, length in chunks_of(file):
        is_behind = is_behind or name == PIXELS
        if is_behind and name in SAYING:
            said.append(chunk(name, file.read(length)))
    file.seek(0)
    return with_chunks(file.read(END_OF_HEADER) + chunk(PIXELS, b''), said) if said else None


def transparent(file: BinaryIO) -> tuple[int, ...] | None:
    """The gray value or RGB that is transparent, in the bits of the file (Pillow sometimes scales it); None if none is.

    Raises:
        struct.error: its chunk is too short.
    """
    file.seek(KIND)
    channels = {0: 1, 2: 3}.get(file.read(1)[0])
    found = None if channels is None else find(file, b'tRNS')
    return None if found is None else struct.unpack_from(f'>{channels}H', found)


def alpha_of(pixels: np.ndarray, seen_through: tuple[int, ...], bits: int) -> np.ndarray:
    """Make alpha [H, W] for pixels of which one colour is transparent.

    Args:
        pixels: [H, W] or [H, W, 3], scaled to the whole range of their dtype.
        seen_through: the transparent colour, in the `bits` of the file.
        bits: bits per sample in the file.
    """
    white = np.iinfo(pixels.dtype).max
    colour = np.asarray(seen_through) * (int(white) // (2**bits - 1))
    same = pixels == colour if pixels.ndim == 2 else (pixels == colour).all(axis=2)
    return np.where(same, 0, white).astype(pixels.dtype)
