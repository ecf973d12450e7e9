"""The garbage collector has nothing to find in what is imported, which stays to the end: it need not look there.

Else it takes a third of the time that a short command takes, while importing and at the end.
"""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Collect nothing while the block runs."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@functools.cache
def keep_what_is_imported() -> None:
    """Take what there is by now out of the collector's sight, once in a process."""
    gc.freeze()
