"""What is to be made of each picture, and where; what would overwrite is refused before the work."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nlsn_plugin.data import pictures
from nlsn_plugin.data.encoding import QUALITY, check_size
from nlsn_plugin.data.pictures import FORMATS, MOST_PIXELS, SUFFIXES, Header
from nlsn_plugin.engine.upscaling.finding import COMPARISON, STANDARD, Found, real
from nlsn_plugin.errors import DataError, SaveError, UserError
from nlsn_plugin.files import exists, is_dir, is_file, try_to_write

Record = dict[str, Any]


@dataclass(frozen=True)
class Output:
    """Where results go, and how.

    Attributes:
        place: a file, a folder, or '-' for the standard output; None is beside each original.
        is_file: whether `place` is a file.
        format: one of pictures.FORMATS; None is that of the original, or what the name of a file says.
        quality: of JPEG and WebP.
        suffix: between the name of the original and its ending, where `place` is no file.
        force: overwrite what is there.
        resume: leave out what is there.
        compare: put a picture beside it that shows bicubic and the result.
        most_pixels: what has more is refused.
    """

    place: str | None
    is_file: bool = False
    format: str | None = None
    quality: int = QUALITY
    suffix: str = ''
    force: bool = False
    resume: bool = False
    compare: bool = False
    most_pixels: int = MOST_PIXELS


@dataclass
class Job:
    """A picture to enlarge.

    Attributes:
        source: its file, or its content.
        named: in messages.
        header: of it.
        target: where the result goes; None is the standard output.
        format: of the result.
        comparison: where the comparison goes, if one is to be made.
        is_there: whether the result is, and the comparison alone is to be made.
        record: what was reported of it so far.
    """

    source: Path | bytes
    named: str
    header: Header
    target: Path | None
    format: str
    comparison: Path | None = None
    is_there: bool = False
    record: Record = field(default_factory=dict)


def plan(found: Found, named: str, scale: int, output: Output) -> Job:
    """What is to be done with a file, or with what stands on the standard input.

    Raises:
        DataError: it is none, or no picture, or too large a one.
    """
    path = found.path
    source: Path | bytes = path
    if found.is_standard:
        source = standard_input()
    else:
        check_is_file(path)
    header = pictures.look(source, named, output.most_pixels)
    kind = output.format or header.format
    check_size(header.width * scale, header.height * scale, kind, f'{named}, enlarged,')
    if output.place == STANDARD:
        return Job(source, named, header, None, kind)
    if output.is_file:
        return Job(source, named, header, Path(str(output.place)), kind)
    folder = path.parent if output.place is None else Path(output.place)
    stem, ending = ('stdin', '') if found.is_standard else (path.stem, path.suffix)
    if ending.lower() not in SUFFIXES:  # a part of the name, as in img.001 and img.002
        stem += ending
    if SUFFIXES.get(ending.lower()) != kind:
        ending = FORMATS[kind][0]
    return Job(source, named, header, folder / (stem + output.suffix + ending), kind)


def standard_input() -> bytes:
    """All that stands on it.

    Raises:
        DataError: it is closed, empty, or cannot be read.
    """
    if sys.stdin is None:  # as some services start programs
        raise DataError('standard input is closed')
    try:
        content = sys.stdin.buffer.read()
    except OSError as error:
        raise DataError(f'standard input cannot be read: {error.strerror}') from error
    if not content:
        raise DataError('standard input is empty')
    return content


def check_is_file(path: Path) -> None:
    """Refuse what is no file.

    Raises:
        DataError: it is none, or not to be seen.
    """
    try:
        if not is_file(path):
            raise DataError(f'{path} is no file' if exists(path) else f'there is no file {path}')
    except OSError as error:
        raise DataError(f'{path} cannot be read: {error.strerror}') from error


class Targets:
    """The files that a call makes: none is an original, none is made twice, none is lost.

    Args:
        originals: the pictures to enlarge.
        scale: by how much.
        output: where to.
    """

    def __init__(self, originals: Iterable[Path], scale: int, output: Output) -> None:
        self.originals = {real(path) for path in originals}
        self.scale = scale
        self.output = output
        self.made: dict[Path, str] = {}
        self.folders: set[Path] = set()

    def missing(self, job: Job) -> Job | None:
        """What of a job is still to be made; None if all is there.

        Raises:
            UserError: it would overwrite what it must not, or its folder is not to be written to.
        """
        if job.target is None:
            return job
        self.claim(job.target, job.named)
        comparison = self.comparison_of(job.target) if self.output.compare else None
        if comparison is not None:
            self.claim(comparison, job.named)
        there = [target for target in (job.target, comparison) if target is not None and is_there(target, job.named)]
        if self.output.force:
            there = []
        if there and not self.output.resume:
            raise UserError(
                f'{job.named}: {there[0]} is there already: --resume leaves it, --force overwrites it, --suffix names '
                'it otherwise'
            )
        if job.target in there:
            self.check_result(job.target, job)
        left = replace(job, comparison=None if comparison in there else comparison, is_there=job.target in there)
        if left.is_there and left.comparison is None:
            return None
        self.check_folder(job.target.parent, job.named)
        return left

    def claim(self, target: Path, named: str) -> None:
        """Take a name for what is made of a picture.

        Raises:
            UserError: an original has it, or what is made of another picture.
        """
        place = real(target)
        if place in self.originals:
            raise UserError(f'{named}: {target} is one of the originals, and they are never overwritten')
        if place in self.made:
            raise UserError(f'{named}: {target} is made of {self.made[place]} already: enlarge it into another folder')
        self.made[place] = named

    def comparison_of(self, target: Path) -> Path:
        """Named after the target; with its ending, where a target that differs in nothing else was first."""
        usual = target.with_name(target.stem + COMPARISON)
        return target.with_name(target.name + COMPARISON) if real(usual) in self.made else usual

    def check_result(self, target: Path, job: Job) -> None:
        """Refuse a result of another size, by its header alone.

        Raises:
            UserError: it is, or is no picture.
        """
        there = pictures.look(target, str(target), sys.maxsize)
        width, height = there.width, there.height
        if (width, height) != (job.header.width * self.scale, job.header.height * self.scale):
            raise UserError(
                f'{job.named}: {target} is there, of {width}x{height} pixels: it is not this picture enlarged by '
                f'{self.scale}; --force overwrites it'
            )

    def check_folder(self, folder: Path, named: str) -> None:
        """Make the folder of a result, and try to write to it.

        Raises:
            SaveError: it cannot be made, or not be written to.
        """
        if folder in self.folders:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SaveError(f'{named}: cannot make the folder {folder}: {error.strerror}') from error
        try:
            try_to_write(folder)
        except OSError as error:
            raise SaveError(f'{named}: the folder {folder} cannot be written to: {error.strerror}') from error
        self.folders.add(folder)


def is_there(target: Path, named: str) -> bool:
    """Whether a result is there.

    Raises:
        SaveError: a folder has its name, or no file can have it.
    """
    try:
        if is_dir(target):
            raise SaveError(f'{named}: {target} is a folder')
        return exists(target) or target.is_symlink()  # to a file that is not there
    except OSError as error:
        raise SaveError(f'{named}: {target} cannot be written: {error.strerror}') from error
