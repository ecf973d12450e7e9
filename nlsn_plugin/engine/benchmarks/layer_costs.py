"""Table 5 of the paper: operations and time of single layers with 64 channels on 100x100 pixels."""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nlsn_plugin.engine.measuring.timing import Step, interleaved
from nlsn_plugin.layers import NonLocalAttention, NonLocalSparseAttention
from nlsn_plugin.paper.studies import ROUNDS

CHANNELS, EDGE = 64, 100

FORMULA = """GFLOPs: two for each multiply-add. A 3x3 convolution 2 L 9 C C. NLA 2 L L (C/4 + C), its matrix products
alone, as the paper counts it. NLSA its two projections, 2 L C C/4 9 and 2 L C C, and in each round the hashing,
2 L C/4 m/2, and scores and sums over windows of three chunks, 2 ceil(L/k) k 3k (C/4 + C). The paper's figures for
NLSA do not follow from the released layer; windows of two chunks fit their slope."""


def layer_costs(device: str, paper: dict[str, float], budget: float = 5.0) -> list[dict[str, Any]]:
    """Measure the cost of each layer of Table 5.

    Args:
        device: 'cpu' or 'cuda'.
        paper: GFLOPs as printed in the paper, by label.
        budget: seconds for timing all layers together.

    Returns:
        Records with label, gflops, paper (None where the paper has no figure) and milliseconds (median).
    """
    layers: dict[str, nn.Module] = {
        'NLA': NonLocalAttention(CHANNELS),
        'convolution': nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
        **{f'NLSA-r{r}': NonLocalSparseAttention(CHANNELS, n_hashes=r) for r in ROUNDS},
    }
    x = torch.randn(1, CHANNELS, EDGE, EDGE, device=device)
    with torch.no_grad():
        steps: dict[str, Step] = {name: partial(layer.to(device).eval(), x) for name, layer in layers.items()}
        times = interleaved(steps, device, budget)
        return [
            {
                'label': name,
                'gflops': gflops(layer),
                'paper': paper.get(name),
                'milliseconds': 1e3 * statistics.median(times[name]),
            }
            for name, layer in layers.items()
        ]


def gflops(layer: nn.Module) -> float:
    """GFLOPs of a layer by FORMULA.

    NLA is counted by hand: PyTorch would also count the zeros with which the channels are padded for its kernel.
    """
    if isinstance(layer, NonLocalAttention):
        return 2 * EDGE**4 * (CHANNELS // layer.reduction + CHANNELS) / 1e9
    device = next(layer.parameters()).device
    with FlopCounterMode(display=False) as counter:
        layer(torch.zeros(1, CHANNELS, EDGE, EDGE, device=device))
    return float(counter.get_total_flops()) / 1e9
