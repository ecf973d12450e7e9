"""Locks on files. A lock belongs to one process; processes that it starts do not inherit it. It is released when the
process ends, however it ends."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import IO, Any

from nlsn_plugin.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
    import msvcrt


def lock(file: IO[Any]) -> None:
    """Lock a file that is open for writing against other processes, until it is closed.

    Raises:
        BlockingIOError: another process has locked it.
        OSError: the file system has no locks.
    """
    try:
        if fcntl:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except PermissionError as error:  # which some systems raise instead
        raise BlockingIOError(*error.args) from error


def claim(file: IO[Any], folder: Path, taken: str) -> None:
    """`lock` a file in a folder; on a file system without locks, only print that the folder is not protected.

    Raises:
        UserError: another process has locked it; `taken` is the message.
    """
    try:
        lock(file)
    except BlockingIOError:
        raise UserError(taken) from None
    except OSError as error:
        print(f'{folder} cannot be kept from other processes: {error.strerror}', file=sys.stderr)
