"""Peak memory of steps, and what is free."""

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
"""For the C library: what is freed goes back to the system, where else some of it is kept, now more, now less."""


class Job(NamedTuple):
    """Something whose memory `peak_memories` measures.

    Args:
        what: for the message if that fails.
        prepare: a function of a module, which returns a small step, to load the libraries, and the step.
        arguments: of `prepare` after the device, such as JSON can hold.
    """

    what: str
    prepare: Callable[..., tuple[Step, Step]]
    arguments: tuple[Any, ...]


def free_memory(device: str) -> int:
    """Bytes that can still be taken, once nothing is kept for later."""
    release(device)
    return available_memory(device)


def release(device: str) -> None:
    """Free what nothing refers to any more, and on a GPU PyTorch's cache."""
    gc.collect()
    if device == 'cuda':
        torch.cuda.empty_cache()


def peak_memory(what: str, prepare: Callable[..., tuple[Step, Step]], device: str, *arguments: Any) -> int | None:
    """`peak_memories` of one job."""
    [peak] = peak_memories([Job(what, prepare, arguments)], device)
    return peak


def peak_memories(jobs: list[Job], device: str) -> Iterator[int | None]:
    """Bytes that each step takes at the peak, besides what was there before, as they become known; None where it cannot
    be told.

    What is freed and kept for later counts neither on a CPU nor on a GPU. Measured in a process of its own: on a GPU,
    where PyTorch counts, all there; on a CPU, since memory that was used before is used again unseen, each in one that
    it forks, with the libraries loaded and nothing kept of what they computed.
    """
    if device == 'cpu' and not Path('/proc/self/clear_refs').exists():
        yield from [None] * len(jobs)
        return
    release(device)
    with contextlib.closing(peaks_elsewhere(jobs, device)) as peaks:
        yield from tqdm(peaks, total=len(jobs), unit='case', file=sys.stderr, disable=len(jobs) < 2)


def peaks_elsewhere(jobs: list[Job], device: str) -> Generator[int | None, None, None]:
    """Those of `jobs`, from another process; which of them failed is said."""
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
            start_new_session=True,  # to end it with all that it has forked
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
                with contextlib.suppress(ProcessLookupError, PermissionError):  # unless this is stopped, all have ended
                    if hasattr(os, 'killpg'):
                        os.killpg(process.pid, signal.SIGKILL)
                    else:  # nor forks
                        process.kill()


def how_it_ended(process: subprocess.Popen[bytes], said: IO[str]) -> str:
    """The last line of a process, or its status."""
    status = process.wait()
    said.seek(0)
    return (said.read().strip().splitlines() or [f'exit status {status}'])[-1]


def peaks_here(jobs: list[list[Any]]) -> Iterator[int | str]:
    """What `peaks_elsewhere` asks for, in a fresh process; in its place the error of a step that fails."""
    for module, name, arguments in jobs:
        prepare = getattr(importlib.import_module(module), name)
        if arguments[0] == 'cuda':
            yield peak_or_error(prepare, arguments)
            release('cuda')
        else:
            yield forked(peak_or_error, prepare, arguments)


def forked(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process forked off this one; the status of that, if it is ended before."""
    context = multiprocessing.get_context('fork')
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sending.send(function(*arguments)))
    process.start()
    sending.close()
    with receiving, contextlib.suppress(EOFError):
        found = receiving.recv()
        process.join()  # its memory is free for the next
        return found
    process.join()
    return f'exit status {process.exitcode}'


def peak_or_error(prepare: Callable[..., tuple[Step, Step]], arguments: list[Any]) -> int | str:
    try:
        return peak_here(arguments[0], *prepare(*arguments))
    except Exception as error:  # noqa: BLE001  (whatever a step raises, as memory runs out or otherwise)
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
    scratch.forget()  # what of it the small step used would be used again unseen
    Path('/proc/self/clear_refs').write_text('5')  # forget the peak so far
    before = process_memory('VmRSS')
    step()
    return process_memory('VmHWM') - before


def peak_of_process() -> int | None:
    """Bytes of memory that this process has held at most since it began; None where it cannot be told."""
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
