"""Time of the whole network of the paper, its attentions in several forms."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nlsn_plugin.archs import NLSN
from nlsn_plugin.engine.attention_benchmark import check_device, describe_machine, interleaved
from nlsn_plugin.errors import UserError
from nlsn_plugin.ops.cpu_matmul import use_onednn_matmul

LARGEST_DIFFERENCE = 1e-4
"""Between the forms in float32, of an image in [0, 1]."""


def run(size: tuple[int, int], device: str, budget: float, onednn: bool, compiled: bool) -> dict[str, Any]:
    """Measure NLSN x2 on one image of height and width `size`; records as those of `attention_benchmark.run`.

    Random weights: the time depends on them as little as on the image. 'no attention' is the same network without.
    """
    check_device(device)
    error = use_onednn_matmul() if onednn else None
    torch.manual_seed(0)
    networks = {backend: NLSN(backend=backend).to(device).eval() for backend in ('reference', 'auto')}
    networks['auto'].load_state_dict(networks['reference'].state_dict())
    networks['no attention'] = NLSN(attention_at=[]).to(device).eval()
    x = torch.rand(1, 3, *size, device=device)
    difference = (upscale(networks['auto'], x) - upscale(networks['reference'], x)).abs().max().item()
    if not difference <= LARGEST_DIFFERENCE:
        raise UserError(f"NLSN with backend='auto' is off 'reference' by {difference:.1e}; nothing was timed")
    steps: dict[str, Callable[[], Tensor]] = {}
    for name, network in networks.items():
        steps[f'{name}, float32'] = partial(upscale, network, x)
        steps[f'{name}, bfloat16'] = partial(upscale, network, x, torch.bfloat16)
    if compiled:
        graph = torch.compile(networks['auto'], fullgraph=True)
        steps['auto, torch.compile, float32'] = partial(upscale, graph, x)
        steps['auto, torch.compile, bfloat16'] = partial(upscale, graph, x, torch.bfloat16)
    times = {name: statistics.median(runs) for name, runs in interleaved(steps, device, budget).items()}
    base = times['reference, float32']
    records = [
        {
            'case': f'NLSN x2, {size[0]}x{size[1]}',
            'pass': 'forward',
            'form': name,
            'milliseconds': 1e3 * median,
            'speedup': base / median,
            'peak_bytes': None,
        }
        for name, median in times.items()
    ]
    return {'machine': describe_machine(device, error), 'records': records}


def upscale(network: Callable[[Tensor], Tensor], x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    with torch.no_grad(), torch.autocast(x.device.type, dtype) if dtype else contextlib.nullcontext():
        return network(x)
