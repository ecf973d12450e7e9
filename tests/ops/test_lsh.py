from __future__ import annotations

import pytest
import torch
from conftest import DEVICE
from hypothesis import given
from hypothesis import strategies as st

from nlsn_plugin.ops import bucket_order, count_buckets, hash_codes


@pytest.mark.parametrize(
    ('length', 'chunk_size', 'buckets'),
    [
        (1, 144, 0),
        (143, 144, 0),
        (144, 144, 2),
        (287, 144, 2),
        (288, 144, 2),
        (432, 144, 4),
        (2304, 144, 16),
        (127 * 144, 144, 128),
        (10**6, 144, 128),
        (5, 1, 6),
    ],
)
def test_buckets_are_one_per_chunk_even_and_at_most_128(length: int, chunk_size: int, buckets: int) -> None:
    assert count_buckets(length, chunk_size) == buckets


def test_codes_are_the_nearest_vertex_of_the_rotated_cross_polytope() -> None:
    x = torch.randn(2, 50, 6)
    rotations = torch.randn(6, 3, 4)
    codes = hash_codes(x, rotations)
    assert codes.shape == (2, 3, 50)
    assert codes.is_contiguous()
    for n, r, pixel in [(0, 0, 0), (1, 2, 49), (0, 1, 17)]:
        vertices = torch.cat([rotations[:, r], -rotations[:, r]], dim=1)  # [c, m]
        assert codes[n, r, pixel] == (x[n, pixel] @ vertices).argmax()


@pytest.mark.skipif(DEVICE == 'cpu', reason='needs a GPU')
def test_codes_on_a_gpu_are_those_on_a_cpu_whatever_tf32_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, 'allow_tf32', True)
    x, rotations = torch.randn(1, 5000, 16), torch.randn(16, 2, 64)
    codes = hash_codes(x.to(DEVICE), rotations.to(DEVICE))
    assert codes.is_contiguous()
    assert (codes.cpu() != hash_codes(x, rotations)).sum() <= 1  # TF32 moves tens


def test_the_first_vertex_wins_a_tie() -> None:
    assert hash_codes(torch.zeros(1, 3, 4), torch.randn(4, 2, 5)).eq(0).all()


@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 2**31))
def test_codes_do_not_depend_on_the_length_of_a_feature(scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 20, 5, generator=generator)
    rotations = torch.randn(5, 2, 3, generator=generator)
    projected = torch.einsum('nlc,crm->nrlm', x, rotations).abs()
    first, second = projected.topk(2, dim=-1).values.unbind(-1)
    clear = (first - second) > 1e-4 * first  # away from a tie, where rounding may decide
    same = hash_codes(x * scale, rotations) == hash_codes(x, rotations)
    assert same[clear].all()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_codes_are_computed_in_float32_whatever_the_dtype(dtype: torch.dtype) -> None:
    x = torch.randn(1, 500, 16).to(dtype)
    rotations = torch.randn(16, 4, 32)
    expected = hash_codes(x.float(), rotations)
    with torch.autocast('cpu', torch.bfloat16):
        assert hash_codes(x, rotations).equal(expected)
    assert hash_codes(x, rotations).equal(expected)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60))
def test_equal_codes_keep_raster_order(codes: list[int]) -> None:
    expected = sorted(range(len(codes)), key=lambda pixel: codes[pixel])
    assert bucket_order(torch.tensor(codes)[None, None]).flatten().tolist() == expected


def test_what_is_not_a_number_has_the_first_code() -> None:
    """As an argmax gives it, and so the exported graph."""
    assert hash_codes(torch.full((1, 3, 4), torch.nan), torch.randn(4, 2, 5)).eq(0).all()
