"""Pixels of TIFFs, whatever way they lie in the file."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from nlsn_plugin.data.encoding import encode
from nlsn_plugin.data.pictures import Picture, look, read
from nlsn_plugin.engine.measuring.memory import process_memory
from nlsn_plugin.errors import DataError

CHANNELS = {'gray': 1, 'gray with alpha': 2, 'RGB': 3, 'RGBA': 4}


def pixels(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def turned(found: np.ndarray, orientation: int) -> np.ndarray:
    """By the words of TIFF 6.0: where the 0th row, and the 0th column, of what lies in the file are to be seen."""
    if orientation >= 5:  # 0th row: left (5, 8) or right (6, 7)
        found = found.swapaxes(0, 1)
    from_right, from_bottom = orientation in (2, 3, 6, 7), orientation in (3, 4, 7, 8)
    return found[:: -1 if from_bottom else 1, :: -1 if from_right else 1]


def written(found: np.ndarray, orientation: int = 1, **settings: object) -> bytes:
    """A TIFF of [H, W, C]."""
    channels = found.shape[2]
    settings = {'photometric': 'rgb' if channels > 2 else 'minisblack', 'planarconfig': 'contig', **settings}
    if channels in (2, 4):
        settings = {'extrasamples': ['unassalpha'], **settings}
    if settings['planarconfig'] == 'separate':
        found = np.moveaxis(found, -1, 0)
    elif channels == 1:
        found = found[..., 0]
    stream = io.BytesIO()
    turn = [(274, 3, 1, orientation, True)] if orientation > 1 else []
    tifffile.imwrite(stream, found, extratags=turn, metadata=None, **settings)
    return stream.getvalue()


@pytest.mark.parametrize('path', [False, True], ids=['bytes', 'path'])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
@pytest.mark.parametrize('kind', CHANNELS)
@pytest.mark.parametrize('planes', ['contig', 'separate'])
@pytest.mark.parametrize('order', ['<', '>'])
@pytest.mark.parametrize('compression', [None, 'zlib'])
def test_pixels_are_those_that_were_written(
    path: bool, dtype: type, kind: str, planes: str, order: str, compression: str | None, tmp_path: Path
) -> None:
    channels = CHANNELS[kind]
    if planes == 'separate' and channels == 1:
        planes = 'contig'
    original = pixels(5, 7, channels, dtype=dtype)
    for orientation in range(1, 9):
        content = written(original, orientation, planarconfig=planes, byteorder=order, compression=compression)
        source: Path | bytes = content
        if path:
            source = tmp_path / 'x.tif'
            source.write_bytes(content)
        found, expected, header = read(source, 'x'), turned(original, orientation), look(source, 'x')
        assert found.notes == []
        assert found.colour.dtype == dtype
        assert (header.height, header.width) == found.colour.shape[:2]
        colour = expected[..., :3] if channels > 2 else expected[..., 0]
        np.testing.assert_array_equal(found.colour, colour)
        if channels in (2, 4):
            np.testing.assert_array_equal(found.alpha, expected[..., -1])
        else:
            assert found.alpha is None


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
@pytest.mark.parametrize('layout', [{'rowsperstrip': 2}, {'tile': (16, 16)}, {'tile': (32, 16)}])
@pytest.mark.parametrize('packing', [{}, {'compression': 'zlib'}, {'compression': 'zlib', 'predictor': True}])
@pytest.mark.parametrize('planes', ['contig', 'separate'])
@pytest.mark.parametrize('order', ['<', '>'])
def test_strips_tiles_and_predictors(
    dtype: type, layout: dict[str, object], packing: dict[str, object], planes: str, order: str
) -> None:
    original = pixels(37, 21, 3, dtype=dtype)
    content = written(original, 6, planarconfig=planes, byteorder=order, **layout, **packing)
    np.testing.assert_array_equal(read(content, 'x').colour, turned(original, 6))


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
@pytest.mark.parametrize('compression', [None, 'zlib'])
def test_white_may_be_zero(dtype: type, compression: str | None) -> None:
    original = pixels(5, 7, 1, dtype=dtype)
    found = read(written(np.invert(original), photometric='miniswhite', compression=compression), 'x')
    np.testing.assert_array_equal(found.colour, original[..., 0])


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('channels', [1, 3, 4])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_other_compressions_are_read_by_libtiff(orientation: int, channels: int, dtype: type, tmp_path: Path) -> None:
    original = pixels(40, 50, channels, dtype=dtype)
    path = tmp_path / 'x.tif'
    packed = [cv2.IMWRITE_TIFF_COMPRESSION, 5]  # LZW
    cv2.imwrite(str(path), original[..., [2, 1, 0, 3][:channels]] if channels > 1 else original, packed)
    with tifffile.TiffFile(path, mode='r+') as file:
        assert file.pages[0].compression == 5
        tag = file.pages[0].tags.get(274)
        place, order = (tag.valueoffset, file.byteorder) if tag else (None, '<')
    if place is None:
        content = with_orientation(path.read_bytes(), orientation)
    else:
        patched = bytearray(path.read_bytes())
        struct.pack_into(order + 'H', patched, place, orientation)
        content = bytes(patched)
    path.write_bytes(content)
    expected = turned(original, orientation)
    for source in (content, path):
        found = read(source, 'x')
        np.testing.assert_array_equal(found.colour, expected[..., :3] if channels > 2 else expected[..., 0])
        if channels == 4:
            np.testing.assert_array_equal(found.alpha, expected[..., 3])
    assert (look(path, 'x').height, look(path, 'x').width) == expected.shape[:2]


def with_orientation(content: bytes, orientation: int) -> bytes:
    """A little-endian TIFF of one page, its directory anew at the end, with an orientation."""
    assert content[:4] == b'II*\0'
    (place,) = struct.unpack('<I', content[4:8])
    (length,) = struct.unpack('<H', content[place : place + 2])
    rows = [content[place + 2 + 12 * n : place + 14 + 12 * n] for n in range(length)]
    rows.append(struct.pack('<HHIHH', 274, 3, 1, orientation, 0))
    content += bytes(len(content) % 2)
    directory = struct.pack('<H', len(rows)) + b''.join(sorted(rows, key=lambda row: row[:2][::-1])) + bytes(4)
    return content[:4] + struct.pack('<I', len(content)) + content[8:] + directory


@pytest.mark.parametrize(
    ('mode', 'compression'),
    [
        *(('1', 'group4'), ('1', None), ('P', 'tiff_lzw'), ('P', None), ('CMYK', 'tiff_lzw'), ('YCbCr', None)),
        *(('L', 'jpeg'), ('RGB', 'jpeg'), ('RGB', 'packbits')),
    ],
)
@pytest.mark.parametrize('orientation', [1, 4, 6])
def test_what_pillow_reads_is_turned_once(mode: str, compression: str | None, orientation: int, tmp_path: Path) -> None:
    smooth = cv2.GaussianBlur(pixels(32, 48, 3), (0, 0), 5)
    image = Image.fromarray(smooth)
    image = image.quantize(7) if mode == 'P' else image.convert(mode)
    path = tmp_path / 'x.tif'
    image.save(path, compression=compression, tiffinfo={274: orientation})
    expected = turned(np.asarray(image.convert('L' if mode in ('1', 'L') else 'RGB')), orientation)
    assert (look(path, 'x').height, look(path, 'x').width) == expected.shape[:2]
    for source in (path, path.read_bytes()):
        found = read(source, 'x')
        assert np.abs(found.colour.astype(int) - expected).max() <= (8 if compression == 'jpeg' else 0)


def test_cmyk_of_any_layout_is_converted_alike() -> None:
    original = pixels(6, 9, 4)
    expected = np.asarray(Image.fromarray(original, 'CMYK').convert('RGB'))
    for found in (original, original.astype(np.uint16) * 257):
        for planes in ('contig', 'separate'):
            content = written(found, 8, photometric='separated', planarconfig=planes, extrasamples=[])
            np.testing.assert_array_equal(read(content, 'x').colour, turned(expected, 8))


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_only_what_is_called_transparency_is_taken_for_it(dtype: type) -> None:
    original = pixels(5, 7, 4, dtype=dtype)
    found = read(written(original, extrasamples=['unspecified']), 'x')
    assert found.alpha is None
    assert found.notes == ['channels that hold neither colour nor transparency were left out: 1']
    np.testing.assert_array_equal(found.colour, original[..., :3])
    content = written(np.dstack([original, original[..., :1]]), extrasamples=['unspecified', 'unassalpha'])
    np.testing.assert_array_equal(read(content, 'x').alpha, original[..., 0])


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_colours_that_are_multiplied_by_alpha_are_divided_again(dtype: type) -> None:
    white = np.iinfo(dtype).max
    colour, alpha = pixels(4, 4, 3, dtype=dtype), np.full((4, 4), white // 2 + 1, dtype)
    multiplied = (colour.astype(np.uint32) * alpha[..., None] // white).astype(dtype)
    found = read(written(np.dstack([multiplied, alpha]), extrasamples=['assocalpha']), 'x')
    assert np.abs(found.colour.astype(int) - colour).max() <= 2
    assert (found.alpha == alpha).all()


def test_a_bigtiff_is_read() -> None:
    original = pixels(5, 7, 3, dtype=np.uint16)
    found = read(written(original, 3, bigtiff=True), 'x')
    np.testing.assert_array_equal(found.colour, turned(original, 3))


@pytest.mark.parametrize(
    ('array', 'settings', 'said'),
    [
        (np.zeros((4, 4), np.float32), {}, 'x is a TIFF of float32 pixels: 8 or 16 bits, without a sign, are expected'),
        (np.zeros((4, 4), np.int16), {}, 'x is a TIFF of int16 pixels: 8 or 16 bits, without a sign, are expected'),
        (np.zeros((4, 4), np.uint32), {}, 'x is a TIFF of 32-bit pixels: 8 or 16 bits, without a sign, are expected'),
        (
            np.zeros((4, 4, 3), np.uint8),
            {'photometric': 'cielab'},
            'x is a TIFF of the colours CIELAB: gray, RGB, palette or CMYK is expected',
        ),
        (
            np.zeros((4, 4, 12), np.uint8),
            {'photometric': 'minisblack', 'planarconfig': 'contig'},
            'x is a TIFF of MINISBLACK with 12 channels, 1 deep: 1, and one of transparency, are expected',
        ),
    ],
)
def test_kinds_that_are_not_read_are_named(array: np.ndarray, settings: dict[str, object], said: str) -> None:
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, metadata=None, **settings)
    with pytest.raises(DataError) as found:
        read(stream.getvalue(), 'x')
    assert str(found.value) == said


@pytest.mark.parametrize(
    ('tags', 'said'),
    [
        ({259: 34712}, '8-bit RGB in compression JPEG2000'),
        ({259: 5, 284: 2}, '16-bit RGB in separate planes in compression LZW'),
        ({262: 6, 284: 2}, '8-bit YCBCR in separate planes in compression NONE'),
        ({259: 5, 262: 1, 277: 2}, '16-bit MINISBLACK with 2 channels in compression LZW'),
        ({259: 5, 277: 5}, '16-bit RGB with 5 channels in compression LZW'),
    ],
)
def test_compressions_that_are_not_read_are_named(tags: dict[int, int], said: str) -> None:
    dtype = np.uint16 if said.startswith('16') else np.uint8
    content = patched(written(pixels(4, 4, 3, dtype=dtype)), tags)
    with pytest.raises(DataError) as found:
        read(content, 'x')
    assert str(found.value) == f'x is a TIFF of {said}, which is not read: save it without compression, or as PNG'


def test_16_bits_in_either_order_are_no_8() -> None:
    original = pixels(5, 7, 1, dtype=np.uint16)
    assert read(written(original, byteorder='>'), 'x').notes == []


@pytest.mark.parametrize('compression', [None, 'zlib'])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_no_part_may_be_missing(compression: str | None, dtype: type) -> None:
    content = written(pixels(40, 30, 3, dtype=dtype), compression=compression, rowsperstrip=10)
    for length in (len(content) - 1, len(content) // 2, 100, 9, 4):
        with pytest.raises(DataError, match=r'^x is truncated or damaged: .+$') as found:
            read(content[:length], 'x')
        assert '\n' not in str(found.value)


def test_bombs_are_refused_before_memory_is_taken() -> None:
    with_large_parts = written(pixels(16, 16, 1), tile=(16, 16))
    claims = written(pixels(16, 16, 1))
    bomb = written(np.zeros((16, 16, 1), np.uint8), compression='zlib')
    contents = [
        (patched(claims, {256: 30_000, 257: 30_000}), 'says that it has 30000x30000 pixels'),
        (patched(with_large_parts, {322: 2**15, 323: 2**15}), 'parts of 32768x32768 pixels'),
        (patched(claims, {277: 60_000}), 'with 60000 channels'),
        (patched(claims, {256: 9_000, 257: 9_000}), 'truncated or damaged'),
        (inflating(bomb), 'it has more bytes than its size says'),
    ]
    Path('/proc/self/clear_refs').write_text('5')  # forget the peak so far
    before = process_memory('VmRSS')
    for content, said in contents:
        with pytest.raises(DataError, match=said):
            read(content, 'x')
    assert process_memory('VmHWM') - before < 20e6


@pytest.mark.parametrize('compression', ['tiff_lzw', None])
def test_pillows_limit_of_pixels_is_not_ours(compression: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    Image.fromarray(pixels(20, 30)).quantize(5).save(stream, 'TIFF', compression=compression)
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
    assert look(stream.getvalue(), 'x').width == 30
    assert read(stream.getvalue(), 'x').colour.shape == (20, 30, 3)
    assert Image.MAX_IMAGE_PIXELS == 100
    with pytest.raises(DataError, match='says that it has 30x20 pixels'):
        read(stream.getvalue(), 'x', most_pixels=599)


def patched(content: bytes, values: dict[int, int]) -> bytes:
    """With other numbers in tags, at their places."""
    found = bytearray(content)
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        for code, value in values.items():
            tag = file.pages[0].tags[code]
            struct.pack_into('<' + {3: 'H', 4: 'I'}[int(tag.dtype)], found, tag.valueoffset, value)
    return bytes(found)


def inflating(content: bytes) -> bytes:
    """With a strip that inflates to 200 MB."""
    packed = zlib.compress(bytes(200_000_000), 1)
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        places = {273: len(content), 279: len(packed)}
        assert file.pages[0].compression == 8
    return patched(content, places) + packed


def test_a_tiff_without_exif_is_not_said_to_lose_some() -> None:
    found = read(written(pixels(4, 5, 3), resolution=(300, 300), resolutionunit='INCH'), 'x')
    content, notes = encode(found, 'TIFF')
    assert notes == []
    assert read(content, 'x').dpi == (300, 300)
    assert encode(Picture(pixels(4, 5, 3)), 'TIFF')[1] == []


def test_pixels_that_a_file_does_not_have_are_refused() -> None:
    """A strip at 0 is of a sparse file."""
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.full((4, 4), 77, np.uint8), metadata=None)
    content = bytearray(stream.getvalue())
    place = tifffile.TiffFile(io.BytesIO(content)).pages[0].tags['StripOffsets']
    content[place.valueoffset : place.valueoffset + 2] = bytes(2)
    with pytest.raises(DataError, match='lies behind the end'):
        read(bytes(content), 'x')
