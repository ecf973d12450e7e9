"""Timing of steps that are run in turns."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from tqdm import tqdm

from nlsn_plugin.errors import first_line

Step = Callable[[], Any]


def interleaved(steps: dict[str, Step], device: str, budget: float) -> dict[str, list[float]]:
    """Run the steps in turns for `budget` seconds and at least 3 turns; return the seconds of each run of each step.

    Each step is run once before, to warm up.
    """
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


def summary(seconds: list[float], parts: int = 1) -> dict[str, Any]:
    """Summarise the times of a step that does `parts` equal pieces of work, for a record.

    Returns:
        The median and the spread (least and most) in milliseconds of one piece, and the number of runs.
    """
    middle, least, most = (1e3 * time / parts for time in (statistics.median(seconds), min(seconds), max(seconds)))
    return {'milliseconds': middle, 'spread': [least, most], 'runs': len(seconds)}


def on_gpu_alone(steps: dict[str, Step], budget: float) -> dict[str, list[float]]:
    """Time steps as CUDA graphs, see `interleaved`: a graph does not wait for the host to launch each kernel.

    Steps that cannot be recorded are left out, with a message on stderr.
    """
    graphs: dict[str, Step] = {}
    for name, step in steps.items():
        try:
            graphs[name] = recorded(step)
        except RuntimeError as error:
            tqdm.write(f'{name}: cannot be recorded as a CUDA graph: {first_line(error)}', file=sys.stderr)
    return interleaved(graphs, 'cuda', budget) if graphs else {}


def recorded(step: Step) -> Step:
    """Record a step as a CUDA graph, and return its replay; the graph holds the step's memory as long as it lives."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()  # compilation, autotuning and first allocations must not be recorded
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        step()
    return graph.replay


def synchronise(device: str) -> None:
    if device == 'cuda':
        torch.cuda.synchronize()
