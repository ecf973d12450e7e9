"""Handling of standard streams that cannot be written to."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

LIKE_SIGPIPE = 128 + 13
"""Exit status of a program that SIGPIPE ended."""


@contextlib.contextmanager
def while_output_is_taken() -> Iterator[None]:
    """End the program when its output cannot be written.

    If the disk is full, an error is printed; if the reader of a pipe has ended, nothing is. Where a stream is closed,
    as some services start programs, output to it is discarded. Characters that standard output cannot encode, as where
    it is ASCII, are printed as Python's escapes, as on standard error.
    """
    for name in ('stdout', 'stderr'):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open('w'))  # noqa: SIM115  # for as long as the program runs
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors='backslashreplace')
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not any(is_broken(stream) for stream in (sys.stdout, sys.stderr)):
            raise  # some other pipe
        abandon(sys.stdout)
        abandon(sys.stderr)
        sys.exit(LIKE_SIGPIPE)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or error.filename or os.environ.get('NLSN_TRACE'):
            raise
        print(f'nlsn: nothing more can be written: {error.strerror}', file=sys.stderr)
        abandon(sys.stdout)
        sys.exit(1)


def is_broken(stream: TextIO) -> bool:
    """Whether a stream is a pipe that nobody reads."""
    if not hasattr(select, 'poll'):  # Windows cannot tell
        return True
    watch = select.poll()
    watch.register(stream.fileno(), 0)  # errors are reported without asking
    return bool(watch.poll(0))


def abandon(stream: TextIO) -> None:
    """Redirect a broken stream to nowhere: otherwise the interpreter would flush it once more at exit, and complain."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, stream.fileno())
    os.close(nothing)
