"""Memory that the steps of a computation share."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Scratch:
    """Memory that all steps share. Asking the system for it anew each time costs more than the arithmetic."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.memory: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of any content, in the same memory for the same name and type."""
        size = math.prod(shape)
        memory = self.memory.get((name, dtype))
        if memory is None or len(memory) < size:
            memory = self.memory[name, dtype] = torch.empty(size, dtype=dtype, device=self.device)
        return memory[:size].view(shape)
