"""Reading and writing EXIF tag by tag. Values that are kept keep every byte, whatever encoding their text has.

Pillow's own writer replaces text that is not ASCII by question marks, and guesses the types of values anew.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass, field
from typing import BinaryIO

from PIL import ExifTags

PREFIX = b'Exif\0\0'
MAIN, CAMERA, PLACE = 0, int(ExifTags.IFD.Exif), int(ExifTags.IFD.GPSInfo)
INTEROPERABILITY = int(ExifTags.IFD.Interop)
"""Directories that are kept: the main one, and those that entries of these tags point to. In the last one cameras say
that colours are Adobe RGB, mostly without adding a profile."""
HOLDERS = {CAMERA: MAIN, PLACE: MAIN, INTEROPERABILITY: CAMERA}
"""Maps each directory to the one that holds the entry pointing to it."""
WIDTH, HEIGHT = int(ExifTags.Base.ExifImageWidth), int(ExifTags.Base.ExifImageHeight)
RESOLUTION = (int(ExifTags.Base.XResolution), int(ExifTags.Base.YResolution), int(ExifTags.Base.ResolutionUnit))
TEXTS = (
    *(ExifTags.Base.ImageDescription, ExifTags.Base.Make, ExifTags.Base.Model, ExifTags.Base.DateTime),
    *(ExifTags.Base.Artist, ExifTags.Base.HostComputer, ExifTags.Base.Copyright, ExifTags.Base.Software),
)
KEPT = {
    *(*TEXTS, *RESOLUTION, ExifTags.Base.DocumentName, ExifTags.Base.Rating),
    *(ExifTags.Base.RatingPercent, ExifTags.Base.XPTitle, ExifTags.Base.XPComment, ExifTags.Base.XPAuthor),
    *(ExifTags.Base.XPKeywords, ExifTags.Base.XPSubject),
}
"""Tags of the main directory that are kept; the others describe the layout of the old file."""
FOR_THE_OLD_PIXELS = (
    *(ExifTags.Base.MakerNote, ExifTags.Base.RelatedImageFileFormat),
    *(ExifTags.Base.RelatedImageWidth, ExifTags.Base.RelatedImageLength),
)
"""Tags of the other directories that are left out, since they describe the old pixels."""
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
"""Size of one value in bytes, by TIFF's number of its type."""
TEXT, LONG = 2, 4
MOST_BYTES = 2**24
"""Limit for all values of a directory: in a damaged file many entries may point to the same bytes."""

Row = tuple[int, int, int, bytes]


@dataclass(frozen=True)
class Entry:
    """Type, number and bytes of a tag's values."""

    type: int
    count: int
    content: bytes


@dataclass
class Exif:
    """A block of EXIF, as directories of entries.

    Attributes:
        order: byte order, '<' (little-endian) or '>' (big-endian).
        directories: those of MAIN and HOLDERS that are there.
        lost: number of entries and directories that could not be read.
    """

    order: str = '<'
    directories: dict[int, dict[int, Entry]] = field(default_factory=dict)
    lost: int = 0


def parse(file: BinaryIO, without: tuple[int, ...] = ()) -> Exif:
    """Parse what is to be kept of a block of EXIF, or of a TIFF: no thumbnail, and nothing that describes the old file.

    Args:
        file: read from its first byte; any prefixes 'Exif' are skipped.
        without: further tags of the main directory to leave out.

    Raises:
        ValueError, struct.error: the block, or its main directory, is damaged.
    """
    start = 0
    while file.read(len(PREFIX)) == PREFIX:
        start += len(PREFIX)
    file.seek(start)
    head = file.read(8)
    order = {b'II*\0': '<', b'MM\0*': '>'}.get(head[:4])
    if order is None:
        raise ValueError('no EXIF')
    exif = Exif(order)
    rows = rows_of(file, start, head[4:], order)
    main = read_rows(file, start, [row for row in rows if row[0] in {CAMERA, PLACE, *KEPT} - {*without}], exif)
    exif.directories[MAIN] = main
    for part, holder in HOLDERS.items():
        pointer = exif.directories.get(holder, {}).pop(part, None)
        if pointer is None:
            continue
        try:
            rows = rows_of(file, start, pointer.content[:4], order)
            kept = [row for row in rows if row[0] not in FOR_THE_OLD_PIXELS]
            exif.directories[part] = read_rows(file, start, kept, exif)
        except (ValueError, struct.error):
            exif.lost += 1
    return exif


def rows_of(file: BinaryIO, start: int, pointer: bytes, order: str) -> list[Row]:
    """Read the rows of the directory that `pointer` points to: tag, type, count, and the value or its offset.

    Raises:
        ValueError, struct.error: the directory is damaged.
    """
    file.seek(start + struct.unpack(f'{order}I', pointer)[0])
    (length,) = struct.unpack(f'{order}H', file.read(2))
    rows = file.read(12 * length)
    if len(rows) < 12 * length:
        raise ValueError('a directory of EXIF ends early')
    return [struct.unpack_from(f'{order}HHI4s', rows, 12 * number) for number in range(length)]


def read_rows(file: BinaryIO, start: int, rows: list[Row], exif: Exif) -> dict[int, Entry]:
    """Read the values of rows; those that cannot be read are counted in `exif.lost`."""
    entries, room = {}, MOST_BYTES
    for tag, kind, count, value in rows:
        size = SIZES.get(kind, MOST_BYTES) * count
        content = value[:size]
        if 4 < size <= room:
            file.seek(start + struct.unpack(f'{exif.order}I', value)[0])
            content = file.read(size)
        if len(content) < size:
            exif.lost += 1
        else:
            room -= size
            entries[tag] = Entry(kind, count, content)
    return entries


def block(exif: Exif) -> bytes:
    """Encode directories as a block of EXIF; b'' if they are empty."""
    parts = {part: dict(entries) for part, entries in exif.directories.items() if entries}
    if not parts:
        return b''
    for part, holder in reversed(HOLDERS.items()):
        if part in parts:  # a placeholder: offsets are known once all are laid out
            parts.setdefault(holder, {})[part] = Entry(LONG, 1, bytes(4))
    places, end = {}, 8
    for part in sorted(parts):  # MAIN is the first
        places[part] = end
        end += len(laid_out(parts[part], end, exif.order))
    for part, place in places.items():
        if part != MAIN:
            parts[HOLDERS[part]][part] = Entry(LONG, 1, struct.pack(f'{exif.order}I', place))
    head = (b'II*\0' if exif.order == '<' else b'MM\0*') + struct.pack(f'{exif.order}I', places[MAIN])
    return PREFIX + head + b''.join(laid_out(parts[part], place, exif.order) for part, place in places.items())


def laid_out(entries: dict[int, Entry], place: int, order: str) -> bytes:
    """Encode a directory at offset `place`, followed by the values that do not fit into its rows, in an even length."""
    rows, values = struct.pack(f'{order}H', len(entries)), b''
    begin = place + 2 + 12 * len(entries) + 4
    for tag, entry in sorted(entries.items()):
        rows += struct.pack(f'{order}HHI', tag, entry.type, entry.count)
        if len(entry.content) <= 4:
            rows += entry.content.ljust(4, b'\0')
        else:
            rows += struct.pack(f'{order}I', begin + len(values))
            values += entry.content + bytes(len(entry.content) % 2)
    return rows + bytes(4) + values


def of_size(content: bytes, width: int, height: int) -> bytes:
    """Replace the width and height that a block names, if it names them."""
    exif = parse(io.BytesIO(content))
    for tag, edge in ((WIDTH, width), (HEIGHT, height)):
        if tag in exif.directories.get(CAMERA, {}):
            exif.directories[CAMERA][tag] = Entry(LONG, 1, struct.pack(f'{exif.order}I', edge))
    return block(exif)


def names(content: bytes, tag: int) -> bool:
    """Whether the main directory of a block has a tag."""
    return bool(content) and tag in parse(io.BytesIO(content)).directories[MAIN]


def texts(content: bytes) -> tuple[dict[int, bytes], bool]:
    """Return the TEXTS of a block by tag, and whether it holds anything else, other than the resolution."""
    if not content:
        return {}, False
    exif = parse(io.BytesIO(content))
    main = exif.directories[MAIN]
    found = {tag: main[tag].content.rstrip(b'\0') for tag in map(int, TEXTS) if tag in main and main[tag].type == TEXT}
    return found, len(exif.directories) > 1 or bool(main.keys() - found.keys() - {*RESOLUTION})
