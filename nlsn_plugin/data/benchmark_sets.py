"""Benchmark sets on disk: folders laid out as by `nlsn prepare --test`, or any folder of HR images."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nlsn_plugin.data.images import crop_to_multiple, read_image, reduce
from nlsn_plugin.data.prepare import checked
from nlsn_plugin.errors import UserError
from nlsn_plugin.files import is_dir
from nlsn_plugin.paper.table1 import SETS

BICUBIC = 'bicubic'
"""Origin of LR images that are made from the HR images."""


@dataclass(frozen=True)
class Photograph:
    """A ground truth with its LR image, if one is given; `digest` identifies the content of both files."""

    hr: Path
    lr: Path | None
    digest: str

    def read(self, scale: int) -> tuple[np.ndarray, np.ndarray]:
        """Read the truth, cropped to a multiple of the scale, and the LR image; uint8, BGR [H, W, 3] or gray [H, W].

        Raises:
            DataError: an image cannot be read.
        """
        truth = crop_to_multiple(read_image(self.hr, keep_gray=True), scale)
        lr = read_image(self.lr, keep_gray=True) if self.lr else reduce(truth, scale)
        return truth, lr


@dataclass(frozen=True)
class BenchmarkSet:
    """A set of photographs; `lr` is the folder of given LR images, or 'bicubic'."""

    name: str
    folder: Path
    lr: str
    photographs: Sequence[Photograph]


def find_sets(wanted: Sequence[str] | None, root: Path | None) -> dict[str, Path]:
    """Find the folders of sets, by their names.

    Args:
        wanted: names of folders under root, other folders, or NAME=FOLDER; None for those of the five standard sets
            that root has.
        root: folder of the sets; datasets/benchmark if None.

    Raises:
        UserError: a set is not there, two have one name, or a given root has none of the sets.
    """
    base = root or Path('datasets/benchmark')
    if wanted is None:
        found = {name: base / name for name in SETS if is_dir(base / name)}
        if not found:
            raise UserError(
                f'{base} has none of {", ".join(SETS)}: say where they lie by --data FOLDER, or name folders of '
                'images by --sets FOLDER ...'
            )
        return found
    found = {}
    for word in wanted:
        folder = base / word if is_dir(base / word) else Path(word)
        name = folder.name or folder.resolve().name
        if '=' in word and not is_dir(folder):  # else it is part of a folder's name
            name, _, path = word.partition('=')
            folder = Path(path)
            if not name or not path:
                raise UserError(f'--sets {word}: NAME=FOLDER is expected')
        if not is_dir(folder):
            raise UserError(f'there is no set {word}{hint(word, base)}')
        if name in found:
            raise UserError(f'two sets are called {name}, {found[name]} and {folder}: write NAME={folder}')
        found[name] = folder
    if root and not any(root in folder.parents for folder in found.values()):
        raise UserError(f'--data {root} has none of the sets: leave it out')
    return found


def hint(name: str, root: Path) -> str:
    """The end of a message: the set that may have been meant, or those that there are."""
    there = sorted(path.name for path in root.iterdir() if is_dir(path)) if is_dir(root) else []
    close = difflib.get_close_matches(name, [*there, *SETS], n=1)
    if close and close[0] in there:
        return f': did you mean {close[0]}?'
    return f': {root} has {", ".join(there) or "none"}; for a folder elsewhere write its path, or NAME=FOLDER'


def open_set(name: str, folder: Path, scale: int, lr: str | None = None, workers: int | None = None) -> BenchmarkSet:
    """Open a set after decoding each of its images.

    Args:
        name: name of the set.
        folder: holds HR images, or HR/ and LR_bicubic/X<scale>/.
        scale: scale of the LR images.
        lr: 'bicubic', or a folder, in whose name {set} and {scale} are replaced; None takes LR_bicubic if it exists.
        workers: number of processes; one per core if None.

    Raises:
        UserError: images are missing, damaged, or of a wrong size; the message names all of them.
    """
    hr = folder / 'HR' if is_dir(folder / 'HR') else folder
    given = folder / 'LR_bicubic' / f'X{scale}'
    if lr is None:
        lr = str(given) if is_dir(given) else BICUBIC
    elif lr != BICUBIC:
        lr = lr.replace('{set}', name).replace('{scale}', str(scale))
    sources, seen = checked(hr, [scale], None if lr == BICUBIC else lr, workers)
    photographs = []
    for source in sources:
        low = source.lr.get(scale)
        digests = seen[source.hr].digest + (seen[low].digest if low else BICUBIC)
        photographs.append(Photograph(source.hr, low, hashlib.sha256(digests.encode()).hexdigest()))
    return BenchmarkSet(name, folder, lr, photographs)
