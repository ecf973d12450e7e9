from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_reference import draw

from nlsn_plugin import ops
from nlsn_plugin.errors import BackendError
from nlsn_plugin.layers.convolution import Conv3x3
from nlsn_plugin.ops import cpu_matmul, winograd

matmul = getattr(torch.backends.mkldnn, 'matmul', None)


@pytest.mark.skipif(matmul is None, reason='this PyTorch cannot choose oneDNN for matrix products')
class TestWhereThereIsTheSetting:
    @pytest.fixture(autouse=True)
    def setting_as_before(self):
        before = matmul.fp32_precision
        cpu_matmul.error_at.cache_clear()
        yield
        matmul.fp32_precision = before
        cpu_matmul.error_at.cache_clear()

    def test_it_is_set_if_products_stay_exact(self) -> None:
        torch.manual_seed(0)
        a, b = torch.randn(8, 144, 432), torch.randn(8, 432, 256)
        exact = a.double() @ b.double()
        matmul.fp32_precision = 'bf16'
        rounds = ((a @ b).double() - exact).abs().max() > 1e-4 * exact.abs().max()
        matmul.fp32_precision = 'none'
        if rounds:
            with pytest.raises(BackendError, match='rounds float32 matrix products on this CPU'):
                cpu_matmul.use_onednn_matmul()
        else:
            assert cpu_matmul.use_onednn_matmul() < 1e-4
        assert matmul.fp32_precision == ('none' if rounds else 'bf16')

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


@pytest.fixture
def rounding_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that rounds as it is allowed to, such as one with AMX."""
    monkeypatch.setattr(cpu_matmul, 'product_error', lambda: 3e-3)
    cpu_matmul.error_at.cache_clear()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision('medium')
    yield
    torch.set_float32_matmul_precision(before)
    cpu_matmul.error_at.cache_clear()


@pytest.mark.usefixtures('rounding_products')
def test_where_products_may_round_convolutions_and_codes_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.empty(1).expand(1, 256, 64, 64), torch.empty(1).expand(256, 256, 3, 3)
    assert not winograd.is_faster(x, weight)
    types = []
    product = torch.mm
    monkeypatch.setattr(torch, 'mm', lambda a, b, **options: types.append(a.dtype) or product(a, b, **options))
    ops.hash_codes(torch.randn(1, 50, 8), torch.randn(8, 2, 4))
    assert types == [torch.float64]


@pytest.mark.skipif(matmul is None, reason='this PyTorch has no names for it that disagree')
def test_without_onednn_products_are_exact_whatever_is_set_by_whichever_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, 'enabled', False)
    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    products.fp32_precision = 'tf32'  # which the old name fails to read
    try:
        assert cpu_matmul.multiplies_exactly()
    finally:
        products.fp32_precision = before


def test_codes_and_convolutions_are_the_same_however_products_may_round() -> None:
    """On a CPU that rounds hashing in float32 moves tens of these codes."""
    torch.manual_seed(0)
    x, rotations, layer = torch.randn(1, 2304, 64), torch.randn(64, 4, 8), Conv3x3(192, 192).eval()
    image = torch.randn(1, 192, 50, 50)
    before = torch.get_float32_matmul_precision()
    codes, expected = ops.hash_codes(x, rotations), F.conv2d(image, layer.weight, layer.bias, padding=1)
    try:
        torch.set_float32_matmul_precision('medium')
        with torch.no_grad():
            found = layer(image)
        assert (ops.hash_codes(x, rotations) != codes).sum() <= 1  # float64 may decide otherwise on a tie
    finally:
        torch.set_float32_matmul_precision(before)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


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
