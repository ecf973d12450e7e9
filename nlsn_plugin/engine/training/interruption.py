"""Ending a run when asked to: by Ctrl-C, by SIGTERM, by the scheduler of a cluster that wants its machine back."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.distributed

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""SLURM sends SIGTERM before it takes a job's nodes, and `sbatch --signal=USR1@120` whatever one likes before that."""


class Interruption:
    """Whether the run is to end, which all processes learn of after the same iteration."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.group: Any = torch.distributed.new_group(backend='gloo') if torch.distributed.is_initialized() else None
        self.asked: tuple[torch.Tensor, Any] | None = None

    def note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:  # Ctrl-C once more: at once
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)

    def wanted(self) -> bool:
        """Whether to end now. To be called by all processes after each iteration.

        With several, what they told each other after the iteration before: so that no process waits for another.
        """
        if self.group is None:
            return self.signal is not None
        answer = False
        if self.asked:
            told, work = self.asked
            work.wait()
            answer = bool(told.item())
        told = torch.tensor([float(self.signal is not None)])
        work = torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX, group=self.group, async_op=True)
        self.asked = told, work
        return answer


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Take note of the signals instead of dying of them, for as long as the block runs."""
    interruption = Interruption()
    before = {number: signal.signal(number, interruption.note) for number in SIGNALS}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
