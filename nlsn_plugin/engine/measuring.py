"""Time, peak memory, and the machine they were measured on."""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import multiprocessing
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from tqdm import tqdm

import nlsn_plugin
from nlsn_plugin.engine.available_memory import available_memory
from nlsn_plugin.errors import BackendError, first_line
from nlsn_plugin.ops import tf32

Step = Callable[[], Any]

RETURN_ALL = {'MALLOC_MMAP_THRESHOLD_': '65536', 'MALLOC_TRIM_THRESHOLD_': '65536'}
"""For the C library: what is freed goes back to the system, where else some of it is kept, now more, now less."""


class Job(NamedTuple):
    """Something whose memory `peak_memories` measures.

    Args:
        what: for the message if that fails.
        prepare: a function of a module, which returns a small step, to load the libraries, and the step.
        arguments: of `prepare` after the device, such as JSON can hold.
        options: its keyword arguments.
    """

    what: str
    prepare: Callable[..., tuple[Step, Step]]
    arguments: tuple[Any, ...]
    options: dict[str, Any] = {}


def check_device(device: str) -> None:
    if device == 'cuda' and not torch.cuda.is_available():
        raise BackendError("device 'cuda' cannot be used: PyTorch finds no GPU")


def free_memory(device: str) -> int:
    """Bytes that can still be taken, once nothing is kept for later."""
    release(device)
    return available_memory(device)


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


def on_gpu_alone(steps: dict[str, Step], budget: float) -> dict[str, list[float]]:
    """`interleaved` of those steps that can be recorded as CUDA graphs, which wait for no launch by the host."""
    graphs: dict[str, Step] = {}
    for name, step in steps.items():
        try:
            graphs[name] = recorded(step)
        except RuntimeError as error:
            tqdm.write(f'{name}: cannot be recorded as a CUDA graph: {first_line(error)}', file=sys.stderr)
    return interleaved(graphs, 'cuda', budget) if graphs else {}


def recorded(step: Step) -> Step:
    """A step as a CUDA graph to replay; its memory is the graph's as long as that is kept."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()  # what is compiled, chosen or allocated the first time is not for a graph
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        step()
    return graph.replay


def synchronise(device: str) -> None:
    if device == 'cuda':
        torch.cuda.synchronize()


def release(device: str) -> None:
    """Give back what nothing needs any more, which PyTorch keeps on a GPU."""
    gc.collect()
    if device == 'cuda':
        torch.cuda.empty_cache()


def peak_memory(
    what: str, prepare: Callable[..., tuple[Step, Step]], device: str, *arguments: Any, **options: Any
) -> int | None:
    """`peak_memories` of one job."""
    [peak] = peak_memories([Job(what, prepare, arguments, options)], device)
    return peak


def peak_memories(jobs: list[Job], device: str) -> Iterator[int | None]:
    """Bytes that each step takes at the peak, besides what was there before, as they become known; None where it cannot
    be told.

    What is freed and kept for later counts neither on a CPU nor on a GPU. Measured in a process of its own: on a GPU,
    where PyTorch counts, all there; on a CPU, since memory that was used before is used again unseen, each in one that
    it forks, with the libraries loaded and nothing computed.
    """
    if device == 'cpu' and not Path('/proc/self/clear_refs').exists():
        yield from [None] * len(jobs)
        return
    release(device)
    with contextlib.closing(peaks_elsewhere(jobs, device)) as peaks:
        yield from tqdm(peaks, total=len(jobs), unit='case', file=sys.stderr, disable=len(jobs) < 2)


def peaks_elsewhere(jobs: list[Job], device: str) -> Generator[int | None, None, None]:
    """Those of `jobs`, from another process; which of them failed is said."""
    words = [[job.prepare.__module__, job.prepare.__qualname__, [device, *job.arguments], job.options] for job in jobs]
    command = [sys.executable, '-m', __name__, str(torch.get_num_threads())]
    with tempfile.TemporaryFile('w+') as asked, tempfile.TemporaryFile('w+') as said:
        json.dump(words, asked)
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
                    os.killpg(process.pid, signal.SIGKILL)


def how_it_ended(process: subprocess.Popen[bytes], said: IO[str]) -> str:
    """The last line of a process, or its status."""
    status = process.wait()
    said.seek(0)
    return (said.read().strip().splitlines() or [f'exit status {status}'])[-1]


def peaks_here(jobs: list[list[Any]]) -> Iterator[int | str]:
    """What `peaks_elsewhere` asks for, in a fresh process; in its place the error of a step that fails."""
    for module, name, arguments, options in jobs:
        prepare = getattr(importlib.import_module(module), name)
        if arguments[0] == 'cuda':
            yield peak_or_error(prepare, arguments, options)
            release('cuda')
        else:
            yield forked(peak_or_error, prepare, arguments, options)


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


def peak_or_error(
    prepare: Callable[..., tuple[Step, Step]], arguments: list[Any], options: dict[str, Any]
) -> int | str:
    try:
        return peak_here(arguments[0], *prepare(*arguments, **options))
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
    pages = Path('/sys/kernel/mm/transparent_hugepage/enabled')
    return {
        **describe_cpu(),
        'instructions': torch.backends.cpu.get_cpu_capability(),  # that PyTorch uses
        'cores': os.cpu_count(),
        'threads': torch.get_num_threads(),
        **(describe_gpu() if device == 'cuda' else {'gpu': None}),
        'python': platform.python_version(),
        'torch': torch.__version__,
        'nlsn_plugin': nlsn_plugin.__version__,
        'transparent huge pages': pages.read_text().strip() if pages.exists() else None,
        'THP_MEM_ALLOC_ENABLE': os.environ.get('THP_MEM_ALLOC_ENABLE'),
    }


def describe_cpu() -> dict[str, Any]:
    """What it is, and its instructions for bfloat16, which decide on the speed of that; as far as Linux tells."""
    if not Path('/proc/cpuinfo').exists():
        return {'cpu': platform.processor()}
    first = Path('/proc/cpuinfo').read_text().partition('\n\n')[0]
    said = {key.strip(): value.strip() for key, _, value in (line.partition(':') for line in first.splitlines())}
    if 'model name' not in said:
        return {'cpu': platform.processor()}
    family = f', family {said["cpu family"]}, model {said["model"]}' if {'cpu family', 'model'} <= said.keys() else ''
    for_bfloat16 = [word for word in said.get('flags', '').split() if word.endswith('bf16')]
    return {'cpu': said['model name'] + family, 'instructions for bfloat16': ' '.join(for_bfloat16) or None}


def describe_gpu() -> dict[str, Any]:
    """What figures of a GPU depend on besides; how float32 is multiplied there, as set when it is asked."""
    try:
        import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError:
        triton = None
    return {
        'gpu': torch.cuda.get_device_name(),
        'compute capability': '.'.join(map(str, torch.cuda.get_device_capability())),
        'driver': driver_version(),
        'CUDA': torch.version.cuda,
        'cuDNN': torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        'Triton': triton.__version__ if triton else None,
        'TF32 products': tf32.of_products(),
        'TF32 convolutions': tf32.of_convolutions(),
    }


def driver_version() -> str | None:
    """Of the GPU; None where its tool is not there to tell."""
    tool = shutil.which('nvidia-smi')
    if tool is None:
        return None
    words = [tool, '--query-gpu=driver_version', '--format=csv,noheader']
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    return next(iter(result.stdout.split()), None) if result.returncode == 0 else None


if __name__ == '__main__':
    torch.set_num_threads(int(sys.argv[1]))
    for peak in peaks_here(json.load(sys.stdin)):
        print(json.dumps(peak), flush=True)
