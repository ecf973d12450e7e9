from __future__ import annotations

import pytest
import torch

from nlsn_plugin import NonLocalSparseAttention, ops
from nlsn_plugin.ops import traceable

can_export = pytest.mark.skipif(not hasattr(torch.compiler, 'is_exporting'), reason='export needs PyTorch 2.7')


@pytest.mark.parametrize('neighbours', ops.NEIGHBOURS)
@pytest.mark.parametrize('chunk_size', [1, 4, 7, 16])
@pytest.mark.parametrize('length', [1, 3, 4, 5, 15, 16, 17, 40, 131, 517])
def test_equals_the_reference_for_any_number_of_pixels(length: int, chunk_size: int, neighbours: str) -> None:
    torch.manual_seed(length)
    match, value, bank = torch.randn(2, length, 4), torch.randn(2, length, 6), torch.randn(4, 3, 64)
    half = ops.count_buckets(length, chunk_size) // 2
    expected = ops.attend(match, value, bank[..., :half], chunk_size, 'reference', neighbours)
    y = traceable.attend(match, value, bank, chunk_size, neighbours)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(('length', 'chunk_size'), [(100, 7), (1000, 4)])
def test_equal_codes_keep_raster_order_in_each_image(length: int, chunk_size: int) -> None:
    torch.manual_seed(0)
    match = torch.randn(2, length // 10, 3).repeat(1, 10, 1)  # every pixel ten times: many equal codes
    bank = torch.randn(3, 1, 64)
    half = ops.count_buckets(length, chunk_size) // 2
    expected = ops.bucket_order(ops.hash_codes(match, bank[..., :half]))[:, 0]
    order = traceable.bucket_order(match.flatten(0, 1), bank[:, 0], length, chunk_size)
    assert torch.equal(order.view(2, length) - torch.tensor([[0], [length]]), expected)


@can_export
def test_a_layer_that_is_exported_holds_no_operators_of_this_package() -> None:
    layer = NonLocalSparseAttention(8, 2, 4).eval()
    x = torch.randn(1, 8, 5, 6)
    program = torch.export.export(layer, (x,), strict=False)
    assert not any('nlsn_plugin' in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x), layer(x))


@can_export
@pytest.mark.parametrize(
    ('dtype', 'tolerance'), [(torch.float64, 1e-12), (torch.bfloat16, 0.02), (torch.float16, 2e-3)]
)
def test_a_layer_of_any_precision_is_exported(dtype: torch.dtype, tolerance: float) -> None:
    layer = NonLocalSparseAttention(8, 2, 4).eval().to(dtype)
    x = torch.randn(1, 8, 5, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    y = torch.export.export(layer, (x,), strict=False).module()(x)
    torch.testing.assert_close(y, layer(x), rtol=tolerance, atol=tolerance)


@can_export
@pytest.mark.parametrize(
    ('arguments', 'training', 'message'),
    [
        ({'partition': 'random'}, False, "partition='random' cannot be exported"),
        ({'eval_seed': None}, False, 'eval_seed=None cannot be exported'),
        ({}, True, r'call eval\(\) first'),
    ],
)
def test_what_draws_numbers_is_not_exported(arguments: dict[str, object], training: bool, message: str) -> None:
    layer = NonLocalSparseAttention(8, 2, 4, **arguments).train(training)
    with pytest.raises(ValueError, match=message):
        torch.export.export(layer, (torch.randn(1, 8, 5, 6),), strict=False)


def test_scores_may_be_larger_than_an_exponential_holds() -> None:
    match, value, bank = 100 * torch.randn(2, 40, 4), torch.randn(2, 40, 6), torch.randn(4, 3, 64)
    expected = ops.attend(match, value, bank[..., : ops.count_buckets(40, 7) // 2], 7, 'reference')
    torch.testing.assert_close(traceable.attend(match, value, bank, 7), expected, rtol=1e-4, atol=1e-4)
