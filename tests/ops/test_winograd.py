from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nlsn_plugin.ops import winograd


def draw(
    images: int, channels: tuple[int, int], height: int, width: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight and bias."""
    generator = torch.Generator().manual_seed(0)
    shapes = (images, channels[0], height, width), (channels[1], channels[0], 3, 3), (channels[1],)
    x, weight, bias = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return x.to(dtype), (weight / (3 * channels[0] ** 0.5)).to(dtype), bias.to(dtype)


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).abs().max() / exact.abs().max())


@pytest.mark.parametrize('size', [(1, 1), (1, 9), (2, 3), (4, 4), (5, 4), (7, 13), (8, 8), (37, 50), (3, 301)])
@pytest.mark.parametrize('images', [1, 2])
def test_is_the_convolution(size: tuple[int, int], images: int) -> None:
    x, weight, bias = draw(images, (3, 5), *size)
    assert error(winograd.conv3x3(x, weight, bias), F.conv2d(x, weight, bias, padding=1)) < 1e-13
    assert error(winograd.conv3x3(x, weight), F.conv2d(x, weight, padding=1)) < 1e-13


def test_is_computed_where_its_input_lies() -> None:
    x, weight, _ = draw(1, (3, 5), 9, 9)
    with torch.device('meta'):
        found = winograd.conv3x3(x, weight)
    assert error(found, F.conv2d(x, weight, padding=1)) < 1e-13


@pytest.mark.parametrize('tiles', [1, 2, 5, 7])
def test_is_the_same_in_however_many_blocks(tiles: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = draw(1, (3, 5), 30, 41)
    monkeypatch.setattr(winograd, 'TILES_AT_ONCE', tiles)
    assert error(winograd.conv3x3(x, weight, bias), F.conv2d(x, weight, bias, padding=1)) < 1e-13


def test_takes_features_in_any_order_of_memory_and_returns_channels_last() -> None:
    x, weight, bias = draw(2, (8, 4), 9, 11)
    found = [
        winograd.conv3x3(x.contiguous(memory_format=order), weight, bias)
        for order in (torch.contiguous_format, torch.channels_last)
    ]
    assert torch.equal(*found)
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    every_other = torch.randn(2, 16, 9, 22, dtype=torch.float64)[:, ::2, :, ::2]
    assert error(winograd.conv3x3(every_other, weight, bias), F.conv2d(every_other, weight, bias, padding=1)) < 1e-13


@pytest.mark.parametrize('magnitude', [1e-3, 1.0, 1e3])
def test_rounds_as_little_as_the_sum_itself(magnitude: float) -> None:
    x, weight, bias = draw(1, (256, 256), 50, 47)
    x, bias = x * magnitude, bias * magnitude
    exact = F.conv2d(x, weight, bias, padding=1)
    x, weight, bias = x.float(), weight.float(), bias.float()
    sum_by_sum = error(F.conv2d(x, weight, bias, padding=1), exact)
    assert error(winograd.conv3x3(x, weight, bias), exact) < max(2 * sum_by_sum, 3e-6)


def test_half_precision_is_computed_with_in_that_of_the_weights() -> None:
    x, weight, bias = draw(1, (64, 32), 20, 21, torch.float32)
    found = winograd.conv3x3(x.bfloat16(), weight, bias)
    assert found.dtype == torch.bfloat16
    exact = F.conv2d(x.bfloat16().double(), weight.double(), bias.double(), padding=1)
    assert error(found, exact) < 2**-8


def test_one_tile_is_a_product_at_each_of_36_points() -> None:
    for_input, for_filter, for_output = map(torch.from_numpy, winograd.transforms())
    generator = torch.Generator().manual_seed(0)
    tile = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    taps = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    outputs = for_output @ ((for_filter @ taps.flatten()) * (for_input @ tile.flatten()))
    expected = F.conv2d(tile[None, None], taps[None, None])[0, 0]
    assert torch.allclose(outputs.view(4, 4), expected, atol=1e-13)
