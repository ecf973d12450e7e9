"""Files that are written as a whole or not at all, lines of JSON, and places that are refused before the work."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from nlsn_plugin.errors import ArgumentError, SaveError, UserError, first_line

NOTHING = (errno.ENOENT, errno.ENOTDIR, errno.EBADF, errno.ELOOP)
"""What the system says of a path at which nothing is."""


def kind(path: Path) -> int:
    """What is at a path, as stat.S_IFMT names it, links followed; 0 if nothing is.

    Path.exists and its like find nothing, from Python 3.14 on, where the system will not let them look.

    Raises:
        OSError: it cannot be told: its folder is closed, its name too long.
    """
    try:
        return stat.S_IFMT(path.stat().st_mode)
    except OSError as error:
        if error.errno not in NOTHING:
            raise
    except ValueError:  # no name of a file
        pass
    return 0


def exists(path: Path) -> bool:
    return kind(path) != 0


def is_file(path: Path) -> bool:
    return kind(path) == stat.S_IFREG


def is_dir(path: Path) -> bool:
    return kind(path) == stat.S_IFDIR


def write_whole(path: Path, save: Callable[[Path], object], replaces: bool = True) -> None:
    """Let `save` write to a file beside `path`, which takes its place once it is on the disk.

    Whatever `save` raises, or finds wrong with what it wrote, the file beside it is removed and `path` is as it was.
    A link is replaced itself: what it leads to may be what somebody wants to keep.

    Args:
        path: of the file.
        save: is given the path to write to.
        replaces: whether a file that is there by then is replaced.

    Raises:
        SaveError: the disk is full, or not to be written to, or a file is there that is not to be replaced.
    """
    # A valid name however long that of `path` is, and of this thread alone.
    temporary = path.with_name(f'.{path.name[:40]}.{os.getpid()}.{threading.get_ident()}.tmp')
    try:
        save(temporary)
        with temporary.open('rb+') as file:
            os.fsync(file.fileno())
        put_in_place(temporary, path, replaces)
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, UserError):
            raise
        cause = error if isinstance(error, OSError) else error.__context__ or error
        reason = getattr(cause, 'strerror', None) or first_line(cause)
        raise SaveError(f'{path} could not be saved: {reason}; what was saved before is intact') from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    keep_names(path.parent)


def keep_names(folder: Path) -> None:
    """Have the disk keep the names of the files in a folder, where the system can be asked to."""
    with contextlib.suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def write_text(path: Path, text: str) -> None:
    """`write_whole` of text in UTF-8; what is there and no file, such as /dev/stdout, takes it as it comes.

    Raises:
        SaveError: see `write_whole`.
    """
    if is_written_whole(path):
        write_whole(path, lambda temporary: temporary.write_text(text, encoding='utf-8'))
    else:
        path.write_text(text, encoding='utf-8')


def is_written_whole(path: Path) -> bool:
    """Whether `write_text` will replace what is there."""
    return kind(path) in (0, stat.S_IFREG)


def put_in_place(temporary: Path, path: Path, replaces: bool) -> None:
    """Give a file another name, under which something else is replaced or left.

    Raises:
        SaveError: it is left.
    """
    if not replaces:
        try:
            os.link(temporary, path)  # unlike a look and a replacement, this leaves what appears in between
        except OSError:  # it is there, or the file system has no links
            if os.path.lexists(path):
                raise SaveError(f'{path} is there by now, and was left as it is') from None
        else:
            return
    temporary.replace(path)


def check_writable(path: Path, whole: bool = False) -> None:
    """Refuse, before the work, a file that could not be written after it.

    Args:
        path: of the file.
        whole: whether `write_whole` will write it: one that is there is then replaced, and need not be writable itself.

    Raises:
        SaveError: a folder has its name, its own folder is not there, or it cannot be written.
    """
    try:
        there = kind(path)
        if there == stat.S_IFDIR:
            raise SaveError(f'{path} is a folder: name the file in it')
        if not exists(path.parent):
            raise SaveError(f'there is no folder {path.parent}')
        if whole or not there:
            try_to_write(path.parent)
        elif there == stat.S_IFREG:  # a pipe would wait for its reader, or lose it
            path.open('ab').close()
    except OSError as error:
        raise SaveError(f'{path} cannot be written: {error.strerror}') from error


def check_json(path: Path) -> None:
    """Refuse, before the work, a place for JSON: what `check_writable` does, and names that end otherwise.

    Raises:
        ArgumentError: its name does not end in .json.
        SaveError: see `check_writable`.
    """
    if path.suffix.lower() != '.json':
        raise ArgumentError(f'{path}: a name that ends in .json is expected')
    check_writable(path, whole=is_written_whole(path))


def check_folder(folder: Path) -> None:
    """Refuse, before the work, a folder that could not be made, or not be written to.

    Raises:
        SaveError: the nearest folder above it that there is cannot be written to.
    """
    try:
        place = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
        if not exists(place):
            raise SaveError(f'the folder {folder} cannot be made: {place} is a link that leads nowhere')
        try_to_write(place)
    except OSError as error:
        raise SaveError(f'the folder {folder} cannot be written to: {error.strerror}') from error


def try_to_write(folder: Path) -> None:
    """Make a temporary file in a folder, and remove it.

    Raises:
        OSError: it cannot be made.
    """
    with tempfile.TemporaryFile(dir=folder):
        pass


def whole_lines(path: Path) -> Iterator[Any]:
    """The lines of JSON in a file, if it is there; one that was cut short is passed over."""
    for line in path.read_text().splitlines() if exists(path) else ():
        with contextlib.suppress(ValueError):
            yield json.loads(line)
