from __future__ import annotations

import functools

import pytest
import torch
from conftest import DEVICE, python, relative_error
from hypothesis import given
from hypothesis import strategies as st
from test_reference import draw
from torch import Tensor
from torch.autograd import forward_ad

from nlsn_plugin import ops
from nlsn_plugin.errors import BackendError
from nlsn_plugin.ops import streamed

Inputs = tuple[Tensor, Tensor, Tensor]

CUTS = [
    pytest.param(1, 1, id='a-chunk'),
    pytest.param(200, 1, id='some-chunks'),
    pytest.param(1, 10**6, id='whole-rings-by-chunks'),
    pytest.param(200, 10**6, id='whole-rings-by-some'),
    pytest.param(streamed.NUMBERS_AT_ONCE, streamed.NUMBERS_GATHERED, id='as-usual'),
]
"""Weights at once for each thread, and channels gathered: a group then holds little or much, in parts."""


def attend_and_differentiate(
    inputs: Inputs, chunk_size: int, backend: str, dtype: torch.dtype, neighbours: str = 'both'
) -> list[Tensor]:
    """The output, and the gradients of match and value for a fixed gradient of it."""
    match, value = (tensor.to(DEVICE, dtype).requires_grad_() for tensor in inputs[:2])
    out = ops.attend(match, value, inputs[2].to(DEVICE), chunk_size, backend, neighbours)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return [out.detach(), *torch.autograd.grad(out, (match, value), upstream)]


def attend_untrained(inputs: Inputs, chunk_size: int, dtype: torch.dtype) -> Tensor:
    """The output where no gradient is asked for."""
    match, value = (tensor.detach().to(DEVICE, dtype) for tensor in inputs[:2])
    return ops.attend(match, value, inputs[2].to(DEVICE), chunk_size, 'streamed')


def errors(results: list[Tensor], expected: list[Tensor]) -> list[float]:
    """Largest differences, relative to the largest entry."""
    return [relative_error(a.double().cpu().numpy(), b.double().cpu().numpy()) for a, b in zip(results, expected)]


def check_equals_reference(inputs: Inputs, chunk_size: int) -> None:
    results = attend_and_differentiate(inputs, chunk_size, 'streamed', torch.float32)
    out, *gradients = errors(results, attend_and_differentiate(inputs, chunk_size, 'reference', torch.float32))
    assert out < 1e-5
    assert max(gradients) < 1e-4


@pytest.mark.parametrize('images', [1, 3])
@pytest.mark.parametrize('rounds', [1, 8])
@pytest.mark.parametrize(
    ('length', 'chunk_size'),
    [
        pytest.param(4, 4, id='one-chunk'),
        pytest.param(7, 4, id='two-chunks-second-filled'),
        pytest.param(8, 4, id='two-chunks'),
        pytest.param(13, 4, id='four-chunks-last-filled'),
        pytest.param(9, 1, id='chunks-of-one'),
        pytest.param(301, 2, id='buckets-clipped-at-128'),
        pytest.param(1001, 144, id='chunk-of-the-paper'),
    ],
)
@pytest.mark.parametrize(('numbers_at_once', 'numbers_gathered'), CUTS)
def test_equals_the_reference_in_outputs_and_gradients(
    monkeypatch: pytest.MonkeyPatch,
    numbers_at_once: int,
    numbers_gathered: int,
    length: int,
    chunk_size: int,
    rounds: int,
    images: int,
) -> None:
    if DEVICE == 'cpu':
        monkeypatch.setattr(streamed, 'NUMBERS_AT_ONCE', numbers_at_once)
        monkeypatch.setattr(streamed, 'NUMBERS_GATHERED', numbers_gathered)
    check_equals_reference(draw(images, length, rounds, chunk_size, channels=(5, 7)), chunk_size)


@given(st.integers(1, 80), st.integers(1, 20), st.integers(1, 8), st.integers(1, 3), st.integers(0, 2**31))
def test_equals_the_reference_at_any_size(length: int, chunk_size: int, rounds: int, images: int, seed: int) -> None:
    chunk_size = min(length, chunk_size)
    inputs = draw(images, length, rounds, chunk_size, seed=seed)
    results = attend_and_differentiate(inputs, chunk_size, 'streamed', torch.float64)
    for result, expected in zip(results, attend_and_differentiate(inputs, chunk_size, 'reference', torch.float64)):
        torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize('neighbours', ['previous', 'none'])
@pytest.mark.parametrize(('numbers_at_once', 'numbers_gathered'), CUTS)
@pytest.mark.parametrize(('length', 'chunk_size'), [(4, 4), (7, 4), (8, 4), (13, 4), (9, 1), (301, 40)])
def test_equals_the_reference_in_smaller_windows(
    length: int,
    chunk_size: int,
    numbers_at_once: int,
    numbers_gathered: int,
    neighbours: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streamed, 'NUMBERS_AT_ONCE', numbers_at_once)
    monkeypatch.setattr(streamed, 'NUMBERS_GATHERED', numbers_gathered)
    inputs = draw(3, length, 2, chunk_size)
    results = attend_and_differentiate(inputs, chunk_size, 'streamed', torch.float64, neighbours)
    expected = attend_and_differentiate(inputs, chunk_size, 'reference', torch.float64, neighbours)
    for result, truth in zip(results, expected):
        torch.testing.assert_close(result, truth, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize('magnitude', [0.0, 1e-7, 1e-4, 30.0, 1e3])
def test_is_exact_for_features_of_any_length(magnitude: float) -> None:
    match, value, rotations = draw(2, 100, 3, 16, channels=(16, 24))
    match[0, ::3] *= magnitude  # among others
    match[1] *= magnitude
    inputs = match.float().double(), value.float().double(), rotations
    exact = attend_and_differentiate(inputs, 16, 'reference', torch.float64)
    out, *gradients = errors(attend_and_differentiate(inputs, 16, 'streamed', torch.float32), exact)
    assert out < 1e-5
    assert max(gradients) < 1e-4


@pytest.mark.parametrize(('length', 'chunk_size'), [(4, 4), (11, 4), (12, 2)])
def test_gradients_are_those_of_finite_differences(length: int, chunk_size: int) -> None:
    match, value, rotations = draw(2, length, 2, chunk_size, channels=(3, 2))

    def attend(match: Tensor, value: Tensor) -> Tensor:
        return ops.attend(match, value, rotations, chunk_size, 'streamed')

    assert torch.autograd.gradcheck(attend, (match.requires_grad_(), value.requires_grad_()))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('magnitude', [1e-6, 0.1, 1.0, 10.0])
def test_half_precision_errs_at_most_twice_as_much_as_the_reference(dtype: torch.dtype, magnitude: float) -> None:
    match, value, rotations = draw(2, 500, 4, 48, channels=(16, 64))
    match, value = ((tensor * scale).to(dtype).double() for tensor, scale in ((match, magnitude), (value, 1.0)))
    exact = attend_and_differentiate((match, value, rotations), 48, 'reference', torch.float64)
    ours = errors(attend_and_differentiate((match, value, rotations), 48, 'streamed', dtype), exact)
    theirs = errors(attend_and_differentiate((match, value, rotations), 48, 'reference', dtype), exact)
    assert all(our <= 2 * their for our, their in zip(ours, theirs))
    (untrained,) = errors([attend_untrained((match, value, rotations), 48, dtype)], exact[:1])
    assert untrained <= 2 * theirs[0]


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_has_room_for_the_sum_of_large_values(dtype: torch.dtype) -> None:
    match, value, rotations = draw(1, 600, 2, 144, channels=(16, 8))
    inputs = 0.01 * match, 3000 + value, rotations
    untrained = attend_untrained(inputs, 144, dtype)
    trained = attend_and_differentiate(inputs, 144, 'streamed', dtype)
    assert ((untrained - 3000).abs() < 20).all()
    assert ((trained[0] - 3000).abs() < 20).all()
    assert all(gradient.isfinite().all() for gradient in trained)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32])
def test_long_features_do_not_overflow(dtype: torch.dtype) -> None:
    match, value, rotations = draw(1, 100, 2, 16, channels=(64, 8))
    results = attend_and_differentiate((match * 1e3, value, rotations), 16, 'streamed', dtype)
    assert all(result.isfinite().all() for result in results)


@pytest.mark.parametrize('place', [0, 17, 100, 188, 199, -1])
@pytest.mark.parametrize('length', [200, 203])
@pytest.mark.parametrize('where', ['match', 'value', 'gradient'])
def test_what_is_not_a_number_spreads_no_further_than_in_the_reference(where: str, length: int, place: int) -> None:
    *inputs, rotations = draw(2, length, 1, 8)
    pixel = ops.library.pixel_order(inputs[0], rotations)[1, 0, place]
    inputs.append(torch.randn(inputs[1].shape, generator=torch.Generator().manual_seed(1)))
    inputs[['match', 'value', 'gradient'].index(where)][1, pixel] = torch.nan
    match, value, gradient = (tensor.to(DEVICE) for tensor in inputs)

    def attend_and_differentiate(backend: str) -> list[Tensor]:
        leaves = match.clone().requires_grad_(), value.clone().requires_grad_()
        out = ops.attend(*leaves, rotations.to(DEVICE), 8, backend)
        return [out.detach(), *torch.autograd.grad(out, leaves, gradient)]

    results, expected = attend_and_differentiate('streamed'), attend_and_differentiate('reference')
    assert results[0].isnan().equal(expected[0].isnan())
    for ours, theirs in zip(results[1:], expected[1:]):
        assert not (ours.isnan() & ~theirs.isnan()).any()
    for result in results:
        assert not result[0].isnan().any()  # the other image
        assert not result[1].isnan().all()


def test_the_weights_of_long_features_sum_to_one() -> None:
    match, value, rotations = draw(1, 100, 2, 16, channels=(16, 4))
    match[0, 1::2] = match[0, ::2]  # pairs: each has half the weight of the other's value
    inputs = match.float().double() * 100, value.float().double(), rotations
    exact = attend_and_differentiate(inputs, 16, 'reference', torch.float64)
    assert errors(attend_and_differentiate(inputs, 16, 'streamed', torch.float32), exact)[2] < 1e-6


@pytest.mark.parametrize('how', ['dual numbers', 'torch.func', 'torch.func, mapped', 'compiled'])
def test_derivatives_that_are_carried_forward_are_those_of_the_reference_or_refused(how: str) -> None:
    match, value, rotations = draw(1, 4000, 2, 144)  # more than 'reference' is taken for unasked
    tangents = torch.randn_like(match), torch.randn_like(value)

    def derivative(backend: str) -> Tensor:
        def attend(match: Tensor, value: Tensor) -> Tensor:
            form = functools.partial(ops.attend, rotations=rotations, chunk_size=144, backend=backend)
            return torch.func.vmap(form)(match[None], value[None])[0] if 'mapped' in how else form(match, value)

        def along(match: Tensor, value: Tensor) -> Tensor:
            return torch.func.jvp(attend, (match, value), tangents)[1]

        if how == 'dual numbers':
            with forward_ad.dual_level():
                out = attend(*(forward_ad.make_dual(x, along) for x, along in zip((match, value), tangents)))
                return forward_ad.unpack_dual(out).tangent
        return (torch.compile(along, backend='eager') if 'compiled' in how else along)(match, value)

    torch.compiler.reset()
    assert derivative('auto').equal(derivative('reference'))
    with pytest.raises(BackendError, match="backend='streamed' can be differentiated by autograd alone"):
        derivative('streamed')


@pytest.mark.parametrize('mapped', [False, True])
def test_torch_func_differentiates_as_the_reference_does_or_is_refused(mapped: bool) -> None:
    match, value, rotations = draw(1, 4000, 2, 144)

    def derivative(backend: str) -> Tensor:
        def loss(match: Tensor) -> Tensor:
            attend = functools.partial(ops.attend, rotations=rotations, chunk_size=144, backend=backend)
            return (
                (torch.func.vmap(attend)(match[None], value[None]) if mapped else attend(match, value)).square().sum()
            )

        return torch.func.grad(loss)(match)

    leaf = match.clone().requires_grad_()
    ops.attend(leaf, value, rotations, 144, 'streamed').square().sum().backward()
    assert errors([derivative('auto')], [leaf.grad])[0] < 1e-4
    with pytest.raises(BackendError, match="backend='streamed' can be differentiated by autograd alone"):
        derivative('streamed')


def test_torch_func_maps_the_streamed_form_too() -> None:
    match, value, rotations = draw(3, 40, 2, 8)
    mapped = torch.func.vmap(lambda match, value: ops.attend(match[None], value[None], rotations, 8, 'streamed')[0])
    torch.testing.assert_close(mapped(match, value), ops.attend(match, value, rotations, 8, 'reference'))


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_an_empty_batch_stays_empty(dtype: torch.dtype) -> None:
    results = attend_and_differentiate(draw(0, 30, 2, 8), 8, 'streamed', dtype)
    assert [len(result) for result in results] == [0, 0, 0]


PEAK = """
import re, torch
from pathlib import Path
from nlsn_plugin import ops
def peak():
    return int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) * 1024
def attend(length):
    value = torch.randn(1, length, 16)
    rotations = torch.randn(8, {rounds}, ops.count_buckets(length, 144) // 2)
    with torch.no_grad():
        ops.attend(value[..., :8].contiguous(), value, rotations, 144, 'streamed')
attend(1000)
before = peak()
attend(40_000)
print(peak() - before)
"""


@pytest.mark.skipif(DEVICE != 'cpu', reason='reads the memory of the process')
def test_memory_hardly_grows_with_the_rounds() -> None:
    one, eight = (int(python(PEAK.replace('{rounds}', str(rounds))).stdout) for rounds in (1, 8))
    order = 8 * 40_000 * 8  # bytes of the permutations: what must grow
    assert eight - one < 3 * order
    assert eight < 40_000 * 432 * 4  # the scores of one round
