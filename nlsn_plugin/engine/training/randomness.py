"""The generators that data sets and networks draw from: Python's, NumPy's and PyTorch's global ones."""
# ruff: noqa: NPY002 (BasicSR's and others' data sets draw from NumPy's global generator)

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from basicsr.utils import get_root_logger
from torch.utils.data import get_worker_info


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed all generators of the CPU while the block runs, then restore them; a loader's worker need not restore."""
    before = None if get_worker_info() else current()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        if before:
            restore(before)


def current() -> dict[str, Any]:
    """The states of all generators of this process, in types that load without executing anything."""
    kind, keys, *rest = np.random.get_state()
    return {
        'python': random.getstate(),
        'numpy': [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        'torch': torch.get_rng_state(),
        'cuda': torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def restore(state: dict[str, Any]) -> None:
    """Restore this process's generators to the states that `current` returned."""
    random.setstate(state['python'])
    kind, keys, *rest = state['numpy']
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state['torch'])
    if state['cuda'] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'])


def restore_one_of(states: list[dict[str, Any]], rank: int) -> None:
    """Restore the state of process `rank` if as many states were saved as there are processes; otherwise warn."""
    world_size = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    if len(states) == world_size:
        restore(states[rank])
    else:
        get_root_logger().warning(
            f'The state is of {len(states)} processes, there are {world_size}: the run goes on with other random '
            'numbers than it would have had'
        )
