"""Standard streams that take nothing more."""

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
"""Exit status of a program that the signal ended."""


@contextlib.contextmanager
def while_output_is_taken() -> Iterator[None]:
    """End the program when its output goes to a full disk, or, without a word, into a pipe whose reader has seen
    enough. Where they are closed, as some services start programs, what is said goes nowhere. Letters that standard
    output does not take, which is of ASCII in some places, are printed as Python's escapes, as on standard error."""
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
    """Whether it goes into a pipe that nobody reads."""
    if not hasattr(select, 'poll'):  # Windows does not tell
        return True
    watch = select.poll()
    watch.register(stream.fileno(), 0)  # errors are reported without asking
    return bool(watch.poll(0))


def abandon(stream: TextIO) -> None:
    """Leave a stream that takes nothing more: else the interpreter tries once more as it ends, and complains."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, stream.fileno())
    os.close(nothing)
