"""Locks on files: of one process, whose own processes do not inherit them, and gone when it ends, however it ends."""

from __future__ import annotations

from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
    import msvcrt


def lock(file: IO[Any]) -> None:
    """Keep other processes from locking a file that is open for writing, until it is closed.

    Raises:
        BlockingIOError: another process has locked it.
        OSError: there are file systems without locks.
    """
    try:
        if fcntl:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except PermissionError as error:  # what some systems say instead
        raise BlockingIOError(*error.args) from error
