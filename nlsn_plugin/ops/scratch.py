"""Memory that is reused by the steps of a computation and, on a CPU, by all calls of a thread."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator

import torch
from torch import Tensor

from nlsn_plugin.ops.context import is_recorded

ARENA = 30 * 2**20
"""Bytes that a thread keeps for its calls; what of them no call needed was never touched.

The system zeroes memory that is newly requested from it, which takes up to a fifth of a call. Whether the C library
requests any depends on everything that the process did before.
"""

ALIGNMENT = 64


class Kept(threading.local):
    """Holds the arena of a thread while no call is using it."""

    arena: Tensor | None = None


KEPT = Kept()


def forget() -> None:
    """Free the arena of this thread."""
    KEPT.arena = None


@contextlib.contextmanager
def scratch(device: torch.device) -> Iterator[Scratch]:
    """Provide the memory for one call."""
    if device.type != 'cpu' or is_recorded():  # where a tensor may be none, or be kept with what is recorded
        yield Scratch(torch.empty(0, dtype=torch.uint8, device=device))
        return
    arena, KEPT.arena = KEPT.arena, None
    if arena is None:
        with torch.inference_mode(False):  # other calls could not write to it
            arena = torch.empty(ARENA, dtype=torch.uint8, device=device)
    try:
        yield Scratch(arena)
    finally:
        KEPT.arena = arena


class Scratch:
    """Memory that all steps of a call share.

    arena: what there is of it, uint8; besides, as much is asked for as is needed.
    """

    def __init__(self, arena: Tensor) -> None:
        self.arena = arena
        self.used = 0
        self.buffers: dict[tuple[str, torch.dtype], Tensor] = {}
        self.taken: dict[tuple[str, tuple[int, ...], torch.dtype], Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return an uninitialised tensor. Those of one name and type share memory, so ask for the largest first."""
        tensor = self.taken.get((name, shape, dtype))
        if tensor is None:
            size = math.prod(shape)
            buffer = self.buffers.get((name, dtype))
            if buffer is None or len(buffer) < size:
                buffer = self.buffers[name, dtype] = self.allocate(size, dtype)
            tensor = self.taken[name, shape, dtype] = buffer[:size].view(shape)
        return tensor

    def allocate(self, size: int, dtype: torch.dtype) -> Tensor:
        """Allocate from the arena, or separately if it has no room left."""
        first, end = self.used, self.used + size * dtype.itemsize
        if end > len(self.arena):
            return torch.empty(size, dtype=dtype, device=self.arena.device)
        self.used = -(-end // ALIGNMENT) * ALIGNMENT
        return self.arena[first:end].view(dtype)
