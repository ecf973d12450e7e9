"""What comes with pixels: EXIF, XMP, resolution, profiles; kept, or said to be lost."""

from __future__ import annotations

import io
import struct
from dataclasses import replace

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, PngImagePlugin

from nlsn_plugin.data import exif
from nlsn_plugin.data.encoding import encode
from nlsn_plugin.data.pictures import Picture, look, read
from nlsn_plugin.data.png import chunk, with_chunks
from nlsn_plugin.data.provenance import sound

EXIF, GPS = 0x8769, 0x8825
ARTIST, HOST, TITLE, MADE, COMMENT, WIDTH, HEIGHT = 0x013B, 0x013C, 0x9C9B, 0x9003, 0x9286, 0xA002, 0xA003
KINDS = ['PNG', 'JPEG', 'WEBP']
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6" tiff:ImageWidth="6" '
    b'exif:PixelYDimension="4"/><dc:rights>\xc3\xa9</dc:rights></x:xmpmeta>'
)


def pixels(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def encoded(kind: str, **settings: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels(4, 6, 3)).save(stream, kind, **settings)
    return stream.getvalue()


def block(order: str) -> bytes:
    """EXIF as a camera lays it out, in either order."""

    def text(value: bytes) -> exif.Entry:
        return exif.Entry(2, len(value) + 1, value + b'\0')

    def number(value: int) -> exif.Entry:
        return exif.Entry(3, 1, struct.pack(order + 'H', value))

    directories = {
        exif.MAIN: {ARTIST: text('José Müller'.encode()), HOST: text(b'a host'), 0x0112: number(1), 0x0100: number(6)},
        exif.CAMERA: {
            MADE: text(b'2020:01:01 00:00:00'),
            COMMENT: exif.Entry(7, 11, b'UNICODE\0\xe9\0\0'),
            0x927C: exif.Entry(7, 12, b'a maker note'),
            WIDTH: number(6),
            HEIGHT: number(4),
            0x829A: exif.Entry(5, 1, struct.pack(order + '2I', 1, 250)),
        },
        exif.PLACE: {1: text(b'N'), 2: exif.Entry(5, 3, struct.pack(order + '6I', 48, 1, 8, 1, 30, 1))},
    }
    directories[exif.MAIN][TITLE] = exif.Entry(1, 6, 'té'.encode('utf-16le') + b'\0\0')
    return exif.block(exif.Exif(order, directories))


@pytest.mark.parametrize('order', ['<', '>'])
@pytest.mark.parametrize('kind', KINDS)
def test_exif_is_kept_byte_by_byte_and_says_the_new_size(order: str, kind: str) -> None:
    original = read(encoded('JPEG', exif=block(order)), 'x')
    assert original.notes == []
    content, notes = encode(replace(original, colour=pixels(8, 12, 3)), kind)
    assert notes == []
    found = exif.parse(io.BytesIO(read(content, 'x').exif))
    wanted = exif.parse(io.BytesIO(block(order)))
    assert found.order == order
    assert found.directories[exif.MAIN].keys() == {ARTIST, HOST, TITLE}
    for part, tags in (
        (exif.MAIN, (ARTIST, HOST, TITLE)),
        (exif.CAMERA, (MADE, COMMENT, 0x829A)),
        (exif.PLACE, (1, 2)),
    ):
        for tag in tags:
            assert found.directories[part][tag] == wanted.directories[part][tag]
    assert 0x927C not in found.directories[exif.CAMERA]
    seen = Image.open(io.BytesIO(content)).getexif()  # as others read it
    assert seen[ARTIST].encode('latin-1') == 'José Müller'.encode()
    assert seen.get_ifd(EXIF)[WIDTH] == 12
    assert seen.get_ifd(EXIF)[HEIGHT] == 8
    assert seen.get_ifd(EXIF)[0x829A] == 1 / 250
    assert seen.get_ifd(GPS) == {1: 'N', 2: (48.0, 8.0, 30.0)}


@pytest.mark.parametrize('order', ['<', '>'])
@pytest.mark.parametrize('kind', KINDS)
def test_exif_says_that_colours_are_of_adobe_rgb_as_before(order: str, kind: str) -> None:
    interoperability = {1: exif.Entry(2, 4, b'R03\0'), 2: exif.Entry(7, 4, b'0100')}
    sizes = {0x1001: exif.Entry(3, 1, struct.pack(order + 'H', 6))}
    directories = exif.parse(io.BytesIO(block(order))).directories
    of_camera = {exif.CAMERA: {}, exif.INTEROPERABILITY: {**interoperability, **sizes}}
    for given in ({**directories, exif.INTEROPERABILITY: {**interoperability, **sizes}}, of_camera):
        original = read(encoded('JPEG', exif=exif.block(exif.Exif(order, given))), 'x')
        content, notes = encode(replace(original, colour=pixels(8, 12, 3)), kind)
        assert original.notes == notes == []
        found = exif.parse(io.BytesIO(read(content, 'x').exif)).directories
        assert found[exif.INTEROPERABILITY] == interoperability
        assert found.get(exif.PLACE) == given.get(exif.PLACE)
        seen = Image.open(io.BytesIO(content)).getexif()  # as others read it
        assert seen.get_ifd(0xA005)[1] == 'R03'


@pytest.mark.parametrize(
    ('pointer', 'kept'),
    [
        (b' xmpNote:HasExtendedXMP="0123ABCD"/>', b'/>'),
        (b'\n xmpNote:HasExtendedXMP = \'01\' tiff:Make="a"/>', b' tiff:Make="a"/>'),
        (b'><xmpNote:HasExtendedXMP>0</xmpNote:HasExtendedXMP></rdf:Description>', b'></rdf:Description>'),
    ],
)
def test_extended_xmp_is_left_out_and_said(pointer: bytes, kept: bytes) -> None:
    begin = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description xmp:Rating="5"'
    original = read(encode(Picture(pixels(4, 6, 3), xmp=begin + pointer), 'JPEG')[0], 'x')
    assert original.notes == ['the extended part of its XMP was left out']
    assert original.xmp == begin + kept


def test_a_tiff_keeps_texts_in_any_letters_and_says_what_it_does_not() -> None:
    original = read(encoded('JPEG', exif=block('<')), 'x')
    content, notes = encode(original, 'TIFF')
    assert len(notes) == 1
    assert notes[0].startswith('of its EXIF, the TIFF keeps only maker, model, computer, software, time, artist')
    again = read(content, 'x')
    found = exif.parse(io.BytesIO(again.exif)).directories[exif.MAIN]
    assert found[ARTIST].content.rstrip(b'\0') == 'José Müller'.encode()
    assert found[HOST].content.rstrip(b'\0') == b'a host'
    assert encode(again, 'TIFF')[1] == []


def test_exif_of_a_tiff_is_kept() -> None:
    stream = io.BytesIO()
    Image.fromarray(pixels(4, 6, 3)).save(stream, 'TIFF', exif=block('<'), dpi=(300, 300))
    found = read(stream.getvalue(), 'x')
    assert found.notes == []
    parsed = exif.parse(io.BytesIO(found.exif)).directories
    assert parsed[exif.MAIN].keys() == {ARTIST, HOST, TITLE}
    assert parsed[exif.CAMERA][MADE].content == b'2020:01:01 00:00:00\0'
    assert found.dpi == (300, 300)


def test_damaged_values_of_exif_are_counted_and_the_rest_is_kept() -> None:
    damaged = bytearray(block('<'))
    place = damaged.index(struct.pack('<HH', ARTIST, 2))
    damaged[place + 8 : place + 12] = struct.pack('<I', 10**6)
    found = read(encoded('JPEG', exif=bytes(damaged)), 'x')
    assert found.notes == ['values of its EXIF do not read and were left out: 1']
    assert exif.parse(io.BytesIO(found.exif)).directories[exif.MAIN].keys() == {HOST, TITLE}
    nothing = read(encoded('JPEG', exif=b'Exif\0\0MM\0*\0\0\xff\xff'), 'x')
    assert nothing.notes == ['its EXIF does not read and was left out']
    assert nothing.exif == b''


@pytest.mark.parametrize('kind', [*KINDS, 'TIFF'])
@pytest.mark.parametrize('source', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
def test_xmp_is_kept_and_says_that_the_picture_is_upright(source: str, kind: str) -> None:
    content, _ = encode(Picture(pixels(4, 6, 3), xmp=XMP.replace(b'Orientation="6"', b'Orientation="1"')), source)
    content = content.replace(b'Orientation="1"', b'Orientation="6"')
    if source == 'PNG':
        text = content.index(b'iTXt')
        (length,) = struct.unpack('>I', content[text - 4 : text])
        whole = chunk(b'iTXt', content[text + 4 : text + 4 + length])
        content = content[: text - 4] + whole + content[text + 8 + length :]
    original = read(content, 'x')
    is_turned = source != 'TIFF'  # which has a tag of its own for that
    assert original.colour.shape == ((6, 4, 3) if is_turned else (4, 6, 3))
    assert (look(content, 'x').height, look(content, 'x').width) == original.colour.shape[:2]
    for dtype in (np.uint8, np.uint16):
        again = read(encode(replace(original, colour=pixels(12, 8, 3, dtype=dtype)), kind)[0], 'x')
        assert again.colour.shape == (12, 8, 3)
        expected = XMP.replace(b'Orientation="6"', b'Orientation="1"').replace(b'Width="6"', b'Width="8"')
        assert again.xmp == expected.replace(b'YDimension="4"', b'YDimension="12"')


@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'TIFF', 'BMP'])
@pytest.mark.parametrize('source', ['JPEG', 'PNG', 'TIFF', 'BMP'])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_the_resolution_is_kept(source: str, kind: str, dtype: type) -> None:
    original = read(encoded(source, dpi=(300, 200)), 'x')
    content, notes = encode(replace(original, colour=pixels(8, 12, 3, dtype=dtype)), kind)
    assert [note for note in notes if 'dpi' in note] == []
    assert Image.open(io.BytesIO(content)).info['dpi'] == pytest.approx((300, 200), abs=0.1)
    assert encode(original, 'WEBP')[1] == ['WEBP holds no resolution: 300 dpi were left out']


def test_a_resolution_that_is_none_is_not_made_up() -> None:
    plain = read(encoded('JPEG'), 'x')
    assert plain.dpi is None
    assert read(encoded('JPEG', exif=block('<')), 'x').dpi is None
    stream = io.BytesIO()
    tifffile.imwrite(stream, pixels(4, 6, 3), photometric='rgb')
    assert read(stream.getvalue(), 'x').dpi is None
    assert encode(plain, 'WEBP')[1] == []


def test_what_is_not_kept_is_said() -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text('Author', 'me')
    texts.add_text('Title', 'it')
    assert read(encoded('PNG', pnginfo=texts), 'x').notes == ['its texts were left out: Author, Title']
    assert read(encoded('JPEG', comment=b'a comment'), 'x').notes == ['its comment was left out']
    linear, usual = (with_chunks(encoded('PNG'), [chunk(b'gAMA', struct.pack('>I', x))]) for x in (100000, 45455))
    assert read(linear, 'x').notes == ['its gamma of 1 was left out: colours may look another way']
    assert read(usual, 'x').notes == []


def test_colours_of_a_png_and_further_pictures_that_are_not_kept_are_said() -> None:
    of_srgb, of_others = (
        struct.pack('>8I', 31270, 32900, *primaries)
        for primaries in ((64000, 33000, 30000, 60000, 15000, 6000), (70800, 29200, 17000, 79700, 13100, 4600))
    )
    assert read(with_chunks(encoded('PNG'), [chunk(b'cHRM', of_srgb)]), 'x').notes == []
    others = with_chunks(encoded('PNG'), [chunk(b'cHRM', of_others)])
    assert read(others, 'x').notes == ['its chromaticities (cHRM) were left out: colours may look another way']
    assert read(with_chunks(others, [chunk(b'sRGB', b'\0')]), 'x').notes == []
    assert read(with_chunks(encoded('PNG'), [chunk(b'cICP', bytes((1, 13, 0, 1)))]), 'x').notes == []
    said = ['its colour space, cICP 9-16-0-1, was left out: colours may look another way']
    assert read(with_chunks(encoded('PNG'), [chunk(b'cICP', bytes((9, 16, 0, 1)))]), 'x').notes == said
    several = encoded('MPO', save_all=True, append_images=[Image.fromarray(pixels(4, 6, 3))])
    found = read(several, 'x')
    assert found.format == 'JPEG'
    assert found.notes == ['the first of its 2 pictures was taken']


def test_exif_in_a_text_of_a_png_is_read() -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text('Raw profile type exif', f'\nexif\n{len(block("<")):8}\n{block("<").hex()}\n')
    found = read(encoded('PNG', pnginfo=texts), 'x')
    assert found.notes == []
    assert exif.parse(io.BytesIO(found.exif)).directories[exif.MAIN].keys() == {ARTIST, HOST, TITLE}


def test_exif_in_a_text_that_does_not_read_is_said() -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text('Raw profile type exif', '\nexif\n       4\nno number\n')
    found = read(encoded('PNG', pnginfo=texts), 'x')
    assert found.notes == ['its EXIF does not read and was left out']
    assert not found.exif


def gray_profile() -> bytes:
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes())
    profile[16:20] = b'GRAY'
    return bytes(profile)


def test_a_profile_for_gray_does_not_go_into_a_file_of_colours() -> None:
    picture = Picture(pixels(5, 6), icc=gray_profile())
    content, notes = encode(picture, 'WEBP')
    assert notes == ['WEBP has no gray: its profile, which is for gray, was left out']
    assert 'icc_profile' not in Image.open(io.BytesIO(content)).info
    deep = Picture(pixels(5, 6, dtype=np.uint16), pixels(5, 6, dtype=np.uint16), icc=gray_profile())
    content, notes = encode(deep, 'PNG')
    assert notes == ['gray of 16 bits with transparency was written as RGB, without its profile']
    assert 'icc_profile' not in Image.open(io.BytesIO(content)).info


def test_many_values_in_one_place_take_no_memory() -> None:
    rows = b''.join(struct.pack('<HHII', tag, 7, 2**20, 200) for tag in range(1000))
    part = struct.pack('<H', 1000) + rows + bytes(4)
    content = b'II*\0' + struct.pack('<IHHHIII', 8, 1, EXIF, 4, 1, 26, 0) + part + bytes(2**20)
    found = exif.parse(io.BytesIO(content))
    assert sum(len(entry.content) for entry in found.directories[exif.CAMERA].values()) <= exif.MOST_BYTES
    assert found.lost > 0


def test_resolution_is_in_inches_whatever_a_tiff_has() -> None:
    stream = io.BytesIO()
    tifffile.imwrite(stream, pixels(4, 4), resolution=(100, 50), resolutionunit='CENTIMETER')
    assert read(stream.getvalue(), 'x').dpi == pytest.approx((254, 127))


@pytest.mark.parametrize('dpi', [(0.5, 72), (72, 70000), (float('nan'), 72), None])
def test_a_resolution_that_formats_cannot_say_is_none(dpi: tuple[float, float] | None) -> None:
    assert sound(dpi) is None
    assert sound((72, 96)) == (72.0, 96.0)


def test_of_a_tiff_of_several_pages_the_first_is_taken_and_that_is_said() -> None:
    stream, first = io.BytesIO(), pixels(4, 6)
    with tifffile.TiffWriter(stream) as writer:
        for page in (first, 255 - first):
            writer.write(page, metadata=None)
    found = read(stream.getvalue(), 'x')
    assert found.notes == ['the first of its 2 pictures was taken']
    np.testing.assert_array_equal(found.colour, first)
