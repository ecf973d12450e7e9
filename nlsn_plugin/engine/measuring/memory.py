"""Peak memory of steps, and the memory that is free."""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from tqdm import tqdm

from nlsn_plugin.custom_imports import import_modules, imported
from nlsn_plugin.engine.available_memory import available_memory
from nlsn_plugin.engine.measuring.timing import Step
from nlsn_plugin.ops import scratch

RETURN_ALL = {'MALLOC_MMAP_THRESHOLD_': '65536', 'MALLOC_TRIM_THRESHOLD_': '65536'}
"""Environment variables that make glibc return freed memory to the system; by default it keeps varying amounts."""


class Job(NamedTuple):
    """A step whose peak memory `peak_memories` measures.

    Args:
        what: name of the step in the message if it fails.
        prepare: a function at the top level of a module. It returns a small step, which is run first to load the
            libraries, and the step to measure.
        arguments: arguments of `prepare` after the device; JSON must be able to hold them.
    """

    what: str
    prepare: Callable[..., tuple[Step, Step]]
    arguments: tuple[Any, ...]


def free_memory(device: str) -> int:
    """Free what is not used any more, and return the bytes that can be taken on the device."""
    release(device)
    return available_memory(device)


def release(device: str) -> None:
    """Collect garbage, and on a GPU empty PyTorch's cache."""
    gc.collect()
    if device == 'cuda':
        torch.cuda.empty_cache()


def peak_memory(what: str, prepare: Callable[..., tuple[Step, Step]], device: str, *arguments: Any) -> int | None:
    """Return the peak of a single job, see `peak_memories`."""
    [peak] = peak_memories([Job(what, prepare, arguments)], device)
    return peak


def peak_memories(jobs: list[Job], device: str) -> Iterator[int | None]:
    """Yield for each job the bytes that its step takes at the peak, beyond those in use before; None if unknown.

    Unknown means that the step failed, or that the system does not tell (a CPU without /proc/self/clear_refs). Memory
    that was freed but is kept for later use does not count.

    The steps run in another process. On a GPU all of them run in that process, where PyTorch counts. On a CPU a step
    could use memory that an earlier one has left without being noticed, so each step runs in a fork of that process,
    which has the libraries loaded and has computed nothing.
    """
    if device == 'cpu' and not Path('/proc/self/clear_refs').exists():
        yield from [None] * len(jobs)
        return
    release(device)
    with contextlib.closing(peaks_elsewhere(jobs, device)) as peaks:
        yield from tqdm(peaks, total=len(jobs), unit='case', file=sys.stderr, disable=len(jobs) < 2)


def peaks_elsewhere(jobs: list[Job], device: str) -> Generator[int | None, None, None]:
    """Yield the peaks of `jobs` from another process; None for those that fail, with a message on stderr."""
    words = [[job.prepare.__module__, job.prepare.__qualname__, [device, *job.arguments]] for job in jobs]
    command = [sys.executable, '-m', __name__, str(torch.get_num_threads())]
    with tempfile.TemporaryFile('w+') as asked, tempfile.TemporaryFile('w+') as said:
        json.dump({'path': sys.path, 'imports': imported, 'jobs': words}, asked)
        asked.seek(0)
        process = subprocess.Popen(
            command,
            stdin=asked,
            stdout=subprocess.PIPE,
            stderr=said,
            env=os.environ | RETURN_ALL,
            start_new_session=True,  # so that it can be killed together with its forks
        )
        with process:
            lines = iter(process.stdout or ())
            try:
                for job in jobs:
                    line = next(lines, None)
                    peak = json.loads(line) if line else how_it_ended(process, said)
                    if isinstance(peak, str):
                        tqdm.write(f'{job.what}: memory could not be measured: {peak}', file=sys.stderr)
                    yield None if isinstance(peak, str) else peak
            finally:
                with contextlib.suppress(ProcessLookupError, PermissionError):  # usually all have ended by now
                    if hasattr(os, 'killpg'):
                        os.killpg(process.pid, signal.SIGKILL)
                    else:  # a system without process groups has no forks either
                        process.kill()


def how_it_ended(process: subprocess.Popen[bytes], said: IO[str]) -> str:
    """Wait for a process, and return the last line of its output in `said`, or its exit status if there is none."""
    status = process.wait()
    said.seek(0)
    return (said.read().strip().splitlines() or [f'exit status {status}'])[-1]


def peaks_here(jobs: list[list[Any]]) -> Iterator[int | str]:
    """Yield the peaks that `peaks_elsewhere` asks for, in the fresh process; for a failing step, its error as text."""
    for module, name, arguments in jobs:
        prepare = getattr(importlib.import_module(module), name)
        if arguments[0] == 'cuda':
            yield peak_or_error(prepare, arguments)
            release('cuda')
        else:
            yield forked(peak_or_error, prepare, arguments)


def forked(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a fork of this process and return its result, or the exit status if the fork dies before."""
    context = multiprocessing.get_context('fork')
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sending.send(function(*arguments)))
    process.start()
    sending.close()
    with receiving, contextlib.suppress(EOFError):
        found = receiving.recv()
        process.join()  # so that its memory is free before the next fork
        return found
    process.join()
    return f'exit status {process.exitcode}'


def peak_or_error(prepare: Callable[..., tuple[Step, Step]], arguments: list[Any]) -> int | str:
    try:
        return peak_here(arguments[0], *prepare(*arguments))
    except Exception as error:  # noqa: BLE001  (a step may raise anything, for want of memory or otherwise)
        return f'{type(error).__name__}: {error}'.splitlines()[0]


def peak_here(device: str, small_step: Step, step: Step) -> int:
    small_step()
    if device == 'cuda':
        release(device)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    scratch.forget()  # the step would use the small step's arena again without being noticed
    Path('/proc/self/clear_refs').write_text('5')  # resets VmHWM, the peak so far
    before = process_memory('VmRSS')
    step()
    return process_memory('VmHWM') - before


def peak_of_process() -> int | None:
    """Peak memory of this process since it began, in bytes; None on systems without /proc."""
    return process_memory('VmHWM') if Path('/proc/self/status').exists() else None


def process_memory(key: str) -> int:
    """A size in /proc/self/status, such as VmRSS, in bytes; 0 if it is not there."""
    found = re.search(rf'{key}:\s+(\d+) kB', Path('/proc/self/status').read_text())
    return 1024 * int(found[1]) if found else 0


if __name__ == '__main__':
    torch.set_num_threads(int(sys.argv[1]))
    asked = json.load(sys.stdin)
    sys.path += [folder for folder in asked['path'] if folder not in sys.path]
    import_modules(asked['imports'], 'custom_imports', [])
    for peak in peaks_here(asked['jobs']):
        print(json.dumps(peak), flush=True)
