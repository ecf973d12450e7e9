"""Odd files that a program should cope with: broken, cut short, mislabelled, tiny, or huge by their headers."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

FORMATS = {'png': 'PNG', 'jpg': 'JPEG', 'webp': 'WEBP', 'tif': 'TIFF', 'bmp': 'BMP'}
NO_PICTURES = {
    'empty.png': b'',
    'text.jpg': b'This is no picture.\n',
    'page.webp': b'<!DOCTYPE html><html></html>',
    'drawing.png': b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    'zeros.bmp': bytes(1000),
    'archive.tif': b'PK\x03\x04' + bytes(200),
    'signature_alone.png': b'\x89PNG\r\n\x1a\n',
    'start_alone.jpg': b'\xff\xd8\xff',
    'start_alone.tif': b'II*\0',
    'riff_alone.webp': b'RIFF\x10\0\0\0WEBP',
    'bm_alone.bmp': b'BM',
    'script.png': b'%!PS-Adobe-3.0 EPSF-3.0\n',
}


def odd_files() -> Iterator[tuple[str, bytes]]:
    """Yield the names and contents of 212 files."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (12, 17, 3), np.uint8)
    good = {ending: encoded(Image.fromarray(pixels), kind) for ending, kind in FORMATS.items()}
    yield from NO_PICTURES.items()
    for ending, content in good.items():
        yield f'good.{ending}', content
        for share in (1, 5, 10, 25, 50, 75, 90, 99):
            yield f'cut_at_{share}.{ending}', content[: len(content) * share // 100]
        for number in range(16):
            yield f'flipped_{number}.{ending}', with_flipped_bits(content, generator)
        for other in FORMATS:
            if other != ending:
                yield f'really_{ending}_not_{other}.{other}', content
    for width, height in ((1, 1), (1, 40), (40, 1), (2, 3)):
        for ending, kind in FORMATS.items():
            yield f'of_{width}x{height}.{ending}', encoded(Image.fromarray(pixels).resize((width, height)), kind)
    yield from of_other_kinds(pixels)
    yield from of_huge_headers(good)


def encoded(image: Image.Image, kind: str, **settings: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **settings)
    return stream.getvalue()


def with_flipped_bits(content: bytes, generator: np.random.Generator) -> bytes:
    """Flip 1 to 8 bits at random places."""
    found = bytearray(content)
    for place in generator.integers(0, len(found), generator.integers(1, 9)):
        found[place] ^= 1 << int(generator.integers(0, 8))
    return bytes(found)


def of_other_kinds(pixels: np.ndarray) -> Iterator[tuple[str, bytes]]:
    """Yield intact pictures of kinds that programs often forget; some have a broken profile or EXIF."""
    image = Image.fromarray(pixels)
    deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    yield 'gray_of_16_bits.png', encoded(deep, 'PNG')
    yield 'gray_of_16_bits.tif', encoded(deep, 'TIFF')
    yield 'gray.jpg', encoded(image.convert('L'), 'JPEG')
    yield 'gray_with_alpha.png', encoded(image.convert('LA'), 'PNG')
    yield 'alpha.png', encoded(image.convert('RGBA'), 'PNG')
    yield 'alpha.webp', encoded(image.convert('RGBA'), 'WEBP')
    yield 'palette.png', encoded(image.quantize(8), 'PNG')
    yield 'palette_with_transparency.png', encoded(image.quantize(8), 'PNG', transparency=2)
    yield 'palette_with_alphas.png', encoded(image.quantize(4), 'PNG', transparency=b'\0\x40\x80\xff')
    yield 'palette.bmp', encoded(image.quantize(8), 'BMP')
    yield 'colour_that_is_transparent.png', encoded(image, 'PNG', transparency=tuple(map(int, pixels[0, 0])))
    yield 'two_colours.png', encoded(image.convert('1'), 'PNG')
    yield 'two_colours.tif', encoded(image.convert('1'), 'TIFF')
    yield 'cmyk.jpg', encoded(image.convert('CMYK'), 'JPEG')
    yield 'cmyk.tif', encoded(image.convert('CMYK'), 'TIFF')
    yield 'lab.tif', encoded(Image.fromarray(pixels, 'LAB'), 'TIFF')
    yield 'float.tif', encoded(Image.fromarray(pixels[..., 0].astype(np.float32)), 'TIFF')
    yield 'of_32_bits.tif', encoded(Image.fromarray(pixels[..., 0].astype(np.int32)), 'TIFF')
    yield 'two_pages.tif', encoded(image, 'TIFF', save_all=True, append_images=[image])
    yield 'moves.webp', encoded(image, 'WEBP', save_all=True, append_images=[image.rotate(180)])
    yield 'progressive.jpg', encoded(image, 'JPEG', progressive=True)
    yield 'broken_profile.png', encoded(image, 'PNG', icc_profile=b'no profile')
    yield 'broken_profile.jpg', encoded(image.convert('CMYK'), 'JPEG', icc_profile=b'no profile' * 20)
    yield 'broken_exif.jpg', encoded(image, 'JPEG', exif=b'Exif\0\0II*\0\x08\0\0\0\xff\xff' + bytes(30))
    yield 'moved.gif', encoded(image.quantize(8), 'GIF')


def of_huge_headers(good: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Yield small files whose headers claim an edge of 20000 to 2**31 - 1 pixels, or of 0."""
    for edge in (0, 20_000, 65_000, 2**31 - 1):
        header = struct.pack('>II', edge, edge) + good['png'][24:29]
        chunk = b'IHDR' + header
        yield f'says_{edge}.png', good['png'][:12] + chunk + struct.pack('>I', zlib.crc32(chunk)) + good['png'][33:]
        yield f'says_{edge}.bmp', good['bmp'][:18] + struct.pack('<II', edge, edge) + good['bmp'][26:]
    for edge in (0, 65_000):
        place = good['jpg'].index(b'\xff\xc0') + 5
        yield f'says_{edge}.jpg', good['jpg'][:place] + struct.pack('>HH', edge, edge) + good['jpg'][place + 4 :]
