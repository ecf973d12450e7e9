from __future__ import annotations

import pytest
import torch
from test_reference import draw

from nlsn_plugin import ops
from nlsn_plugin.errors import BackendError
from nlsn_plugin.ops import cpu_matmul

matmul = getattr(torch.backends.mkldnn, 'matmul', None)


@pytest.mark.skipif(matmul is None, reason='this PyTorch cannot choose oneDNN for matrix products')
class TestWhereThereIsTheSetting:
    @pytest.fixture(autouse=True)
    def setting_as_before(self):
        before = matmul.fp32_precision
        yield
        matmul.fp32_precision = before

    def test_it_is_set_if_products_stay_exact(self) -> None:
        try:
            error = cpu_matmul.use_onednn_matmul()
        except BackendError:
            assert matmul.fp32_precision != 'bf16'  # a CPU that rounds
        else:
            assert error < 1e-4
            assert matmul.fp32_precision == 'bf16'

    def test_attention_is_the_same(self) -> None:
        match, value, rotations = (tensor.float() for tensor in draw(1, 500, 2, 16, channels=(16, 32)))
        outputs = []
        for _ in range(2):
            inputs = match.clone().requires_grad_(), value.clone().requires_grad_()
            out = ops.attend(*inputs, rotations, 16, 'streamed')
            out.square().sum().backward()
            outputs.append([out, *(tensor.grad for tensor in inputs)])
            matmul.fp32_precision = 'bf16'
        for plain, faster in zip(*outputs):
            rounds = cpu_matmul.product_error() > cpu_matmul.LARGEST_ERROR  # a CPU on which it is refused
            assert (plain - faster).abs().max() <= (2e-2 if rounds else 1e-5) * plain.abs().max()

    @pytest.mark.parametrize('error', [2e-4, 3e-3, float('nan')])
    def test_a_cpu_that_rounds_is_refused_and_nothing_changes(
        self, monkeypatch: pytest.MonkeyPatch, error: float
    ) -> None:
        before = matmul.fp32_precision
        monkeypatch.setattr(cpu_matmul, 'product_error', lambda: error)
        with pytest.raises(BackendError, match='rounds float32 matrix products on this CPU'):
            cpu_matmul.use_onednn_matmul()
        assert matmul.fp32_precision == before


def test_a_product_that_rounds_to_bfloat16_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    product = torch.Tensor.__matmul__
    monkeypatch.setattr(
        torch.Tensor,
        '__matmul__',
        lambda a, b: product(a.bfloat16(), b.bfloat16()).float() if a.dtype == torch.float32 else product(a, b),
    )
    assert cpu_matmul.product_error() > cpu_matmul.LARGEST_ERROR


def test_an_older_pytorch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_matmul, 'matmul_settings', lambda: None)
    with pytest.raises(BackendError, match='2\\.9 or newer'):
        cpu_matmul.use_onednn_matmul()
