"""Metadata of a picture that is kept (profile, EXIF, XMP, resolution), and notes on what is not."""

from __future__ import annotations

import io
import math
import re
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import tifffile
from PIL import Image

from nlsn_plugin.data import exif, tiff
from nlsn_plugin.data.damage import DAMAGE

RAW_EXIF = 'Raw profile type exif'
"""Keyword of the PNG text in which some programs put EXIF."""
UNREADABLE = 'its EXIF does not read and was left out'
XMP_TEXT = 'XML:com.adobe.xmp'
EXTENDED_XMP = re.compile(
    rb'\s+xmpNote:HasExtendedXMP\s*=\s*("[^"]*"|\'[^\']*\')|<xmpNote:HasExtendedXMP>[^<]*</xmpNote:HasExtendedXMP>'
)
"""Matches the reference of XMP to its extended part, as an attribute or an element."""
USUAL_GAMMA = 0.45455
"""About the gamma of sRGB, as PNG states it."""
USUAL_CHROMATICITIES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
"""Chromaticities of sRGB: x and y of white, red, green and blue."""
USUAL_CICP = (1, 13, 0, 1)
"""sRGB in PNG's cICP: numbers of the primaries, transfer function and matrix, and 1 for the full range of values."""
MOST_DPI = 65535


@dataclass
class Provenance:
    """What comes with the pixels; the attributes are those of `Picture`."""

    icc: bytes | None = None
    exif: bytes = b''
    xmp: bytes = b''
    dpi: tuple[float, float] | None = None
    notes: list[str] = field(default_factory=list)


def of_image(image: Image.Image) -> Provenance:
    """Provenance of an image that Pillow has decoded."""
    info, found = image.info, Provenance(image.info.get('icc_profile') or None)
    frames = getattr(image, 'n_frames', 1)
    if frames > 1:
        found.notes.append(f'the first of its {frames} pictures was taken')
    content = info.get('exif') or b''
    if RAW_EXIF in info:
        try:
            content = bytes.fromhex(''.join(str(info[RAW_EXIF]).split('\n')[3:]))
        except ValueError:
            found.notes.append(UNREADABLE)
    if content:
        found.exif = kept_exif(io.BytesIO(content), found.notes)
    xmp = info.get('xmp') or info.get(XMP_TEXT) or b''
    found.xmp = kept_xmp(xmp.encode() if isinstance(xmp, str) else xmp, found.notes)
    is_said = image.format != 'JPEG' or info.get('jfif_unit') or exif.names(found.exif, exif.RESOLUTION[0])
    found.dpi = sound(info.get('dpi')) if is_said else None
    found.notes += left_out(image)
    return found


def of_tiff(page: tifffile.TiffPage, file: BinaryIO) -> Provenance:
    """Provenance of the first page of a TIFF."""
    found = Provenance()
    if (pages := len(page.parent.pages)) > 1:
        found.notes.append(f'the first of its {pages} pictures was taken')
    found.icc = tiff.bytes_of(page, tiff.ICC) or None
    found.xmp = kept_xmp(tiff.bytes_of(page, tiff.XMP), found.notes)
    file.seek(0)
    if page.parent.is_bigtiff:
        found.notes.append('EXIF of a BigTIFF is not read')
    else:
        found.exif = kept_exif(file, found.notes, without=exif.RESOLUTION)
    found.dpi = sound(tiff.dpi_of(page))
    if tiff.tag(page, tiff.IPTC) is not None or tiff.tag(page, tiff.PHOTOSHOP) is not None:
        found.notes.append("Photoshop's block (IPTC) was left out")
    return found


def kept_exif(file: BinaryIO, notes: list[str], without: tuple[int, ...] = ()) -> bytes:
    """Keep EXIF without the orientation, the thumbnail, and what describes the old file; return it as a block."""
    try:
        parsed = exif.parse(file, without)
    except DAMAGE:
        notes.append(UNREADABLE)
        return b''
    if parsed.lost:
        notes.append(f'values of its EXIF do not read and were left out: {parsed.lost}')
    return exif.block(parsed)


def kept_xmp(xmp: bytes, notes: list[str]) -> bytes:
    """Set the orientation in XMP to upright, and drop its reference to extended XMP, in other JPEG segments."""
    xmp, extended = EXTENDED_XMP.subn(b'', xmp)
    if extended:
        notes.append('the extended part of its XMP was left out')
    return re.sub(rb'(tiff:Orientation\s*(?:=\s*["\']|>)\s*)\d+', rb'\g<1>1', xmp)


def sound(dpi: Any) -> tuple[float, float] | None:
    """The resolution as floats if all formats can hold it (1 to 65535 dpi), else None."""
    try:
        across, down = (float(number) for number in dpi)
    except DAMAGE:
        return None
    return (across, down) if all(math.isfinite(x) and 1 <= x <= MOST_DPI for x in (across, down)) else None


def left_out(image: Image.Image) -> list[str]:
    """Return a line for each kind of metadata of an image that is not kept."""
    notes, info = [], image.info
    texts = [key for key in getattr(image, 'text', {}) if key not in (RAW_EXIF, XMP_TEXT)]
    if texts:
        notes.append(f'its texts were left out: {" ".join(", ".join(texts).split())[:100]}')
    if info.get('comment'):
        notes.append('its comment was left out')
    if info.get('photoshop'):
        notes.append("Photoshop's block (IPTC) was left out")
    cicp = tuple(info.get('cicp', USUAL_CICP))
    if cicp != USUAL_CICP:  # takes precedence over the other statements of colour
        notes.append(f'its colour space, cICP {"-".join(map(str, cicp))}, was left out: colours may look another way')
    if 'srgb' in info or info.get('icc_profile'):
        return notes
    gamma = info.get('gamma')
    if gamma and abs(gamma - USUAL_GAMMA) > 0.01:
        notes.append(f'its gamma of {gamma:g} was left out: colours may look another way')
    found = info.get('chromaticity', USUAL_CHROMATICITIES)
    if any(abs(one - usual) > 0.01 for one, usual in zip(found, USUAL_CHROMATICITIES)):
        notes.append('its chromaticities (cHRM) were left out: colours may look another way')
    return notes
