from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, ImageOps, JpegImagePlugin

from nlsn_plugin.data import pictures
from nlsn_plugin.data.encoding import encode
from nlsn_plugin.data.images import decode_whole
from nlsn_plugin.data.pictures import Picture, look, read
from nlsn_plugin.data.pixels import as_tensor, bleed, larger_alpha, larger_by_bicubic
from nlsn_plugin.data.png import chunk, transparent, with_chunks
from nlsn_plugin.engine.measuring.memory import process_memory
from nlsn_plugin.errors import DataError

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
EXIF, GPS = 0x8769, 0x8825


def pixels(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def encoded(image: Image.Image, kind: str = 'PNG', **settings: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **settings)
    return stream.getvalue()


@pytest.mark.parametrize('kind', ['PNG', 'TIFF'])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
@pytest.mark.parametrize('shape', [(5, 7), (5, 7, 3), (1, 1), (1, 9, 3)])
@pytest.mark.parametrize('transparent', [False, True])
def test_what_is_written_is_read_again(kind: str, dtype: type, shape: tuple[int, ...], transparent: bool) -> None:
    alpha = pixels(*shape[:2], dtype=dtype) // 2 if transparent else None
    picture = Picture(pixels(*shape, dtype=dtype), alpha)
    content, notes = encode(picture, kind)
    found = read(content, 'x')
    if dtype == np.uint16 and transparent and len(shape) == 2:
        assert notes == ['gray of 16 bits with transparency was written as RGB']
        assert (found.colour == picture.colour[..., None]).all()
    else:
        assert notes == found.notes == []
        np.testing.assert_array_equal(found.colour, picture.colour)
    assert found.colour.dtype == dtype
    assert found.format == kind
    if alpha is None:
        assert found.alpha is None
    else:
        np.testing.assert_array_equal(found.alpha, alpha)


@pytest.mark.parametrize('kind', ['JPEG', 'WEBP', 'BMP'])
def test_8_bits_of_what_formats_hold(kind: str) -> None:
    smooth = cv2.GaussianBlur(pixels(32, 32, 3, dtype=np.uint16), (0, 0), 4)
    alpha = np.full((32, 32), 32768, np.uint16)
    content, notes = encode(Picture(smooth, alpha), kind)
    found = read(content, 'x')
    assert f'{kind} has 8 bits: 16 were rounded' in notes
    expected = smooth / 257
    if kind == 'WEBP':
        assert set(found.alpha.flatten()) == {128}
    else:
        assert f'{kind} has no transparency: it was laid on white' in notes
        assert found.alpha is None
        expected = expected / 2 + 127.5
    assert np.abs(found.colour - expected).mean() < 3


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'JPEG', 'deep PNG'])
def test_pictures_are_turned_upright(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(pixels(4, 6, 3))
    if kind == 'deep PNG':
        content, _ = encode(Picture(np.asarray(image).astype(np.uint16) * 257, exif=exif.tobytes()), 'PNG')
    else:
        content = encoded(image, kind, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    found, header = read(content, 'x'), look(content, 'x')
    assert (header.height, header.width) == found.colour.shape[:2] == expected.shape[:2]
    if kind == 'deep PNG':
        assert found.colour.dtype == np.uint16
    np.testing.assert_array_equal((found.colour // 257 if kind == 'deep PNG' else found.colour), expected)
    again = Image.open(io.BytesIO(encode(found, 'PNG')[0]))
    assert again.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'WEBP', 'TIFF'])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_profile_and_exif_are_kept(kind: str, dtype: type) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0132] = 'Maker', '2020:01:01 00:00:00'
    exif[0x0100] = 17  # the width: of the old file
    exif[EXIF] = {0x9003: '2020:01:01 00:00:00', 0x927C: b'a maker note'}
    exif[GPS] = {1: 'N'}
    original = encoded(Image.fromarray(pixels(6, 6, 3)), 'JPEG', exif=exif, icc_profile=SRGB)
    found = read(original, 'x')
    picture = Picture(pixels(12, 12, 3, dtype=dtype), icc=found.icc, exif=found.exif)
    content, notes = encode(picture, kind)
    again = Image.open(io.BytesIO(content))
    assert again.info['icc_profile'] == SRGB
    assert again.getexif()[0x010F] == 'Maker'
    if kind == 'TIFF':
        assert any('the TIFF keeps only maker' in note for note in notes)
    else:
        assert 0x0100 not in again.getexif()
        assert again.getexif().get_ifd(EXIF) == {0x9003: '2020:01:01 00:00:00'}
        assert again.getexif().get_ifd(GPS) == {1: 'N'}


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_a_profile_of_megabytes_is_kept(dtype: type) -> None:
    profile = SRGB[:128] + pixels(1_500_000).tobytes()
    content, notes = encode(Picture(pixels(5, 7, 3, dtype=dtype), icc=profile), 'PNG')
    found = read(content, 'x')
    assert notes == found.notes == []
    assert found.icc == profile
    assert look(content, 'x').width == 7


def test_a_text_of_megabytes_is_left_out_as_others_are() -> None:
    text = chunk(b'zTXt', b'Raw profile type 8bim\0\0' + zlib.compress(pixels(1_200_000).tobytes().hex().encode()))
    content = with_chunks(encoded(Image.fromarray(pixels(5, 7, 3))), [text])
    assert read(content, 'x').notes == ['its texts were left out: Raw profile type 8bim']
    assert decode_whole(content, 'x').shape == (5, 7, 3)


@pytest.mark.parametrize('height', [1_000_000, 1_000_001])
def test_a_deep_png_with_too_long_an_edge_is_one_line(height: int) -> None:
    picture = Picture(np.zeros((height, 1, 3), np.uint16))
    if height > 1_000_000:
        with pytest.raises(DataError, match='it cannot be written as PNG of 16 bits: at most 1000000 pixels'):
            encode(picture, 'PNG')
    else:
        assert read(encode(picture, 'PNG')[0], 'x').colour.shape == (height, 1, 3)


def test_a_profile_for_other_colours_is_left_out() -> None:
    found = read(encoded(Image.fromarray(pixels(5, 5)), icc_profile=SRGB), 'x')
    assert found.icc is None
    assert found.notes == ['its colour profile does not fit it and was left out']


@pytest.mark.parametrize(
    ('mode', 'shape', 'transparent'),
    [('1', 2, False), ('L', 2, False), ('LA', 2, True), ('P', 3, False), ('RGB', 3, False), ('RGBA', 3, True)],
)
def test_modes_become_gray_or_rgb(mode: str, shape: int, transparent: bool) -> None:
    rgba = Image.fromarray(pixels(9, 8, 4))
    image = rgba.convert('RGB').quantize(7) if mode == 'P' else rgba.convert(mode)
    found = read(encoded(image), 'x')
    assert found.colour.ndim == shape
    assert (found.alpha is not None) == transparent
    if mode == 'P':
        np.testing.assert_array_equal(found.colour, np.asarray(image.convert('RGB')))


def test_transparency_of_palettes_and_of_single_colours() -> None:
    image = Image.fromarray(np.uint8([[0, 1], [2, 3]]), 'P')
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    found = read(encoded(image, transparency=b'\0\x40\x80\xff'), 'x')
    assert found.alpha.tolist() == [[0, 64], [128, 255]]
    assert found.colour[1, 1].tolist() == [100, 110, 120]
    colour = read(encoded(image.convert('RGB'), transparency=(40, 50, 60)), 'x')
    assert colour.alpha.tolist() == [[255, 0], [255, 255]]


def test_cmyk_is_converted_and_said() -> None:
    image = Image.new('CMYK', (4, 4), (255, 0, 0, 0))
    found = read(encoded(image, 'JPEG'), 'x')
    assert found.colour[0, 0].tolist() == pytest.approx([0, 255, 255], abs=3)
    assert found.notes == ['CMYK without a profile was converted to RGB: its colours are a guess']
    broken = read(encoded(image, 'JPEG', icc_profile=b'no profile' * 20), 'x')
    assert broken.notes == ['CMYK was converted to RGB, not by its profile, which does not read']


def test_colours_of_a_tiff_that_are_multiplied_by_alpha_are_divided_again() -> None:
    colour, alpha = pixels(4, 4, 3, dtype=np.uint16), np.full((4, 4), 32768, np.uint16)
    multiplied = (colour.astype(np.uint32) * 32768 // 65535).astype(np.uint16)
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.dstack([multiplied, alpha]), photometric='rgb', extrasamples=['assocalpha'])
    found = read(stream.getvalue(), 'x')
    assert np.abs(found.colour.astype(int) - colour).max() <= 2
    assert (found.alpha == 32768).all()


def test_a_bomb_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    path, edge = tmp_path / 'bomb.png', 30_000
    packed = zlib.compressobj()
    rows = b''.join([packed.compress(bytes(edge // 8 + 1)) for _ in range(edge)] + [packed.flush()])
    header = struct.pack('>IIBBBBB', edge, edge, 1, 0, 0, 0, 0)
    chunks = chunk(b'IHDR', header) + chunk(b'IDAT', rows) + chunk(b'IEND', b'')
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + chunks)  # a real one: 900 megapixels
    assert path.stat().st_size < 200_000
    Path('/proc/self/clear_refs').write_text('5')  # forget the peak so far
    before = process_memory('VmRSS')
    for function in (look, read):
        with pytest.raises(DataError, match='says that it has 30000x30000 pixels: 100 megapixels are allowed'):
            function(path, 'bomb.png')
    assert process_memory('VmHWM') - before < 20e6
    assert look(path, 'bomb.png', most_pixels=10**9).width == edge


@pytest.mark.parametrize('kind', pictures.FORMATS)
def test_a_truncated_file_is_one_line(kind: str) -> None:
    content = encoded(Image.fromarray(pixels(40, 40, 3)), kind)
    with pytest.raises(DataError, match=r'^x is (truncated or damaged: .+|no picture.*)$') as found:
        read(content[: len(content) // 2], 'x')
    assert '\n' not in str(found.value)


@pytest.mark.parametrize('kind', ['PNG', 'TIFF'])
def test_a_whole_file_is_not_said_to_be_damaged_where_memory_runs_out(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        if kind == 'PNG':
            raise MemoryError
        failed = cv2.error('Failed to allocate 294000000 bytes')
        failed.code = cv2.Error.StsNoMem
        raise failed

    content, _ = encode(Picture(pixels(4, 4, 3)), kind)
    monkeypatch.setattr(pictures, 'of_pixels', failing)
    with pytest.raises(DataError, match=r'^x cannot be read: too little memory$'):
        read(content, 'x')


def test_hidden_colours_are_painted_over_with_the_nearest_seen() -> None:
    alpha = np.zeros((5, 9), np.uint8)
    alpha[:, :2], alpha[:, 7:] = 255, 1
    colour = np.zeros((5, 9, 3), np.uint8)
    colour[:, :2], colour[:, 7:] = (200, 0, 0), (0, 0, 100)
    found = bleed(colour, alpha)
    assert (found[:, :4] == (200, 0, 0)).all()
    assert (found[:, 5:] == (0, 0, 100)).all()
    nothing = np.zeros_like(alpha)
    assert bleed(colour, nothing) is colour


@pytest.mark.parametrize('value', [0, 255])
def test_what_is_opaque_or_clear_stays_so(value: int) -> None:
    alpha = np.full((8, 8), 255 - value, np.uint8)
    alpha[:, 3:] = value
    larger = larger_alpha(alpha, 3)
    assert (larger[:, 15:] == value).all()


def png_of(samples: np.ndarray, bits: int, *chunks: bytes, late: bytes = b'') -> bytes:
    """A PNG of samples of so many bits, [H, W(, C)], with chunks before, and behind, its pixels."""
    height, width = samples.shape[:2]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[samples.shape[2] if samples.ndim == 3 else 1]
    if bits == 16:
        rows = [row.astype('>u2').tobytes() for row in samples]
    else:
        spread = np.unpackbits(samples.reshape(height, -1, 1).astype(np.uint8), axis=2)[..., 8 - bits :]
        rows = [np.packbits(row).tobytes() for row in spread]
    header = chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, bits, kind, 0, 0, 0))
    data = chunk(b'IDAT', zlib.compress(b''.join(b'\0' + row for row in rows)))
    return b'\x89PNG\r\n\x1a\n' + header + b''.join(chunks) + data + late + chunk(b'IEND', b'')


@pytest.mark.parametrize(
    ('bits', 'shape'), [*((bits, (6, 10)) for bits in (1, 2, 4, 8, 16)), (8, (6, 10, 3)), (16, (6, 10, 3))]
)
@pytest.mark.parametrize('orientation', [1, 6])
def test_one_colour_may_be_transparent_in_any_bits(bits: int, shape: tuple[int, ...], orientation: int) -> None:
    samples = pixels(*shape, dtype=np.uint16) >> (16 - bits)
    colour = samples[2, 3]
    turn = Image.Exif()
    turn[0x0112] = orientation
    told = chunk(b'tRNS', np.atleast_1d(colour).astype('>u2').tobytes()), chunk(b'eXIf', turn.tobytes()[6:])
    found = read(png_of(samples, bits, *told), 'x')
    samples = np.rot90(samples, -1) if orientation == 6 else samples
    white = 65535 if bits == 16 else 255
    same = samples == colour if samples.ndim == 2 else (samples == colour).all(axis=2)
    assert 0 < same.sum() < same.size
    np.testing.assert_array_equal(found.alpha, np.where(same, 0, white))
    np.testing.assert_array_equal(found.colour, samples.astype(int) * white // (2**bits - 1))


def test_gray_of_16_bits_with_alpha_stays_gray() -> None:
    samples = pixels(5, 6, 2, dtype=np.uint16)
    found = read(png_of(samples, 16), 'x')
    np.testing.assert_array_equal(found.colour, samples[..., 0])
    np.testing.assert_array_equal(found.alpha, samples[..., 1])


def test_a_png_is_not_decoded_for_its_header() -> None:
    turn = Image.Exif()
    turn[0x0112] = 6
    samples, told = pixels(4, 6), chunk(b'eXIf', turn.tobytes()[6:])
    for content in (png_of(samples, 8, told), png_of(samples, 8, late=told)):
        assert (look(content, 'x').width, look(content, 'x').height) == (4, 6)
        np.testing.assert_array_equal(read(content, 'x').colour, np.rot90(samples, -1))
        again = bytearray(content)
        again[again.index(b'IDAT') + 10] ^= 255
        assert look(bytes(again), 'x').width == 4  # the pixels are damaged, which only reading finds
        with pytest.raises(DataError, match='damaged'):
            read(bytes(again), 'x')


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
RAW_EXIF = (
    b'\nexif\n      26\n' + b'MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0'.hex().encode() + b'\n'
)


@pytest.mark.parametrize(
    'told',
    [
        chunk(b'iTXt', b'XML:com.adobe.xmp\0\0\0\0\0' + XMP),
        chunk(b'iTXt', b'XML:com.adobe.xmp\0\x01\0\0\0' + zlib.compress(XMP)),
        chunk(b'tEXt', b'Raw profile type exif\0' + RAW_EXIF),
        chunk(b'zTXt', b'Raw profile type exif\0\0' + zlib.compress(RAW_EXIF)),
    ],
    ids=['XMP', 'packed XMP', 'EXIF', 'packed EXIF'],
)
@pytest.mark.parametrize('bits', [8, 16])
def test_texts_of_a_png_may_say_how_it_is_turned_wherever_they_stand(told: bytes, bits: int) -> None:
    samples, other = pixels(4, 6, 3, dtype=np.uint16) >> (16 - bits), chunk(b'iTXt', b'Title\0\0\0\0\0six')
    for content in (png_of(samples, bits, other, told), png_of(samples, bits, late=other + told)):
        assert (look(content, 'x').width, look(content, 'x').height) == (4, 6)
        found = read(content, 'x')
        np.testing.assert_array_equal(found.colour, np.rot90(samples, -1))
        assert found.notes == ['its texts were left out: Title']


def test_transparency_that_has_no_place_in_a_png_is_not_taken() -> None:
    samples, told = pixels(5, 6, 4), chunk(b'tRNS', bytes(6))
    np.testing.assert_array_equal(read(png_of(samples, 8, told), 'x').alpha, samples[..., 3])
    deep = pixels(5, 6, 4, dtype=np.uint16)
    np.testing.assert_array_equal(read(png_of(deep, 16, told), 'x').alpha, deep[..., 3])
    with pytest.raises(DataError, match=r'x is (truncated or damaged|no picture)'):  # so older versions of Pillow
        read(png_of(pixels(5, 6), 8, chunk(b'tRNS', b'\0')), 'x')


@pytest.mark.parametrize('shape', [(5, 6), (5, 6, 3)])
def test_a_tensor_lies_in_memory_alike_however_its_array_lay(shape: tuple[int, ...]) -> None:
    array = pixels(*shape)  # sums over other strides are rounded another way
    assert as_tensor(np.asfortranarray(array)).stride() == as_tensor(array).stride()
    assert as_tensor(array[::-1]).stride() == as_tensor(array).stride()


def test_what_is_transparent_by_shares_is_on_white_by_them_where_a_format_has_no_transparency() -> None:
    alpha = np.array([[0, 64, 192, 255]] * 4, np.uint8)
    found = read(encode(Picture(np.zeros((4, 4), np.uint8), alpha), 'BMP')[0], 'x')
    np.testing.assert_array_equal(found.colour, 255 - alpha)


def test_bicubic_keeps_transparency_and_shows_nothing_hidden() -> None:
    colour, alpha = np.zeros((6, 8, 3), np.uint8), np.zeros((6, 8), np.uint8)
    colour[:, 4:], alpha[:, 4:] = 200, 255
    larger = larger_by_bicubic(Picture(colour, alpha), 2)
    np.testing.assert_array_equal(larger.alpha, larger_alpha(alpha, 2))
    assert (larger.colour == 200).all()


@pytest.mark.parametrize(('quality', 'sampling'), [(89, 2), (90, 0)])
def test_a_jpeg_of_high_quality_has_colours_of_full_size(quality: int, sampling: int) -> None:
    content, _ = encode(Picture(pixels(16, 16, 3)), 'JPEG', quality)
    assert JpegImagePlugin.get_sampling(Image.open(io.BytesIO(content))) == sampling


def test_a_colour_that_a_png_calls_transparent_behind_its_pixels_is_not() -> None:
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 4), 7, np.uint8)).save(stream, 'PNG')
    content = stream.getvalue()
    end = content.rindex(b'IEND') - 4
    assert transparent(io.BytesIO(content[:end] + chunk(b'tRNS', struct.pack('>H', 7)) + content[end:])) is None


@pytest.mark.parametrize('kind', ['PNG', 'WEBP', 'JPEG'])
def test_exif_that_does_not_read_turns_nothing(kind: str) -> None:
    content = encoded(Image.new('RGB', (4, 6)), kind, exif=b'Exif\0\0no TIFF')
    assert read(content, 'x').colour.shape == (6, 4, 3)
    assert look(content, 'x') == pictures.Header(kind, 4, 6)
