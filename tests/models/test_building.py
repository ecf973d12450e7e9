from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from nlsn_plugin.errors import ArgumentError
from nlsn_plugin.models import building
from nlsn_plugin.models.description import Description

VARIABLE = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'


def test_no_thread_builds_unguarded_and_none_leaves_the_guard_behind() -> None:
    before = os.environ.get(VARIABLE)
    inside, seen = threading.Event(), []

    def build(number: int) -> None:
        if number:
            inside.wait(60)
        with building.only_weights_loaded():
            inside.set()
            threading.Event().wait(0.1)  # the other comes in the meantime
            seen.append(os.environ.get(VARIABLE))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(build, range(2)))
    assert seen == ['1', '1']
    assert os.environ.get(VARIABLE) == before


class InWindows(nn.Module):
    """Doubles images of whole windows."""

    window_size = 24
    num_in_ch = 3

    def forward(self, x: Tensor) -> Tensor:
        assert not any(edge % self.window_size for edge in x.shape[2:])
        return torch.nn.functional.interpolate(x, scale_factor=2)


def test_the_scale_is_of_the_image_that_the_network_was_given() -> None:
    assert building.scale_of(InWindows()) == 2


class PartsOfThatName(nn.Module):
    """Its upsampler is called as others call their scale; what it gives may be more than an image."""

    def __init__(self, gives_features: bool = False) -> None:
        super().__init__()
        self.gives_features = gives_features
        self.conv = nn.Conv2d(3, 27, 3, padding=1)
        self.upscale = nn.PixelShuffle(3)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        features = self.conv(x)
        image = self.upscale(features)
        return (image, features) if self.gives_features else image


def loaded(**arguments: bool) -> nn.Module:
    description = Description('PartsOfThatName', given=arguments)
    return building.network_of(description, PartsOfThatName(**arguments).state_dict(), 'a.pth')


def test_a_network_may_call_its_parts_as_it_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS.module_dict, 'PartsOfThatName', PartsOfThatName)
    net = loaded()
    assert building.scale_of(net) == 3
    assert net(torch.rand(1, 3, 5, 4)).shape == (1, 3, 15, 12)


def test_what_makes_more_than_an_image_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS.module_dict, 'PartsOfThatName', PartsOfThatName)
    with pytest.raises(ArgumentError, match='PartsOfThatName makes a tuple of an image: an image is expected'):
        building.scale_of(PartsOfThatName(gives_features=True))
