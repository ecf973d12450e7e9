"""Seconds of steps that are run in turns."""

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


def summary(seconds: list[float], parts: int = 1) -> dict[str, Any]:
    """A step's times as records have them: median and spread in milliseconds, of one of its `parts`, and the runs."""
    middle, least, most = (1e3 * time / parts for time in (statistics.median(seconds), min(seconds), max(seconds)))
    return {'milliseconds': middle, 'spread': [least, most], 'runs': len(seconds)}


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
