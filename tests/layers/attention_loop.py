"""What the attention layers compute, pixel by pixel, written from Eq. 4 alone; differentiable."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Pixel = tuple[int, int]


def attend(layer: nn.Module, x: Tensor, sees: Callable[[Pixel, Pixel], bool], unit_keys: bool) -> Tensor:
    """x + res_scale * attention, [N, C, H, W]; `sees` says of a query's and a key's place whether they meet."""
    queries, values = layer.conv_match(x), layer.conv_assembly(x)
    separate = getattr(layer, 'conv_key', None)
    keys = queries if separate is None else separate(x)
    height, width = x.shape[2:]
    pixels = [(i, j) for i in range(height) for j in range(width)]
    out = x.clone()
    for n in range(len(x)):
        for i, j in pixels:
            near = [pixel for pixel in pixels if sees((i, j), pixel)]
            scores = []
            for pixel in near:
                key = keys[n][:, pixel[0], pixel[1]]
                key = key / key.square().sum().sqrt() if unit_keys else key
                scores.append((queries[n, :, i, j] * key).sum().exp())
            weights = [score / sum(scores) for score in scores]
            found = sum(weight * values[n][:, pixel[0], pixel[1]] for weight, pixel in zip(weights, near))
            out[n, :, i, j] = x[n, :, i, j] + layer.res_scale * found
    return out


def assert_equal_in_outputs_and_gradients(layer: nn.Module, x: Tensor, expect: Callable[[Tensor], Tensor]) -> None:
    """In float64."""
    layer.double()
    upstream = torch.randn(x.shape, dtype=torch.float64)
    results = []
    for form in (layer, expect):
        image = x.double().requires_grad_()
        y = form(image)
        results.append([y.detach(), *torch.autograd.grad(y, [image, *layer.parameters()], upstream)])
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)
