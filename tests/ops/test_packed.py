from __future__ import annotations

import concurrent.futures
import contextlib

import pytest
import torch
from torch import Tensor

from nlsn_plugin.ops import cpu_matmul, packed, winograd
from nlsn_plugin.ops.packed import Packed

SIZES = [(1, 1, 1, 1), (7, 3, 5, 2), (65, 4, 16, 32), (33, 36, 40, 24), (128, 2, 200, 193)]
"""Rows, groups, columns of the matrices, and columns of the product."""


def draw(rows: int, groups: int, channels: int, columns: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """What is multiplied, and the matrices."""
    generator = torch.Generator().manual_seed(0)
    shapes = (rows, groups, channels), (groups, columns, channels)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def error(found: Tensor, x: Tensor, matrices: Tensor) -> float:
    exact = torch.einsum('tgc,gkc->tgk', x.double(), matrices.double())
    return float((found.double() - exact).abs().max() / exact.abs().max())


@pytest.fixture(params=[False, True], ids=['matrix products', 'packed'])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiply in either way, whichever this CPU would take. oneDNN packs on CPUs without AVX-512 too."""
    if request.param and not (torch.backends.mkldnn.is_available() and packed.has_operators()):
        pytest.skip('this PyTorch has no oneDNN')
    monkeypatch.setattr(packed, 'can_pack', lambda matrices: request.param)


@pytest.mark.usefixtures('way')
@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('mode', [contextlib.nullcontext, torch.no_grad, torch.inference_mode])
def test_each_group_of_rows_is_multiplied_with_its_matrix(
    size: tuple[int, ...], mode: type[contextlib.AbstractContextManager[object]]
) -> None:
    x, matrices = draw(*size)
    with mode():
        products = Packed(matrices, len(x))
        for _ in range(2):
            found = products.multiply(x)
            assert found.shape == (*x.shape[:2], matrices.shape[1])
            assert error(found, x, matrices) < 2e-6


@pytest.mark.usefixtures('way')
def test_another_number_of_rows_and_other_threads_give_the_same_numbers() -> None:
    x, matrices = draw(64, 4, 32, 48)
    products = Packed(matrices, len(x))
    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        for some in threads.map(lambda rows: products.multiply(x[:rows]), (1, 30, 64)):
            assert error(some, x[: len(some)], matrices) < 2e-6


@pytest.mark.usefixtures('way')
def test_what_is_not_a_number_stays_in_its_row_and_group() -> None:
    x, matrices = draw(16, 4, 32, 16)
    x[3, 2, 5] = float('nan')
    broken = Packed(matrices, 16).multiply(x).isnan()
    assert broken[3, 2].all()
    assert broken.sum() == 16


def test_only_float32_is_packed_and_only_with_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: 'AVX512')
    matrices = torch.ones(2, 3, 4)
    assert packed.can_pack(matrices) == (torch.backends.mkldnn.enabled and packed.has_operators())
    assert not packed.can_pack(matrices.double())
    assert not packed.can_pack(matrices.to('meta'))
    x, matrices = draw(16, 4, 32, 16, torch.float64)
    assert error(Packed(matrices, 16).multiply(x), x, matrices) < 1e-15
    monkeypatch.setattr(torch.backends.mkldnn, 'enabled', False)
    assert not packed.can_pack(matrices.float())


@pytest.mark.parametrize('capability', ['DEFAULT', 'AVX2'])
def test_without_avx512_nothing_is_packed(capability: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: capability)
    assert not packed.can_pack(torch.ones(2, 3, 4))


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, 'conv'), reason='this PyTorch does not let convolutions round')
def test_where_convolutions_may_round_pytorchs_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.empty(1).expand(1, 256, 100, 100), torch.empty(1).expand(256, 256, 3, 3)
    settings = torch.backends.mkldnn.conv
    before = settings.fp32_precision
    assert winograd.is_faster(x, weight)
    try:
        settings.fp32_precision = 'bf16'
        assert winograd.is_faster(x, weight) == (packed.error_at('bf16') <= cpu_matmul.LARGEST_ERROR)
        monkeypatch.setattr(packed, 'error_at', lambda precision: 3e-3)  # a CPU that rounds, such as one with AMX
        assert not winograd.is_faster(x, weight)
    finally:
        settings.fp32_precision = before


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, 'conv'), reason='this PyTorch does not let convolutions round')
def test_no_error_is_measured_while_onednn_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be that of other products, and be taken for oneDNN's later."""
    measured: list[str] = []
    monkeypatch.setattr(packed, 'error_at', lambda precision: measured.append(precision) or 3e-3)
    settings = torch.backends.mkldnn.conv
    before = settings.fp32_precision
    try:
        settings.fp32_precision = 'bf16'
        assert not packed.is_exact()
        assert measured == ['bf16']
        with monkeypatch.context() as off:
            off.setattr(torch.backends.mkldnn, 'enabled', False)
            assert packed.is_exact()
        assert measured == ['bf16']
    finally:
        settings.fp32_precision = before
