"""Cost of a network: parameters, and multiply-adds, time and memory for one LR image of a given size."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nlsn_plugin.engine.evaluation.contestants import Contestant, Inference, Recipe, upscale
from nlsn_plugin.engine.measuring.memory import peak_memory
from nlsn_plugin.engine.measuring.timing import Step, interleaved, summary
from nlsn_plugin.errors import FAILURES, UserError
from nlsn_plugin.layers.nlsa import set_rounds
from nlsn_plugin.models.building import build

BUDGET = 5.0
"""Seconds for which each network is timed."""


def measure(
    contestant: Contestant, n_hashes: int | None, size: Sequence[int], device: str, inference: Inference
) -> dict[str, Any]:
    """Measure the cost of one network.

    Args:
        contestant: the network.
        n_hashes: rounds of its attentions; None leaves them as they are.
        size: height and width of the LR image.
        device: 'cpu' or 'cuda'.
        inference: how the image is enlarged.

    Returns:
        A record with lr_size, parameters, multiply_adds, milliseconds, spread, runs and peak_bytes.
    """
    recipe = contestant.recipe
    contestant.hash_by(n_hashes, None)
    step = partial(upscale, contestant.net, torch.rand(1, 3, *size, device=device), recipe, inference)
    seconds = interleaved({recipe.label: step}, device, BUDGET)[recipe.label]
    words = asdict(recipe), n_hashes, list(size), asdict(inference)
    return {
        'lr_size': list(size),
        'parameters': count_parameters(contestant.net),
        'multiply_adds': count_multiply_adds(contestant.net, recipe, size, inference),
        **summary(seconds),
        'peak_bytes': peak_memory(recipe.label, one_image, device, *words),
    }


def count_parameters(net: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)


def count_multiply_adds(net: nn.Module, recipe: Recipe, size: Sequence[int], inference: Inference) -> int:
    """Multiply-adds of convolutions, matrix products and attention (hashing, scores, sums), as PyTorch counts them.

    They are counted on the meta device, where nothing is computed. A network that fails there, since it looks at
    values, is run on its own device.
    """

    def counted(net: nn.Module, device: torch.device | str) -> int:
        with FlopCounterMode(display=False) as counter:
            upscale(net, torch.zeros(1, 3, *size, device=device), recipe, inference)
        return int(counter.get_total_flops()) // 2

    try:
        return counted(copy.deepcopy(net).to('meta'), 'meta')
    except (*FAILURES, UserError):
        return counted(net, next(net.parameters()).device)


def one_image(
    device: str, recipe: dict[str, Any], n_hashes: int | None, size: list[int], inference: dict[str, Any]
) -> tuple[Step, Step]:
    """Upscaling of a small image and of one of the given size, as `peak_memory` expects them.

    The weights are fresh: they take as much memory as trained ones.
    """
    made, settings = Recipe(**recipe), Inference(**inference)
    net = build(made.type, made.arguments, made.label).eval().to(device)
    set_rounds(net, n_hashes)
    small, x = torch.rand(1, 3, 16, 16, device=device), torch.rand(1, 3, *size, device=device)
    return partial(upscale, net, small, made, settings), partial(upscale, net, x, made, settings)
