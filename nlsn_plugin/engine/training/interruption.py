"""Ending a run when asked to: by Ctrl-C, by SIGTERM, by the scheduler of a cluster that wants its machine back."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.distributed

from nlsn_plugin.engine.distributed import LONGEST_SILENCE
from nlsn_plugin.errors import InterruptedRunError

SIGNALS = [
    getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGHUP', 'SIGUSR1', 'SIGBREAK') if hasattr(signal, name)
]
"""SLURM sends SIGTERM before it takes a job's nodes, and `sbatch --signal=USR1@120` whatever one likes before that.
SIGBREAK is Windows's Ctrl-Break, where SIGUSR1 is not."""


class Interruption:
    """Whether the run is to end, which all processes learn of after the same iteration."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None  # the first
        self.had_ctrl_c = False
        self.group: Any = None
        if torch.distributed.is_initialized():
            self.group = torch.distributed.new_group(backend='gloo', timeout=LONGEST_SILENCE)
        self.asked: tuple[torch.Tensor, Any] | None = None

    def note(self, number: int, frame: FrameType | None) -> None:
        if self.had_ctrl_c and number == signal.SIGINT:  # once more: at once
            raise KeyboardInterrupt
        self.had_ctrl_c |= number == signal.SIGINT
        self.signal = self.signal or signal.Signals(number)

    def error(self) -> InterruptedRunError:
        """What the run ends with."""
        return InterruptedRunError(f'ended by {self.signal.name if self.signal else "a signal to another process"}')

    def wanted(self, failing: bool = False) -> bool:
        """Whether to end now. To be called by all processes after each iteration.

        With several, what they told each other after the iteration before: so that no process waits for another.

        Args:
            failing: whether this process knows that it cannot do the iteration after the next, for which the others
                would wait. One alone does what it can.
        """
        if self.group is None:
            return self.signal is not None
        answer = False
        if self.asked:
            told, work = self.asked
            work.wait()
            answer = bool(told.item())
        told = torch.tensor([float(failing or self.signal is not None)])
        work = torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX, group=self.group, async_op=True)
        self.asked = told, work
        return answer


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Take note of the signals instead of dying of them, for as long as the block runs."""
    interruption = Interruption()
    with handled_by(interruption.note):
        yield interruption


def run_interruptibly(words: list[str]) -> tuple[int, bool]:
    """Run a command that saves when asked to end; it is asked when this process is.

    Returns:
        Its exit status; -SIGTERM, if it was asked when it had nothing to save, or had saved.
        Whether this process was asked: perhaps too late for the command, which then ends as ever.
    """
    process: subprocess.Popen[bytes] | None = None
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        if process is not None:
            process.terminate()

    with handled_by(ask):
        process = subprocess.Popen(words)
        if asked:  # while it was started
            process.terminate()
        status = process.wait()
    return status, asked


def ignore_signals(worker: int = 0) -> None:
    """From now on. `worker` is the number that a loader gives each of its workers."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Have `handler` take the signals while the block runs; afterwards what was there before takes them.

    Also those that are ignored, as SIGINT is in commands that a shell starts in the background.
    """
    wanted = [number for number in SIGNALS if number.name != 'SIGHUP' or signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in wanted}  # nohup has SIGHUP ignored
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
