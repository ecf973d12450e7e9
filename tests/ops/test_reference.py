from __future__ import annotations

import numpy as np
import pixel_loop
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nlsn_plugin import ops
from nlsn_plugin.errors import ArgumentError
from nlsn_plugin.ops.reference import normalise


def draw(
    images: int, length: int, rounds: int, chunk_size: int, channels: tuple[int, int] = (5, 7), seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random match [N, L, c], value [N, L, C] and rotations, in float64."""
    generator = torch.Generator().manual_seed(seed)
    half = ops.count_buckets(length, chunk_size) // 2
    shapes = [(images, length, channels[0]), (images, length, channels[1]), (channels[0], rounds, half)]
    match, value, rotations = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return match, value, rotations.float().double()


@pytest.mark.parametrize('rounds', [1, 3])
@pytest.mark.parametrize(
    ('length', 'chunk_size'),
    [
        pytest.param(1, 4, id='one-pixel'),
        pytest.param(3, 4, id='less-than-a-chunk'),
        pytest.param(4, 4, id='one-chunk'),
        pytest.param(7, 4, id='two-chunks-second-filled'),
        pytest.param(8, 4, id='two-chunks'),
        pytest.param(13, 4, id='four-chunks-last-filled'),
        pytest.param(24, 4, id='six-chunks'),
        pytest.param(9, 1, id='chunks-of-one'),
        pytest.param(300, 2, id='buckets-clipped-at-128'),
    ],
)
def test_equals_the_equations_pixel_by_pixel(length: int, chunk_size: int, rounds: int) -> None:
    match, value, rotations = draw(2, length, rounds, chunk_size)
    result = ops.attend(match, value, rotations, chunk_size, backend='reference')
    for n in range(2):
        expected = pixel_loop.attend(match[n].numpy(), value[n].numpy(), rotations.numpy(), chunk_size)
        np.testing.assert_allclose(result[n].numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('backend', ['reference', 'streamed'])
@pytest.mark.parametrize('neighbours', ['previous', 'none'])
@pytest.mark.parametrize(('length', 'chunk_size'), [(3, 4), (4, 4), (7, 4), (13, 4), (24, 4), (9, 1)])
def test_smaller_windows_equal_the_equations_pixel_by_pixel(
    length: int, chunk_size: int, neighbours: str, backend: str
) -> None:
    match, value, rotations = draw(2, length, 2, chunk_size)
    result = ops.attend(match, value, rotations, chunk_size, backend, neighbours)
    for n in range(2):
        expected = pixel_loop.attend(match[n].numpy(), value[n].numpy(), rotations.numpy(), chunk_size, neighbours)
        np.testing.assert_allclose(result[n].numpy(), expected, rtol=1e-9, atol=1e-12)


def test_an_order_that_is_given_is_cut_into_chunks() -> None:
    match, value, _ = draw(1, 12, 2, 4)
    order = ops.draw_orders(12, 2, 0)
    result = ops.attend_in_order(match, value, order[None], 4, 'reference', 'none')[0]
    keys = torch.nn.functional.normalize(match[0], dim=-1)
    for i in range(12):
        window = torch.cat([chunk for pixels in order for chunk in pixels.split(4) if i in chunk])
        weight = (keys[window] @ match[0, i]).softmax(-1)
        torch.testing.assert_close(result[i], weight @ value[0, window])


@pytest.mark.parametrize(('length', 'chunk_size'), [(3, 4), (4, 4), (11, 4)])
@pytest.mark.parametrize('backend', ['reference', 'streamed'])
def test_gradients_are_those_of_finite_differences(length: int, chunk_size: int, backend: str) -> None:
    match, value, rotations = draw(1, length, 2, chunk_size, channels=(3, 2))

    def attend(match: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return ops.attend(match, value, rotations, chunk_size, backend)

    assert torch.autograd.gradcheck(attend, (match.requires_grad_(), value.requires_grad_()))


sizes = st.tuples(st.integers(1, 60), st.integers(1, 20), st.integers(1, 4), st.integers(0, 2**31))


@pytest.mark.parametrize('backend', ['reference', 'streamed'])
@given(size=sizes)
def test_every_output_is_a_mean_of_values(backend: str, size: tuple[int, int, int, int]) -> None:
    length, chunk_size, rounds, seed = size
    match, value, rotations = draw(1, length, rounds, chunk_size, seed=seed)
    result = ops.attend(match, value, rotations, chunk_size, backend)
    low, high = value.amin(dim=1, keepdim=True), value.amax(dim=1, keepdim=True)
    assert ((low - 1e-9 <= result) & (result <= high + 1e-9)).all()


@pytest.mark.parametrize('backend', ['reference', 'streamed'])
@given(size=sizes)
def test_images_of_a_batch_do_not_see_each_other(backend: str, size: tuple[int, int, int, int]) -> None:
    length, chunk_size, rounds, seed = size
    match, value, rotations = draw(3, length, rounds, chunk_size, seed=seed)
    together = ops.attend(match, value, rotations, chunk_size, backend)
    for n in range(3):
        alone = ops.attend(match[n : n + 1], value[n : n + 1], rotations, chunk_size, backend)
        torch.testing.assert_close(together[n : n + 1], alone)


@pytest.mark.parametrize('backend', ['reference', 'streamed'])
@given(size=sizes)
def test_repeating_a_round_changes_nothing(backend: str, size: tuple[int, int, int, int]) -> None:
    length, chunk_size, _, seed = size
    match, value, rotations = draw(1, length, 1, chunk_size, seed=seed)
    once = ops.attend(match, value, rotations, chunk_size, backend)
    thrice = ops.attend(match, value, rotations.expand(-1, 3, -1), chunk_size, backend)
    torch.testing.assert_close(once, thrice)


@pytest.mark.parametrize('length', [3, 30])
@pytest.mark.parametrize('backend', ['reference', 'streamed'])
def test_an_empty_batch_stays_empty(length: int, backend: str) -> None:
    assert ops.attend(*draw(0, length, 2, 8), 8, backend).shape == (0, length, 7)


@pytest.mark.parametrize('backend', ['reference', 'streamed'])
def test_one_window_over_everything_is_standard_attention(backend: str) -> None:
    match, value, rotations = draw(1, 12, 2, 4)  # three chunks: every window holds every pixel once
    dense = torch.softmax(match @ torch.nn.functional.normalize(match, dim=-1).mT, dim=-1) @ value
    torch.testing.assert_close(ops.attend(match, value, rotations, 4, backend), dense)


@pytest.mark.parametrize('magnitude', [0.0, 1e-6, 1e3])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('backend', ['reference', 'streamed'])
def test_features_of_any_length_give_finite_numbers(magnitude: float, dtype: torch.dtype, backend: str) -> None:
    match, value, rotations = draw(1, 30, 2, 8)
    match = (match * magnitude).to(dtype).requires_grad_()
    result = ops.attend(match, value.to(dtype), rotations, 8, backend)
    result.float().sum().backward()
    assert result.dtype == dtype
    assert result.isfinite().all()
    assert match.grad is not None
    assert match.grad.isfinite().all()


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ArgumentError, match="backend='fast' is not allowed: choose one of 'auto', 'reference'"):
        ops.attend(*draw(1, 8, 1, 4), 4, backend='fast')


def test_keys_that_are_shorter_than_the_released_codes_bound_shrink() -> None:
    direction = torch.tensor([0.6, 0.8])
    for length, expected in ((5e-5, 1.0), (5e-6, 0.1), (0.0, 0.0)):
        torch.testing.assert_close(normalise(length * direction), expected * direction)
