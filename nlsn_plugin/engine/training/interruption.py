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
"""Signals that ask a run to end.

SLURM sends SIGTERM before it takes a job's nodes away, and with `sbatch --signal=USR1@120` a signal of one's choice
before that. SIGBREAK is Ctrl-Break on Windows, which has no SIGUSR1.
"""


class Interruption:
    """A request to end the run, which all processes learn of after the same iteration."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None  # the first that arrived
        self.had_ctrl_c = False
        self.group: Any = None
        if torch.distributed.is_initialized():
            self.group = torch.distributed.new_group(backend='gloo', timeout=LONGEST_SILENCE)
        self.asked: tuple[torch.Tensor, Any] | None = None

    def note(self, number: int, frame: FrameType | None) -> None:
        if self.had_ctrl_c and number == signal.SIGINT:  # a second time: end at once
            raise KeyboardInterrupt
        self.had_ctrl_c |= number == signal.SIGINT
        self.signal = self.signal or signal.Signals(number)

    def error(self) -> InterruptedRunError:
        """The error that the run is to end with."""
        return InterruptedRunError(f'ended by {self.signal.name if self.signal else "a signal to another process"}')

    def wanted(self, failing: bool = False) -> bool:
        """Return whether to end now. All processes have to call this after each iteration.

        Several processes answer with what they told each other after the previous iteration, so that none waits for
        another.

        Args:
            failing: whether this process knows that it cannot do the iteration after the next one, in which the others
                would wait for it. A single process ignores this and does what it can.
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
    """Note signals, instead of dying of them, for as long as the block runs."""
    interruption = Interruption()
    with handled_by(interruption.note):
        yield interruption


def run_interruptibly(words: list[str]) -> tuple[int, bool]:
    """Run a command that saves its work when asked to end, and ask it to when this process is asked.

    Returns:
        The command's exit status: -SIGTERM, if it was asked when it had nothing to save yet, or had saved already.
        Whether this process was asked to end; perhaps too late for the command, which then ends as usual.
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
        if asked:  # while the command was being started
            process.terminate()
        status = process.wait()
    return status, asked


def ignore_signals(worker: int = 0) -> None:
    """Ignore SIGNALS from now on. `worker` is the number that a loader gives each of its workers; it has no effect."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Have `handler` take the signals while the block runs; afterwards restore the handlers that were there before.

    This includes signals that were ignored, as SIGINT is in commands that a shell starts in the background, except for
    SIGHUP.
    """
    wanted = [number for number in SIGNALS if number.name != 'SIGHUP' or signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in wanted}  # nohup ignores SIGHUP
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
