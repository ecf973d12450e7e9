from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from nlsn_plugin.models import building

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
