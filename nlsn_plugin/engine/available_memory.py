"""How much memory is still available, and whether an error says that it ran out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from nlsn_plugin.data.damage import ran_out_of_memory


def available_memory(device: str) -> int:
    """Bytes that can still be allocated on a device; on the CPU within the limits of this process's containers too."""
    if torch.device(device).type != 'cpu':
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by PyTorch's cache
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    return min([psutil.virtual_memory().available, *limits_of_groups()])


def limits_of_groups(root: Path = Path('/sys/fs/cgroup'), own: Path = Path('/proc/self/cgroup')) -> Iterator[int]:
    """Yield the bytes left in each control group that this process is in, those above included (cgroups v1 and v2)."""
    for line in own.read_text().splitlines() if own.exists() else ():
        _, controllers, name = line.split(':', 2)
        if controllers in ('', 'memory'):
            base = root if controllers == '' else root / 'memory'
            names = ('memory.max', 'memory.current') if controllers == '' else V1_FILES
            group = base / name.lstrip('/')
            for folder in [group, *group.parents]:
                if folder.is_relative_to(base):
                    yield from left_in(folder, *names)


V1_FILES = ('memory.limit_in_bytes', 'memory.usage_in_bytes')


def left_in(folder: Path, limit_file: str, usage_file: str) -> Iterator[int]:
    """Yield the bytes left in one group, if it has a limit. Inactive file cache counts as free: it can be dropped."""
    try:
        limit = (folder / limit_file).read_text().strip()
        usage = int((folder / usage_file).read_text())
        stat = dict(line.split() for line in (folder / 'memory.stat').read_text().splitlines())
    except OSError:  # the files are missing or not readable
        return
    if limit != 'max':
        cached = int(stat.get('total_inactive_file', stat.get('inactive_file', 0)))
        yield max(0, int(limit) - usage + cached)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error was raised because memory ran out, on the CPU or on a GPU."""
    words = str(error)
    return (
        ran_out_of_memory(error)
        or isinstance(error, torch.cuda.OutOfMemoryError)
        or 'not enough memory' in words
        or 'DefaultCPUAllocator' in words
        or 'out of memory' in words
    )
