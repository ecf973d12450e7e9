from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from nlsn_plugin.ops import tf32


@pytest.fixture(params=['the old name', 'the new name'])
def turn_on(request: pytest.FixtureRequest) -> Iterator[None]:
    """TF32, by one of its names; afterwards as before."""
    if request.param == 'the new name' and not tf32.RENAMED:
        pytest.skip('this PyTorch has the old name alone')
    with tf32.switched(False):  # which puts back what was before
        if request.param == 'the new name':
            torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = 'tf32'
        else:
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        yield


@pytest.mark.usefixtures('turn_on')
def test_it_is_off_within_and_then_as_before() -> None:
    assert tf32.of_products()
    assert tf32.of_convolutions()
    with tf32.switched(False):
        assert not tf32.of_products()
        assert not tf32.of_convolutions()
    assert tf32.of_products()
    assert tf32.of_convolutions()


def test_it_is_on_within_and_then_as_before() -> None:
    with tf32.switched(False), tf32.switched(True):
        assert tf32.of_products()
        assert tf32.of_convolutions()
    assert not tf32.of_products()
