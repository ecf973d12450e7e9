"""Which pictures are meant: files, those in folders, those that patterns fit, without what was made of them before."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nlsn_plugin.data.pictures import SUFFIXES
from nlsn_plugin.engine.names import one_line
from nlsn_plugin.errors import ArgumentError, DataError
from nlsn_plugin.files import exists, is_dir

STANDARD = '-'
"""Standard input, or output."""
COMPARISON = '_compare.png'
"""What the names of comparisons end with."""
ENLARGED = re.compile(r'_x\d+$')
"""What is put behind a name, unless another suffix is asked for."""

log = logging.getLogger('nlsn_plugin')


@dataclass(frozen=True)
class Found:
    """A picture that is meant, or what is wrong with a word that gives none.

    Attributes:
        path: its file.
        problem: what is wrong; empty if nothing is.
        is_standard: whether it comes from the standard input, and from no file that is called STANDARD.
    """

    path: Path
    problem: str = ''
    is_standard: bool = False


def find_inputs(words: Sequence[str], place: str | None = None, suffix: str | None = None) -> list[Found]:
    """Files named, those in folders (not in folders of these), and those that patterns fit; each once.

    What is not there is given too, to be reported in its turn, as are folders and patterns that give nothing.

    Args:
        words: as they were typed.
        place: where results go; None is beside each original. A folder that gets its own results is taken without them.
        suffix: of these results; None is _x2, or that of another scale.

    Raises:
        ArgumentError: a word is empty.
    """
    found: list[Found] = []
    seen: set[Path | str] = set()
    for word in words:
        if not word:
            raise ArgumentError("an INPUT is empty: a file, a folder, a pattern or '-' is expected")
        try:
            paths = files_of(word, place, suffix)
        except DataError as error:
            found.append(Found(Path(word), str(error)))
            continue
        except OSError as error:
            found.append(Found(Path(word), f'{word} cannot be read: {error.strerror}'))
            continue
        for path in paths:
            is_standard = word == STANDARD
            one = STANDARD if is_standard else real(path.parent) / path.name  # a link is another picture, by its name
            if one not in seen:
                seen.add(one)
                found.append(Found(path, is_standard=is_standard))
    return found


def real(path: Path) -> Path:
    """Absolute, without links; links in a circle are left as they are."""
    return Path(os.path.realpath(path))


def files_of(word: str, place: str | None, suffix: str | None) -> list[Path]:
    """The files that one word means.

    Raises:
        DataError: a folder without pictures, or a pattern that fits none.
        OSError: the folder cannot be read, or no name can be so long.
    """
    path = Path(word)
    if word == STANDARD:
        return [path]
    if is_dir(path):
        found = sorted(p for p in path.iterdir() if is_picture(p))
        if not found:
            raise DataError(f'{path} holds no pictures ({", ".join(SUFFIXES)})')
        beside = place is None or real(Path(place)) == real(path)
        return without_results(path, found, suffix) if beside else found
    if exists(path) or not glob.has_magic(word):
        return [path]
    fitting = sorted(Path(name) for name in glob.glob(word, recursive=True))  # noqa: PTH207 (absolute ones too)
    if not fitting:
        raise DataError(f'nothing fits {word}')
    files = [path for path in fitting if not is_dir(path)]
    if not files:
        raise DataError(f'{word} fits nothing but folders: name these, or the pictures in them')
    return files


def is_picture(path: Path) -> bool:
    """Whether something in a folder is a picture by its name, and no folder itself; hidden ones are none."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith('.') and not is_dir(path)


def without_results(folder: Path, files: list[Path], suffix: str | None) -> list[Path]:
    """Without what earlier calls made of others of the files."""
    stems = {path.stem for path in files}
    originals = [path for path in files if made_of(path, suffix) not in stems]
    if len(originals) < len(files):
        count = len(files) - len(originals)
        log.warning(
            '%s: earlier results (%d) were left out: name them to enlarge them too', one_line(str(folder)), count
        )
    return originals


def made_of(path: Path, suffix: str | None) -> str | None:
    """By its name: the stem of the picture that a result, or a comparison, was made of; None if it is neither."""
    stem = path.stem
    if path.name.endswith(COMPARISON):
        stem = path.name.removesuffix(COMPARISON)
        stem = Path(stem).stem if Path(stem).suffix.lower() in SUFFIXES else stem
        if suffix == '':
            return stem
    original = ENLARGED.sub('', stem) if suffix is None else stem.removesuffix(suffix)
    return None if original == stem else original
