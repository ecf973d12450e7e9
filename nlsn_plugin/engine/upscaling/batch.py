"""Upscaling of many pictures, file by file: results are written as a whole or not at all, and failures reported."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from nlsn_plugin.data import pictures
from nlsn_plugin.data.encoding import LOSSY, check_size, encode
from nlsn_plugin.data.pictures import SUFFIXES
from nlsn_plugin.engine.measuring.memory import peak_of_process
from nlsn_plugin.engine.names import one_line, readable
from nlsn_plugin.engine.upscaling import memory
from nlsn_plugin.engine.upscaling.finding import STANDARD, Found
from nlsn_plugin.engine.upscaling.planning import Job, Output, Record, Targets, plan
from nlsn_plugin.engine.upscaling.side_by_side import side_by_side
from nlsn_plugin.engine.upscaling.upscaler import Upscaler
from nlsn_plugin.errors import DataError, SaveError, UserError
from nlsn_plugin.files import write_whole

Report = Callable[[Record], None]


def run(inputs: Sequence[Found], upscaler: Upscaler, output: Output, report: Report) -> int:
    """Enlarge all pictures.

    Args:
        inputs: what `find_inputs` returned.
        upscaler: the network.
        output: where results go, and how.
        report: is called for each picture with a dict of 'input', 'output', 'status' ('done', 'skipped' or 'failed')
            and, according to the status, 'error' or the details of the result.

    Returns:
        The number of pictures that failed.
    """
    jobs, failed = jobs_of(inputs, upscaler.scale, output, report)
    total = sum(job.header.width * job.header.height for job in jobs)
    with tqdm(total=total, unit='px', unit_scale=True, delay=1, leave=False, smoothing=0.1, disable=None) as bar:
        for job in jobs:
            bar.set_description(one_line(job.named)[-40:], refresh=False)
            before = bar.n
            pixels = job.header.width * job.header.height

            def advance(share: float, most: float = before + pixels, pixels: int = pixels) -> None:
                bar.update(min(share * pixels, most - bar.n))

            try:
                with memory.named_if_it_runs_out(job.named):
                    if job.is_there:
                        made = compare(job, upscaler.scale, output)
                    else:
                        made = enlarge(job, upscaler, output, advance)
                outcome = {'status': 'done', **made}
            except UserError as error:
                failed += 1
                outcome = {'status': 'failed', 'error': str(error)}
            report({**job.record, **outcome})
            bar.update(before + pixels - bar.n)
    return failed


def jobs_of(inputs: Sequence[Found], scale: int, output: Output, report: Report) -> tuple[list[Job], int]:
    """Return the jobs to do, and the number of pictures that failed already.

    Failed pictures are reported, and so are those whose results are there already.
    """
    failed = 0
    jobs = []
    targets = Targets([found.path for found in inputs], scale, output)
    for found in inputs:
        named = 'standard input' if found.is_standard else readable(str(found.path))
        record: Record = {'input': str(found.path), 'output': None}
        try:
            if found.problem:
                raise DataError(found.problem)
            job = plan(found, named, scale, output)
            record['output'] = STANDARD if job.target is None else str(job.target)
            left = targets.missing(job)
        except UserError as error:
            failed += 1
            report({**record, 'status': 'failed', 'error': str(error)})
            continue
        if left is None:
            report({**record, 'status': 'skipped'})
        else:
            jobs.append(replace(left, record=record))
    return jobs, failed


def enlarge(job: Job, upscaler: Upscaler, output: Output, advance: Callable[[float], None]) -> Record:
    """Read, enlarge and write one picture; return the details to report.

    Raises:
        UserError: the picture is damaged, memory does not suffice, or the result cannot be written.
    """
    started = time.perf_counter()
    picture = pictures.read(job.source, job.named, output.most_pixels)
    notes = list(picture.notes)
    if isinstance(job.source, Path) and SUFFIXES.get(job.source.suffix.lower()) not in (None, picture.format):
        notes.append(f'it is a {picture.format}, whatever its name says')
    height, width = (upscaler.scale * edge for edge in picture.colour.shape[:2])
    is_deep = picture.colour.dtype == np.uint16 and (picture.colour.ndim == 3 or picture.alpha is not None)
    check_size(width, height, job.format, f'{job.named}, enlarged,', is_deep)
    result = upscaler.enlarge(picture, job.named, advance)
    try:
        content, lost = encode(result.picture, job.format, output.quality)
    except DataError as error:
        raise DataError(f'{job.named}: {error}') from error
    write(job.target, content, output.force)
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
    if job.comparison is not None:
        record['comparison'] = str(job.comparison)
        write(job.comparison, side_by_side(picture, result.picture, upscaler.scale), output.force)
    return {**record, 'seconds': round(time.perf_counter() - started, 3)}


def compare(job: Job, scale: int, output: Output) -> Record:
    """Make the comparison for a result that is there already; return the details to report.

    Raises:
        UserError: either picture is damaged, their sizes do not match, or the comparison cannot be written.
    """
    started = time.perf_counter()
    picture = pictures.read(job.source, job.named, output.most_pixels)
    target = Path(str(job.target))
    larger = pictures.read(target, str(target), sys.maxsize)
    height, width = larger.colour.shape[:2]
    if (height, width) != tuple(scale * edge for edge in picture.colour.shape[:2]):
        said = f'{target} is turned: it is not this picture enlarged by {scale}'
        raise DataError(f'{job.named}: {said}; --force overwrites it')
    write(job.comparison, side_by_side(picture, larger, scale), output.force)
    return {
        'width': width,
        'height': height,
        'scale': scale,
        'format': larger.format,
        'comparison': str(job.comparison),
        'notes': ['it is there already, and was compared'],
        'warnings': [],
        'seconds': round(time.perf_counter() - started, 3),
    }


def write(target: Path | None, content: bytes, force: bool) -> None:
    """Write to a file, as a whole or not at all, or to the standard output if `target` is None.

    Raises:
        SaveError: it cannot be written, or the file has come to exist meanwhile and `force` is not set.
        BrokenPipeError: nobody reads the standard output any more.
    """
    if target is not None:
        write_whole(target, lambda path: path.write_bytes(content), replaces=force)
        return
    try:  # not sys.stdout itself, which would try to flush again at exit what it could not write
        with open(sys.stdout.fileno(), 'wb', closefd=False) as stream:
            stream.write(content)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise SaveError(f'standard output could not be written: {error.strerror}') from error
