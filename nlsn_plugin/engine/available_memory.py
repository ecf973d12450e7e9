"""How much memory there is that nobody needs, and whether it ran out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from nlsn_plugin.data.damage import ran_out_of_memory


def available_memory(device: str) -> int:
    """Bytes that can still be taken on a device: of the machine, and of the containers that this process is in."""
    if torch.device(device).type != 'cpu':
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by PyTorch, for later
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    return min([psutil.virtual_memory().available, *limits_of_groups()])


def limits_of_groups(root: Path = Path('/sys/fs/cgroup'), own: Path = Path('/proc/self/cgroup')) -> Iterator[int]:
    """Bytes that each control group of this process still leaves it (both versions of cgroups)."""
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
    """What one group leaves, if it has a limit: what files hold in the cache can be dropped."""
    try:
        limit = (folder / limit_file).read_text().strip()
        usage = int((folder / usage_file).read_text())
        stat = dict(line.split() for line in (folder / 'memory.stat').read_text().splitlines())
    except OSError:  # not there, or not for us to read
        return
    if limit != 'max':
        cached = int(stat.get('total_inactive_file', stat.get('inactive_file', 0)))
        yield max(0, int(limit) - usage + cached)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory, and nothing else, was the trouble."""
    words = str(error)
    return (
        ran_out_of_memory(error)
        or isinstance(error, torch.cuda.OutOfMemoryError)
        or 'not enough memory' in words
        or 'DefaultCPUAllocator' in words
        or 'out of memory' in words
    )
