"""LMDBs of images, checked to the last pixel: against their meta_info.txt, and against each other."""

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
"""How BasicSR names the LMDB of LR images that belongs to <name>_HR<rest>."""

Shape = tuple[int, ...]


def check(paths: Sequence[Path], workers: int | None = None) -> list[str]:
    """Decode every image of LMDBs.

    Args:
        paths: LMDBs, or folders of LMDBs.
        workers: processes; as many as there are cores if None.

    Returns:
        What was found of each LMDB, a line for each.

    Raises:
        UserError: names every fault.
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
    """The LMDBs themselves, and those in folders; what is hidden is not finished."""
    found: list[Path] = []
    for path in paths:
        inside = sorted(one for one in path.glob('*.lmdb') if not one.name.startswith('.'))
        if not exists(path):
            raise UserError(f'there is no {path}')
        found += inside or [path]
    return list(dict.fromkeys(found))


def listed(path: Path) -> tuple[dict[str, Shape], list[str]]:
    """The keys of meta_info.txt with the shapes of their images, and what is wrong with it."""
    shapes: dict[str, Shape] = {}
    faults = []
    text = contents(path / 'meta_info.txt').decode('ascii', 'backslashreplace')  # keys are ASCII, and damage is shown
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
    """What is wrong with the keys that are there, whatever meta_info.txt lists.

    They are read by a process of its own, which liblmdb may end.
    """
    try:
        with ProcessPoolExecutor(1, initializer=say_nothing) as reader:
            found = reader.submit(keys, str(path)).result()
    except (lmdb.Error, BrokenProcessPool) as error:
        return [f'{path / "data.mdb"} is damaged, its keys do not read: {error}']
    there = [key.decode('ascii', 'backslashreplace') for key in found]
    return [f'{path} has the key {key}, which its meta_info.txt does not list' for key in there if key not in shapes]


def say_nothing() -> None:
    """Let liblmdb end this process without a word, a trace or a core file: the fault is named in one line."""
    faulthandler.disable()
    with contextlib.suppress(ImportError):  # Windows, which writes none
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def check_image(image: tuple[Path, str, Shape]) -> None:
    """Decode a value whole.

    Raises:
        DataError: it is missing, cannot be read, does not decode, or has another shape than is listed.
    """
    path, key, shape = image
    where = f'{path}, key {key},'
    decoded = decode_whole(stored(str(path), key), where)
    found = decoded.shape if decoded.ndim == 3 else (*decoded.shape, 1)
    if found != shape:
        raise DataError(f'{where} is of {found[1]}x{found[0]}, {found[2]} channels: its meta_info.txt lists {shape}')


def strangers(path: Path, shapes: dict[Path, dict[str, Shape]]) -> Iterator[str]:
    """What is in an LMDB of LR images and does not belong to one in that of HR images, or the other way round."""
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
