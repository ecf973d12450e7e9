"""Writing files as a whole or not at all, reading lines of JSON, and refusing unwritable paths before the work."""

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
"""Error numbers that mean that there is nothing at a path."""


def kind(path: Path) -> int:
    """Type of what is at a path, as stat.S_IFMT gives it, with links followed; 0 if there is nothing.

    From Python 3.14 on, Path.exists and its like return False where the system denies access; this raises.

    Raises:
        OSError: it cannot be told, as when access to a folder is denied or the name is too long.
    """
    try:
        return stat.S_IFMT(path.stat().st_mode)
    except OSError as error:
        if error.errno not in NOTHING:
            raise
    except ValueError:  # not a valid name of a file
        pass
    return 0


def exists(path: Path) -> bool:
    return kind(path) != 0


def is_file(path: Path) -> bool:
    return kind(path) == stat.S_IFREG


def is_dir(path: Path) -> bool:
    return kind(path) == stat.S_IFDIR


def write_whole(path: Path, save: Callable[[Path], object], replaces: bool = True) -> None:
    """Let `save` write to a temporary file beside `path`, and move it to `path` once it is on the disk.

    If `save` raises, because it fails or rejects what it wrote, the temporary file is removed and `path` is left alone.
    If `path` is a link, the link is replaced, and the file that it leads to is kept.

    Args:
        path: where the file goes.
        save: called with the path of the temporary file.
        replaces: whether a file that is at `path` by then is replaced.

    Raises:
        SaveError: writing fails, as on a full disk, or a file is there that is not to be replaced.
    """
    # Cut so that it is valid however long the name of `path` is, and unique to this thread.
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
    """Flush the entries of a folder to the disk, where the system supports it."""
    with contextlib.suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def write_text(path: Path, text: str) -> None:
    """Write text in UTF-8 by `write_whole`, or directly to what is not a regular file, such as /dev/stdout.

    Raises:
        SaveError: see `write_whole`.
    """
    if is_written_whole(path):
        write_whole(path, lambda temporary: temporary.write_text(text, encoding='utf-8'))
    else:
        path.write_text(text, encoding='utf-8')


def is_written_whole(path: Path) -> bool:
    """Whether `write_text` uses `write_whole`: there is a regular file at `path`, or nothing."""
    return kind(path) in (0, stat.S_IFREG)


def put_in_place(temporary: Path, path: Path, replaces: bool) -> None:
    """Rename `temporary` to `path`, where an existing file is replaced or left.

    Raises:
        SaveError: a file is there, and is left.
    """
    if not replaces:
        try:
            os.link(temporary, path)  # atomic, unlike a check and a rename, between which a file may appear
        except OSError:  # `path` exists, or the file system has no hard links
            if os.path.lexists(path):
                raise SaveError(f'{path} is there by now, and was left as it is') from None
        else:
            return
    temporary.replace(path)


def check_writable(path: Path, whole: bool = False) -> None:
    """Refuse, before the work begins, a file that could not be written at its end.

    Args:
        path: of the file.
        whole: whether `write_whole` will write it: an existing file is then replaced, and need not be writable itself.

    Raises:
        SaveError: it is a folder, its parent folder does not exist, or it cannot be written.
    """
    try:
        there = kind(path)
        if there == stat.S_IFDIR:
            raise SaveError(f'{path} is a folder: name the file in it')
        if not exists(path.parent):
            raise SaveError(f'there is no folder {path.parent}')
        if whole or not there:
            try_to_write(path.parent)
        elif there == stat.S_IFREG:  # a pipe would wait for a reader, and closing it would end the reader
            path.open('ab').close()
    except OSError as error:
        raise SaveError(f'{path} cannot be written: {error.strerror}') from error


def check_json(path: Path) -> None:
    """Refuse, before the work begins, a path that does not end in .json, or that `check_writable` refuses.

    Raises:
        ArgumentError: its name does not end in .json.
        SaveError: see `check_writable`.
    """
    if path.suffix.lower() != '.json':
        raise ArgumentError(f'{path}: a name that ends in .json is expected')
    check_writable(path, whole=is_written_whole(path))


def check_folder(folder: Path) -> None:
    """Refuse, before the work begins, a folder that cannot be made or written to.

    Raises:
        SaveError: the folder, or its nearest existing parent, cannot be written to.
    """
    try:
        place = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
        if not exists(place):
            raise SaveError(f'the folder {folder} cannot be made: {place} is a link that leads nowhere')
        try_to_write(place)
    except OSError as error:
        raise SaveError(f'the folder {folder} cannot be written to: {error.strerror}') from error


def try_to_write(folder: Path) -> None:
    """Create a temporary file in a folder, and remove it.

    Raises:
        OSError: it cannot be created.
    """
    with tempfile.TemporaryFile(dir=folder):
        pass


def whole_lines(path: Path) -> Iterator[Any]:
    """Yield the parsed lines of a file of JSON lines, if it exists; a line that was cut short is skipped."""
    for line in path.read_text().splitlines() if exists(path) else ():
        with contextlib.suppress(ValueError):
            yield json.loads(line)
