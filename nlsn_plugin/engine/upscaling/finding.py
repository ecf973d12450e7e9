"""Search for the pictures that a user names by files, folders and patterns, without earlier results in the folders."""

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
"""The word for standard input or output."""
COMPARISON = '_compare.png'
"""End of the file names of comparisons."""
ENLARGED = re.compile(r'_x\d+$')
"""End of a result's stem, unless another suffix is asked for."""

log = logging.getLogger('nlsn_plugin')


@dataclass(frozen=True)
class Found:
    """A picture that the user named, or a word that names none.

    Attributes:
        path: the file, or the word.
        problem: what is wrong with the word; empty if nothing is.
        is_standard: whether the picture comes from the standard input, rather than from a file called '-'.
    """

    path: Path
    problem: str = ''
    is_standard: bool = False


def find_inputs(words: Sequence[str], place: str | None = None, suffix: str | None = None) -> list[Found]:
    """Find the files named, those in folders (not in their subfolders), and those that match patterns; each once.

    Files that do not exist are returned too, to be reported in their turn, and so are folders and patterns that yield
    nothing.

    Args:
        words: the inputs as they were typed.
        place: where results go; None is beside each original. Earlier results are left out of a folder that results
            go into.
        suffix: suffix of these results; None is _x2, or that of another scale.

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
            # The last part is not resolved: a link is a picture of its own, with a result of its own.
            one = STANDARD if is_standard else real(path.parent) / path.name
            if one not in seen:
                seen.add(one)
                found.append(Found(path, is_standard=is_standard))
    return found


def real(path: Path) -> Path:
    """Make a path absolute and resolve its links; circular links are left as they are."""
    return Path(os.path.realpath(path))


def files_of(word: str, place: str | None, suffix: str | None) -> list[Path]:
    """The files that one word names.

    Raises:
        DataError: a folder without pictures, or a pattern that matches no files.
        OSError: the folder cannot be read, or the word is too long for a path.
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
    fitting = sorted(Path(name) for name in glob.glob(word, recursive=True))  # noqa: PTH207 (may be absolute)
    if not fitting:
        raise DataError(f'nothing fits {word}')
    files = [path for path in fitting if not is_dir(path)]
    if not files:
        raise DataError(f'{word} fits nothing but folders: name these, or the pictures in them')
    return files


def is_picture(path: Path) -> bool:
    """Whether an entry of a folder has the name of a picture, is not hidden and is not a folder."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith('.') and not is_dir(path)


def without_results(folder: Path, files: list[Path], suffix: str | None) -> list[Path]:
    """Leave out results that earlier calls made of other files in the list, and log how many."""
    stems = {path.stem for path in files}
    originals = [path for path in files if made_of(path, suffix) not in stems]
    if len(originals) < len(files):
        count = len(files) - len(originals)
        log.warning(
            '%s: earlier results (%d) were left out: name them to enlarge them too', one_line(str(folder)), count
        )
    return originals


def made_of(path: Path, suffix: str | None) -> str | None:
    """The stem of the picture that a result or a comparison was made of, by its name; None if it is neither."""
    stem = path.stem
    if path.name.endswith(COMPARISON):
        stem = path.name.removesuffix(COMPARISON)
        stem = Path(stem).stem if Path(stem).suffix.lower() in SUFFIXES else stem
        if suffix == '':
            return stem
    original = ENLARGED.sub('', stem) if suffix is None else stem.removesuffix(suffix)
    return None if original == stem else original
