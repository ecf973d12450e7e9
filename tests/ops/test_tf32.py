from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import run

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


BY_WORD = {word: f'torch.set_float32_matmul_precision({word!r})' for word in ('highest', 'high', 'medium')}
BY_PLACE = {
    'all of PyTorch': "b.fp32_precision = 'tf32'",
    'convolutions alone': "b.cudnn.conv.fp32_precision = 'ieee'",
    'recurrent networks alone': "b.cudnn.rnn.fp32_precision = 'ieee'",
    'products alone': "b.cuda.matmul.fp32_precision = 'tf32'",
}


@pytest.mark.skipif(not tf32.RENAMED, reason='this PyTorch has the old name alone')
@pytest.mark.parametrize('name', [*BY_WORD, *BY_PLACE])
def test_whatever_was_set_is_off_or_on_within_and_then_as_before(name: str, tmp_path: Path) -> None:
    code = f"""
import torch
from nlsn_plugin.ops import tf32
b = torch.backends
def found():
    places = b, b.cuda.matmul, b.cudnn, b.cudnn.conv, b.cudnn.rnn, b.mkldnn.matmul, b.mkldnn.conv
    return [place.fp32_precision for place in places]
{(BY_WORD | BY_PLACE)[name]}
before = found()
for on in (False, True):
    with tf32.switched(on):
        assert (tf32.of_products(), tf32.of_convolutions()) == (on, on)
        assert (b.cuda.matmul.allow_tf32, b.cudnn.allow_tf32) == (on, on)
    assert found() == before, (found(), before)
if {name in BY_WORD}:
    assert torch.get_float32_matmul_precision() == {name!r}
"""
    run('-c', code, cwd=tmp_path)
