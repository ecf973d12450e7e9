"""Plan of what is made of each picture and where; anything that would overwrite a file is refused before the work."""

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
        format: one of pictures.FORMATS; None is the format of each original.
        quality: quality of JPEG and WebP.
        suffix: put between the original's stem and the ending, unless `place` is a file.
        force: whether existing results are overwritten.
        resume: whether pictures with existing results are skipped.
        compare: whether a comparison of bicubic and the result is written beside each result.
        most_pixels: pictures of more pixels are refused.
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
        named: its name in messages.
        header: its size and format, read from the header.
        target: file of the result; None is the standard output.
        format: format of the result.
        comparison: file of the comparison; None if none is to be made.
        is_there: whether the result exists, so that only the comparison is to be made.
        record: the entries of its report so far.
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
    """Plan what to do with a file, or with the content of the standard input.

    Raises:
        DataError: there is no such file, or it is not a picture, or is too large, or its result would be.
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
    if ending.lower() not in SUFFIXES:  # it is a part of the name, as in img.001 and img.002
        stem += ending
    if SUFFIXES.get(ending.lower()) != kind:
        ending = FORMATS[kind][0]
    return Job(source, named, header, folder / (stem + output.suffix + ending), kind)


def standard_input() -> bytes:
    """Read all of the standard input.

    Raises:
        DataError: it is closed or empty, or cannot be read.
    """
    if sys.stdin is None:  # as when some services start the program
        raise DataError('standard input is closed')
    try:
        content = sys.stdin.buffer.read()
    except OSError as error:
        raise DataError(f'standard input cannot be read: {error.strerror}') from error
    if not content:
        raise DataError('standard input is empty')
    return content


def check_is_file(path: Path) -> None:
    """Refuse a path that is not a file.

    Raises:
        DataError: nothing or something else is there, or the system does not let us look.
    """
    try:
        if not is_file(path):
            raise DataError(f'{path} is no file' if exists(path) else f'there is no file {path}')
    except OSError as error:
        raise DataError(f'{path} cannot be read: {error.strerror}') from error


class Targets:
    """The files that a call makes, checked so that none replaces an original, an earlier result or another new one.

    Args:
        originals: the pictures to enlarge.
        scale: factor of enlargement.
        output: where results go, and whether existing ones are overwritten or skipped.
    """

    def __init__(self, originals: Iterable[Path], scale: int, output: Output) -> None:
        self.originals = {real(path) for path in originals}
        self.scale = scale
        self.output = output
        self.made: dict[Path, str] = {}
        self.folders: set[Path] = set()

    def missing(self, job: Job) -> Job | None:
        """Return the part of a job that is still to be done; None if everything is there.

        Raises:
            UserError: it would overwrite a file that it must not, or its folder cannot be written to.
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
        """Reserve a file name for what is made of a picture.

        Raises:
            UserError: it is the name of an original, or is reserved already.
        """
        place = real(target)
        if place in self.originals:
            raise UserError(f'{named}: {target} is one of the originals, and they are never overwritten')
        if place in self.made:
            raise UserError(f'{named}: {target} is made of {self.made[place]} already: enlarge it into another folder')
        self.made[place] = named

    def comparison_of(self, target: Path) -> Path:
        """The file of a target's comparison, named after its stem.

        If that name is reserved already, as by another target with the same stem, the target's ending is added to it.
        """
        usual = target.with_name(target.stem + COMPARISON)
        return target.with_name(target.name + COMPARISON) if real(usual) in self.made else usual

    def check_result(self, target: Path, job: Job) -> None:
        """Check by its header that an existing result has the size of the enlarged picture.

        Raises:
            UserError: it has another size, or is not a picture.
        """
        there = pictures.look(target, str(target), sys.maxsize)
        width, height = there.width, there.height
        if (width, height) != (job.header.width * self.scale, job.header.height * self.scale):
            raise UserError(
                f'{job.named}: {target} is there, of {width}x{height} pixels: it is not this picture enlarged by '
                f'{self.scale}; --force overwrites it'
            )

    def check_folder(self, folder: Path, named: str) -> None:
        """Make the folder of a result if it is missing, and check that it can be written to.

        Raises:
            SaveError: it cannot be made, or cannot be written to.
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
    """Whether a result exists.

    Raises:
        SaveError: it is a folder, or no file can have its name.
    """
    try:
        if is_dir(target):
            raise SaveError(f'{named}: {target} is a folder')
        return exists(target) or target.is_symlink()  # a broken link counts as a file
    except OSError as error:
        raise SaveError(f'{named}: {target} cannot be written: {error.strerror}') from error
