"""HTML page with a slider over each pair of pictures, before and after; a single file, which needs no server.

This page shows whole pictures of any origin. The page of an evaluation, with details and error maps, is made by
`evaluation/page.py`.
"""

from __future__ import annotations

import base64
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nlsn_plugin.data import pictures
from nlsn_plugin.data.encoding import encode
from nlsn_plugin.data.pictures import SUFFIXES, Picture
from nlsn_plugin.data.pixels import larger_by_bicubic
from nlsn_plugin.engine.pages import render
from nlsn_plugin.engine.upscaling import memory
from nlsn_plugin.engine.upscaling.finding import COMPARISON, ENLARGED, is_picture, real
from nlsn_plugin.errors import DataError, UserError
from nlsn_plugin.files import is_dir, write_whole

SHOWN = {'PNG': 'image/png', 'JPEG': 'image/jpeg', 'WEBP': 'image/webp'}
"""MIME types of the formats that browsers show, by Pillow's names."""
BEFORE, AFTER = 'before', 'after'
BICUBIC = 'bicubic'


@dataclass(frozen=True)
class Pair:
    """Two files of one picture, with a title for the picture and a label for each file."""

    title: str
    before: Path
    after: Path
    before_label: str = BEFORE
    after_label: str = AFTER


def find_pairs(folder: Path, originals: Path | None = None) -> list[Pair]:
    """Find the pairs in a folder: in results of `nlsn benchmark`, in before/ and after/, or by names such as a, a_x2.

    Args:
        folder: holds results.json, or before/ and after/, or pictures.
        originals: folder of the pictures before, if they are not in `folder`; that is then searched by names alone.

    Raises:
        UserError: there is no such folder, it cannot be read, or nothing in it makes a pair.
    """
    try:
        found, hint = pairs_and_hint(folder, originals)
    except OSError as error:
        raise DataError(f'{error.filename or folder} cannot be read: {error.strerror}') from error
    if not found:
        raise UserError(f'{folder} holds no pairs of pictures: {hint} is expected')
    return found


def pairs_and_hint(folder: Path, originals: Path | None) -> tuple[list[Pair], str]:
    """Return the pairs, and for the message if there are none, what is expected in the folder."""
    for place in [folder, *([originals] if originals else [])]:
        if not is_dir(place):
            raise UserError(f'there is no folder {place}')
    if originals:
        found = list(pairs_of_names(originals, folder))
        hint = f'one of {originals} and one of {folder} with the same name, or with _x2 behind it'
    elif (folder / 'results.json').is_file():
        found = list(pairs_of_benchmark(folder))
        hint = 'images of bicubic and of a network in results.json'
    elif (folder / BEFORE).is_dir() and (folder / AFTER).is_dir():
        found = list(pairs_of_names(folder / BEFORE, folder / AFTER))
        hint = 'the same names in before/ and after/'
    else:
        found = list(pairs_of_names(folder, folder))
        hint = 'photo.png beside photo_x2.png, folders before/ and after/, or --originals FOLDER'
    return found, hint


def pairs_of_names(before: Path, after: Path) -> Iterator[Pair]:
    """Yield pairs of the same name, or with _x2 or the like after the second one; within one folder only the latter."""
    originals = defaultdict(list)
    for path in pictures_in(before):
        originals[path.stem].append(path)
    within_one = real(before) == real(after)
    for path in pictures_in(after):
        shortened = ENLARGED.sub('', path.stem)
        stem = path.stem if path.stem in originals and not within_one else shortened
        if stem in originals and not (within_one and shortened == path.stem):
            yield Pair(path.stem, nearest_ending(originals[stem], path), path)


def nearest_ending(originals: Sequence[Path], path: Path) -> Path:
    """Of originals with the same stem, the one whose ending is that of `path`, else whose format is, else the first."""

    def differs(original: Path) -> tuple[bool, bool]:
        endings = original.suffix.lower(), path.suffix.lower()
        return endings[0] != endings[1], SUFFIXES[endings[0]] != SUFFIXES[endings[1]]

    return min(originals, key=differs)


def pictures_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if is_picture(path) and not path.name.endswith(COMPARISON))


def pairs_of_benchmark(folder: Path) -> Iterator[Pair]:
    """Yield for every image a pair of bicubic and each network.

    Raises:
        DataError: results.json is not that of an evaluation.
    """
    path = folder / 'results.json'
    try:
        images = [image for image in json.loads(path.read_text(encoding='utf-8'))['images'] if image['file']]
        by_bicubic = {
            (image['scale'], image['set'], image['image']): image['file']
            for image in images
            if image['network'] == BICUBIC
        }
        for image in images:
            before = by_bicubic.get((image['scale'], image['set'], image['image']))
            if before and image['network'] != BICUBIC:
                title = f'{image["set"]}, {image["image"]}, x{image["scale"]}'
                yield Pair(title, folder / before, folder / image['file'], BICUBIC, image['network'])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f'{path} is not what nlsn benchmark writes: {error!r}') from error


def write(pairs: Sequence[Pair], path: Path, report: Callable[[str], object], replaces: bool) -> int:
    """Write the page, unless no pair can be shown.

    Args:
        pairs: what `find_pairs` returned.
        path: path of the page.
        report: is called with the reason for each pair that is left out.
        replaces: whether a file that exists at `path` is replaced.

    Returns:
        The number of pairs on the page.

    Raises:
        SaveError: the page cannot be written.
    """
    contents = []
    for pair in pairs:
        try:
            with memory.named_if_it_runs_out(f'{pair.before} and {pair.after}'):
                contents.append(shown(pair))
        except UserError as error:
            report(str(error))
    if contents:
        page = render('before_after.html', pairs=contents)
        write_whole(path, lambda temporary: temporary.write_text(page, encoding='utf-8'), replaces)
    return len(contents)


def shown(pair: Pair) -> dict[str, object]:
    """The values that the page's template needs of a pair: title, labels, size, and both pictures as addresses.

    Raises:
        DataError: a picture cannot be read, or the second is not a whole number of times as large as the first.
    """
    # Without a limit on their size, as for results of this package.
    before, after = (pictures.read(path, str(path), sys.maxsize) for path in (pair.before, pair.after))
    height, width = after.colour.shape[:2]
    old_height, old_width = before.colour.shape[:2]
    scale = max(1, width // old_width)
    if (old_height * scale, old_width * scale) != (height, width):
        raise DataError(
            f'{pair.before} of {old_width}x{old_height} and {pair.after} of {width}x{height} pixels are no pair: the '
            'second should be as large, or a whole number of times as large'
        )
    label = pair.before_label
    if scale > 1:
        label = f'{label}, {BICUBIC} x{scale}'
        before = replace(larger_by_bicubic(before, scale), icc=before.icc)
    return {
        'title': pair.title,
        'before': address(before, pair.before if scale == 1 else None),
        'after': address(after, pair.after),
        'before_label': label,
        'after_label': pair.after_label,
        'width': width,
        'height': height,
    }


def address(picture: Picture, path: Path | None) -> str:
    """A picture as a data URL: the file's own bytes if browsers show it as it was decoded here, else a PNG of it."""
    if path is not None and picture.format in SHOWN and not picture.notes:
        return of_bytes(path.read_bytes(), SHOWN[picture.format])
    return of_bytes(encode(picture, 'PNG')[0], SHOWN['PNG'])


def of_bytes(content: bytes, kind: str) -> str:
    return f'data:{kind};base64,{base64.b64encode(content).decode("ascii")}'
