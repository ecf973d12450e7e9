"""Many pictures enlarged, file by file: found, checked, written as a whole or not at all; what fails is reported."""

from __future__ import annotations

import glob
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nlsn_plugin.data import pictures
from nlsn_plugin.data.encoding import LOSSY, QUALITY, check_size, encode
from nlsn_plugin.data.pictures import FORMATS, MOST_PIXELS, SUFFIXES, Header
from nlsn_plugin.engine.measuring import peak_of_process
from nlsn_plugin.engine.upscaling.side_by_side import side_by_side
from nlsn_plugin.engine.upscaling.upscaler import Upscaler
from nlsn_plugin.errors import DataError, SaveError, UserError
from nlsn_plugin.models.writing import write_whole

STANDARD = '-'
"""Standard input, or output."""
COMPARISON = '_compare.png'
"""What the names of comparisons end with."""

Record = dict[str, Any]
Report = Callable[[Record], None]


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
    """A picture to enlarge: its file or content, its header, and where the result goes (None: standard output)."""

    source: Path | bytes
    named: str
    header: Header
    target: Path | None
    format: str
    record: Record = field(default_factory=dict)


def find_inputs(words: Sequence[str]) -> Iterator[Path]:
    """Files named, those in folders (not in folders of these), and those that patterns fit; each once.

    What is not there is given too, to be reported in its turn.

    Raises:
        UserError: a folder without pictures, or a pattern that fits nothing.
    """
    seen = set()
    for word in words:
        for path in files_of(word):
            if path not in seen:
                seen.add(path)
                yield path


def files_of(word: str) -> list[Path]:
    path = Path(word)
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if SUFFIXES.get(p.suffix.lower()) and not p.name.startswith('.'))
        if not found:
            raise UserError(f'{path} holds no pictures ({", ".join(SUFFIXES)})')
        return found
    if word == STANDARD or path.exists() or not glob.has_magic(word):
        return [path]
    fitting = sorted(Path(name) for name in glob.glob(word, recursive=True))  # noqa: PTH207 (absolute ones too)
    if not fitting:
        raise UserError(f'nothing fits {word}')
    return [path for path in fitting if path.is_file()]


def run(inputs: Sequence[Path], upscaler: Upscaler, output: Output, report: Report) -> int:
    """Enlarge all pictures.

    Args:
        inputs: of `find_inputs`.
        upscaler: the network.
        output: where to.
        report: is told of each picture: 'input', 'output', 'status' ('done', 'skipped' or 'failed'), and what there
            is to say.

    Returns:
        How many failed.
    """
    failed = 0
    jobs = []
    targets: dict[Path, str] = {}
    originals = {path.resolve() for path in inputs}
    for path in inputs:
        named = 'standard input' if str(path) == STANDARD else str(path)
        record: Record = {'input': str(path), 'output': None}
        try:
            job = plan(path, named, upscaler.scale, output)
            record['output'] = STANDARD if job.target is None else str(job.target)
            if not wanted(job, targets, originals, upscaler.scale, output):
                report({**record, 'status': 'skipped'})
                continue
            jobs.append(replace(job, record=record))
        except UserError as error:
            failed += 1
            report({**record, 'status': 'failed', 'error': str(error)})
    total = sum(job.header.width * job.header.height for job in jobs)
    with tqdm(total=total, unit='px', unit_scale=True, delay=1, leave=False, smoothing=0.1, disable=None) as bar:
        for job in jobs:
            bar.set_description(job.named[-40:], refresh=False)
            before = bar.n
            pixels = job.header.width * job.header.height

            def advance(share: float, most: float = before + pixels, pixels: int = pixels) -> None:
                bar.update(min(share * pixels, most - bar.n))

            try:
                report({**job.record, 'status': 'done', **enlarge(job, upscaler, output, advance)})
            except (UserError, MemoryError) as error:
                failed += 1
                reason = str(error) if isinstance(error, UserError) else f'{job.named}: too little memory'
                report({**job.record, 'status': 'failed', 'error': reason})
            bar.update(before + pixels - bar.n)
    return failed


def plan(path: Path, named: str, scale: int, output: Output) -> Job:
    """What is to be done with a file.

    Raises:
        DataError: it is none, or no picture, or too large a one.
    """
    source: Path | bytes = path
    if str(path) == STANDARD:
        source = sys.stdin.buffer.read()
        if not source:
            raise DataError('standard input is empty')
    elif not path.is_file():
        raise DataError(f'{path} is no file' if path.exists() else f'there is no file {path}')
    header = pictures.look(source, named, output.most_pixels)
    kind = output.format or header.format
    check_size(header.width * scale, header.height * scale, kind, f'{named}, enlarged,')
    if output.place == STANDARD:
        return Job(source, named, header, None, kind)
    if output.is_file:
        return Job(source, named, header, Path(str(output.place)), kind)
    folder = path.parent if output.place is None else Path(output.place)
    stem, ending = ('stdin', '') if str(path) == STANDARD else (path.stem, path.suffix)
    if SUFFIXES.get(ending.lower()) != kind:
        ending = FORMATS[kind][0]
    return Job(source, named, header, folder / (stem + output.suffix + ending), kind)


def wanted(job: Job, targets: dict[Path, str], originals: set[Path], scale: int, output: Output) -> bool:
    """Whether a result is still to be made.

    Raises:
        UserError: it would overwrite what it must not.
    """
    if job.target is None:
        return True
    for target in [job.target, *([comparison_of(job.target)] if output.compare else [])]:
        place = target.resolve()
        if place in originals:
            raise UserError(f'{job.named}: {target} is one of the originals, and they are never overwritten')
        if place in targets:
            raise UserError(f'{job.named}: {target} is made of {targets[place]} already: choose another --suffix')
        targets[place] = job.named
    if not job.target.exists() or output.force:
        return True
    if not output.resume:
        raise UserError(
            f'{job.named}: {job.target} is there already: --resume leaves it, --force overwrites it, --suffix names '
            'it otherwise'
        )
    there = pictures.look(job.target, str(job.target), sys.maxsize)
    if (there.width, there.height) != (job.header.width * scale, job.header.height * scale):
        raise UserError(
            f'{job.named}: {job.target} is there, of {there.width}x{there.height} pixels, and not this picture times '
            f'{scale}: --force overwrites it'
        )
    return False


def comparison_of(target: Path) -> Path:
    return target.with_name(target.stem + COMPARISON)


def enlarge(job: Job, upscaler: Upscaler, output: Output, advance: Callable[[float], None]) -> Record:
    """Read, enlarge and write one picture; return what there is to say of it.

    Raises:
        UserError: it is damaged, memory does not suffice, or the result cannot be written.
    """
    started = time.perf_counter()
    picture = pictures.read(job.source, job.named, output.most_pixels)
    notes = list(picture.notes)
    if isinstance(job.source, Path) and SUFFIXES.get(job.source.suffix.lower()) not in (None, picture.format):
        notes.append(f'it is a {picture.format}, whatever its name says')
    result = upscaler.enlarge(picture, job.named, advance)
    try:
        content, lost = encode(result.picture, job.format, output.quality)
    except DataError as error:
        raise DataError(f'{job.named}: {error}') from error
    write(job.target, content)
    height, width = result.picture.colour.shape[:2]
    record = {
        'width': width,
        'height': height,
        'scale': upscaler.scale,
        'format': job.format,
        'bits': 16 if result.picture.colour.dtype.itemsize == 2 and job.format not in (*LOSSY, 'BMP') else 8,
        'tile': result.tile,
        'tiles': result.tiles,
        'dtype': upscaler.settings.dtype,
        'device': upscaler.device,
        'memory_predicted': result.predicted,
        'memory_peak': peak_of_process(),
        'notes': [*notes, *lost],
        'warnings': result.notes,
    }
    if output.compare and job.target is not None:
        record['comparison'] = str(comparison_of(job.target))
        write(comparison_of(job.target), side_by_side(picture, result.picture, upscaler.scale))
    return {**record, 'seconds': round(time.perf_counter() - started, 3)}


def write(target: Path | None, content: bytes) -> None:
    """To a file, as a whole or not at all; or to the standard output.

    Raises:
        SaveError: it cannot be written.
    """
    if target is None:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SaveError(f'cannot make the folder {target.parent}: {error.strerror}') from error
    write_whole(target, lambda path: path.write_bytes(content))
