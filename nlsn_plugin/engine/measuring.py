"""Time, peak memory, and the machine they were measured on."""

from __future__ import annotations

import importlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import nlsn_plugin
from nlsn_plugin.errors import BackendError

Step = Callable[[], Any]


def check_device(device: str) -> None:
    if device == 'cuda' and not torch.cuda.is_available():
        raise BackendError("device 'cuda' cannot be used: PyTorch finds no GPU")


def free_memory(device: str) -> float:
    """Bytes that can still be taken."""
    if device == 'cuda':
        return float(torch.cuda.mem_get_info()[0])
    return float(os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'))


def interleaved(steps: dict[str, Step], device: str, budget: float) -> dict[str, list[float]]:
    """Seconds of each step, run in turns for `budget` seconds, at least 3 times, after a first time to warm up."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    started = time.perf_counter()
    while len(next(iter(times.values()))) < 3 or time.perf_counter() - started < budget:
        for name, step in steps.items():
            synchronise(device)
            before = time.perf_counter()
            step()
            synchronise(device)
            times[name].append(time.perf_counter() - before)
    return times


def synchronise(device: str) -> None:
    if device == 'cuda':
        torch.cuda.synchronize()


def peak_memory(
    what: str, prepare: Callable[..., tuple[Step, Step]], device: str, *arguments: Any, **options: Any
) -> int | None:
    """Bytes that a step takes at the peak, besides what was there before; None where it cannot be told.

    Measured in a process of its own: memory that was used before is used again unseen.

    Args:
        what: is measured, for the message if that fails.
        prepare: a function of a module, which returns a small step, to load the libraries, and the step.
        device: 'cpu' or 'cuda'; the first argument of `prepare`.
        arguments, options: its others, such as JSON can hold.
    """
    words = [prepare.__module__, prepare.__qualname__, torch.get_num_threads(), [device, *arguments], options]
    result = subprocess.run(
        [sys.executable, '-m', __name__, json.dumps(words)], capture_output=True, text=True, check=False
    )
    if result.returncode:
        why = (result.stderr.strip().splitlines() or [f'exit status {result.returncode}'])[-1]
        tqdm.write(f'{what}: memory could not be measured: {why}', file=sys.stderr)
        return None
    return int(result.stdout) if result.stdout.strip() else None


def peak_of_this_process(
    module: str, name: str, threads: int, arguments: list[Any], options: dict[str, Any]
) -> int | None:
    """What `peak_memory` asks for, in a fresh process."""
    torch.set_num_threads(threads)
    small_step, step = getattr(importlib.import_module(module), name)(*arguments, **options)
    small_step()
    if arguments[0] == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    if not Path('/proc/self/clear_refs').exists():
        return None
    Path('/proc/self/clear_refs').write_text('5')  # forget the peak so far
    before = process_memory('VmRSS')
    step()
    return process_memory('VmHWM') - before


def peak_of_process() -> int | None:
    """Bytes of memory that this process has held at most since it began; None where it cannot be told."""
    return process_memory('VmHWM') if Path('/proc/self/status').exists() else None


def process_memory(key: str) -> int:
    """A number of this process's, bytes."""
    found = re.search(rf'{key}:\s+(\d+) kB', Path('/proc/self/status').read_text())
    return 1024 * int(found[1]) if found else 0


def describe_machine(device: str) -> dict[str, Any]:
    """What the figures depend on."""
    cpu = re.search(r'model name\s*:\s*(.+)', Path('/proc/cpuinfo').read_text()) if sys.platform == 'linux' else None
    pages = Path('/sys/kernel/mm/transparent_hugepage/enabled')
    return {
        'cpu': cpu[1] if cpu else platform.processor(),
        'cores': os.cpu_count(),
        'threads': torch.get_num_threads(),
        'gpu': torch.cuda.get_device_name() if device == 'cuda' else None,
        'python': platform.python_version(),
        'torch': torch.__version__,
        'nlsn_plugin': nlsn_plugin.__version__,
        'transparent huge pages': pages.read_text().strip() if pages.exists() else None,
        'THP_MEM_ALLOC_ENABLE': os.environ.get('THP_MEM_ALLOC_ENABLE'),
    }


if __name__ == '__main__':
    peak = peak_of_this_process(*json.loads(sys.argv[1]))
    print('' if peak is None else peak)
