"""Files that are either written as a whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from nlsn_plugin.errors import SaveError, UserError


def write_whole(path: Path, save: Callable[[Path], object]) -> None:
    """Let `save` write to a file beside `path`, which takes its place once it is on the disk.

    Whatever `save` raises, or finds wrong with what it wrote, the file beside it is removed and `path` is as it was.

    Raises:
        SaveError: the disk is full, or not to be written to.
    """
    temporary = path.with_name(f'.{path.name[:40]}.{os.getpid()}.tmp')  # a valid name however long that of `path` is
    try:
        save(temporary)
        with temporary.open('rb+') as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, UserError):
            raise
        cause = error if isinstance(error, OSError) else error.__context__ or error
        reason = getattr(cause, 'strerror', None) or str(cause).splitlines()[0]
        raise SaveError(f'{path} could not be saved: {reason}; what was saved before is intact') from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
