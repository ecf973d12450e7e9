"""Checks of LMDBs of images: each image is decoded, and compared with meta_info.txt and with its HR or LR partner."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import lmdb

from nlsn_plugin.data.images import contents, decode_whole
from nlsn_plugin.data.paired import LISTED, check_lmdb, keys, stored
from nlsn_plugin.data.parallel import in_parallel, processes
from nlsn_plugin.errors import DataError, UserError
from nlsn_plugin.files import exists

PAIRED = re.compile(r'(?P<name>.*)_LR_bicubic_X(?P<scale>\d+)(?P<rest>.*)')
"""BasicSR's name for the LMDB of LR images that belongs to <name>_HR<rest>."""

Shape = tuple[int, ...]


def check(paths: Sequence[Path], workers: int | None = None) -> list[str]:
    """Decode every image of LMDBs.

    Args:
        paths: LMDBs, or folders of LMDBs.
        workers: number of processes; one per core if None.

    Returns:
        One line for each LMDB.

    Raises:
        UserError: there are faults; the message lists all of them.
    """
    said, faults, shapes = [], [], {}
    for path in lmdbs(paths):
        try:
            check_lmdb(path)
            shapes[path], wrong = listed(path)
        except DataError as error:
            faults.append(str(error))
            continue
        images = [(path, key, shape) for key, shape in shapes[path].items()]
        wrong += unlisted(path, shapes[path])
        results = in_parallel(check_image, images, workers or processes(), f'checking {path.name}') if images else []
        wrong += [str(result) for result in results if isinstance(result, DataError)]
        faults += wrong
        said.append(f'{path}: {len(images)} images, ' + (f'{len(wrong)} faults' if wrong else 'all whole'))
    for path in shapes:
        faults += strangers(path, shapes)
    if faults:
        raise UserError('\n  '.join([*said, f'{len(faults)} fault{"s" * (len(faults) > 1)}:', *faults]))
    return said


def lmdbs(paths: Sequence[Path]) -> list[Path]:
    """Replace folders by the LMDBs in them, except hidden ones, which are unfinished.

    Raises:
        UserError: a path does not exist.
    """
    found: list[Path] = []
    for path in paths:
        inside = sorted(one for one in path.glob('*.lmdb') if not one.name.startswith('.'))
        if not exists(path):
            raise UserError(f'there is no {path}')
        found += inside or [path]
    return list(dict.fromkeys(found))


def listed(path: Path) -> tuple[dict[str, Shape], list[str]]:
    """Read the keys of meta_info.txt with the shapes of their images; return these, and what is wrong with the file."""
    shapes: dict[str, Shape] = {}
    faults = []
    text = contents(path / 'meta_info.txt').decode('ascii', 'backslashreplace')  # keys are ASCII; show damage
    for number, line in enumerate(text.splitlines(), start=1):
        match = LISTED.fullmatch(line)
        if not match:
            faults.append(f'{path / "meta_info.txt"}, line {number}: {line!r} is not like `baboon.png (120,125,3) 1`')
        elif match['key'] in shapes:
            faults.append(f'{path / "meta_info.txt"}, line {number}: {match["key"]} a second time')
        else:
            shapes[match['key']] = tuple(int(match[name]) for name in ('height', 'width', 'channels'))
    return shapes, faults


def unlisted(path: Path, shapes: dict[str, Shape]) -> list[str]:
    """Find the keys in data.mdb that meta_info.txt does not list; return a line for each, or one if none can be read.

    The keys are read in a separate process, because liblmdb may abort on damage.
    """
    try:
        with ProcessPoolExecutor(1, initializer=say_nothing) as reader:
            found = reader.submit(keys, str(path)).result()
    except (lmdb.Error, BrokenProcessPool) as error:
        return [f'{path / "data.mdb"} is damaged, its keys do not read: {error}']
    there = [key.decode('ascii', 'backslashreplace') for key in found]
    return [f'{path} has the key {key}, which its meta_info.txt does not list' for key in there if key not in shapes]


def say_nothing() -> None:
    """Keep an abort of liblmdb in this process quiet, without message, trace or core file: `unlisted` reports it."""
    faulthandler.disable()
    with contextlib.suppress(ImportError):  # Windows, which writes no core files
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def check_image(image: tuple[Path, str, Shape]) -> None:
    """Decode one image of an LMDB.

    Raises:
        DataError: it is missing, cannot be read or decoded, or has another shape than the listed one.
    """
    path, key, shape = image
    where = f'{path}, key {key},'
    decoded = decode_whole(stored(str(path), key), where)
    found = decoded.shape if decoded.ndim == 3 else (*decoded.shape, 1)
    if found != shape:
        raise DataError(f'{where} is of {found[1]}x{found[0]}, {found[2]} channels: its meta_info.txt lists {shape}')


def strangers(path: Path, shapes: dict[Path, dict[str, Shape]]) -> Iterator[str]:
    """Yield a line for each image of an LR LMDB without partner of the right size in the HR LMDB, and the reverse."""
    match = PAIRED.fullmatch(path.name)
    hr_path = path.with_name(f'{match["name"]}_HR{match["rest"]}') if match else path
    if not match or hr_path not in shapes:
        return
    scale, hr, lr = int(match['scale']), shapes[hr_path], shapes[path]
    for key in hr.keys() ^ lr.keys():
        yield f'{key} is in {hr_path if key in hr else path} and not in {path if key in hr else hr_path}'
    for key in hr.keys() & lr.keys():
        if hr[key][:2] != tuple(scale * n for n in lr[key][:2]):
            yield f'{path}, key {key}, is of {lr[key][1]}x{lr[key][0]}, and {hr_path} has {hr[key][1]}x{hr[key][0]}'
