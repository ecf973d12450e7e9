from __future__ import annotations

import attention_loop
import pytest
import torch
from torch import Tensor

from nlsn_plugin import NonLocalAttention
from nlsn_plugin.ops import dense


def layer_and_image(size: tuple[int, int] = (10, 12), **arguments: object) -> tuple[NonLocalAttention, Tensor]:
    torch.manual_seed(0)
    return NonLocalAttention(8, **arguments), torch.randn(2, 8, *size)


def expected(layer: NonLocalAttention, x: Tensor) -> Tensor:
    def sees(query: tuple[int, int], key: tuple[int, int]) -> bool:
        if layer.window is None:
            return True
        reach = range(-(layer.window // 2), layer.window - layer.window // 2)
        return all(k - q in reach for q, k in zip(query, key))

    return attention_loop.attend(layer, x, sees, unit_keys=False)


@pytest.mark.parametrize('shared', [True, False])
@pytest.mark.parametrize(
    ('size', 'window'),
    [
        pytest.param((4, 5), None, id='whole-image'),
        pytest.param((1, 1), 3, id='one-pixel'),
        pytest.param((1, 9), 4, id='one-row'),
        pytest.param((9, 1), 3, id='one-column'),
        pytest.param((3, 4), 1, id='window-of-one'),
        pytest.param((4, 5), 2, id='window-of-two'),
        pytest.param((9, 10), 3, id='odd-window-and-strips'),
        pytest.param((3, 10), 4, id='even-window-and-strips'),
        pytest.param((5, 6), 7, id='window-wider-than-the-image'),
        pytest.param((5, 4), 20, id='window-over-everything'),
    ],
)
def test_equals_the_equation_pixel_by_pixel(size: tuple[int, int], window: int | None, shared: bool) -> None:
    layer, x = layer_and_image(size, window=window, shared=shared, res_scale=0.5)
    attention_loop.assert_equal_in_outputs_and_gradients(layer, x, lambda image: expected(layer, image))


def masked(query: Tensor, key: Tensor, value: Tensor, window: int) -> Tensor:
    """All scores, those out of reach taken out: [H, W, *]."""
    height, width = query.shape[:2]
    row = torch.arange(height * width) // width
    column = torch.arange(height * width) % width
    score = query.flatten(0, 1) @ key.flatten(0, 1).mT
    for place in (row, column):
        distance = place - place[:, None]
        out_of_reach = (distance < -(window // 2)) | (distance > window - window // 2 - 1)
        score = score.masked_fill(out_of_reach, -torch.inf)
    return (score.softmax(-1) @ value.flatten(0, 1)).view(value.shape)


@pytest.mark.parametrize('numbers_at_once', [1, 20_000, dense.NUMBERS_AT_ONCE])
@pytest.mark.parametrize('window', [2, 5, 17, 40])
@pytest.mark.parametrize('size', [(23, 27), (1, 50)])
def test_bands_and_strips_of_any_number_change_nothing(
    size: tuple[int, int], window: int, numbers_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense, 'NUMBERS_AT_ONCE', numbers_at_once)
    torch.manual_seed(0)
    tensors = [torch.randn(2, *size, channels, dtype=torch.float64).requires_grad_() for channels in (3, 3, 9)]
    upstream = torch.randn(2, *size, 9, dtype=torch.float64)
    ours = dense.attend_nearby(*tensors, window)
    theirs = torch.stack([masked(*image, window) for image in zip(*tensors)])
    torch.testing.assert_close(ours, theirs)
    for gradients in zip(*(torch.autograd.grad(y, tensors, upstream) for y in (ours, theirs))):
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(('window', 'edge'), [(3, 24), (15, 40), (2, 9)])
def test_keys_out_of_reach_have_no_weight_whatever_the_scores(window: int, edge: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (1000 * torch.randn(1, edge, edge, 16, generator=generator) for _ in range(2))
    value = torch.randn(1, edge, edge, 8, generator=generator)
    inputs = [x.to(dtype) for x in (query, key, value)]
    exact = dense.attend_nearby(*(x.double() for x in inputs), window)
    assert (dense.attend_nearby(*inputs, window).double() - exact).abs().max() < 0.02


def test_a_window_over_everything_is_the_whole_image() -> None:
    layer, x = layer_and_image((9, 11))
    whole = layer(x)
    for window in (21, 22, 1000):
        layer.window = window
        assert layer(x).equal(whole)
    layer.window = 20  # from the last column the first is out of reach
    assert not layer(x).equal(whole)


@pytest.mark.parametrize('window', [None, 5])
def test_no_scores_are_kept_for_the_backward_pass(window: int | None) -> None:
    layer, x = layer_and_image((60, 70), window=window)
    kept = {}

    def count(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        layer(x)
    scores = 2 * 4 * (60 * 70) ** 2  # bytes of all; with a window those of masks are kept, a few bands of rows
    assert sum(kept.values()) < scores / 15


def test_state_dict() -> None:
    shapes = {
        'conv_match.0.weight': [4, 16, 3, 3],
        'conv_match.0.bias': [4],
        'conv_assembly.0.weight': [16, 16, 1, 1],
        'conv_assembly.0.bias': [16],
    }
    state = NonLocalAttention(16).state_dict()
    assert {name: list(tensor.shape) for name, tensor in state.items()} == shapes
    state = NonLocalAttention(16, shared=False).state_dict()
    shapes.update({'conv_key.0.weight': [4, 16, 3, 3], 'conv_key.0.bias': [4]})
    assert {name: list(tensor.shape) for name, tensor in state.items()} == shapes


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'channels': 0}, 'channels=0 is not allowed: a whole number of at least 1'),
        ({'channels': 10}, 'reduction=4 does not divide channels=10: the nearest that does is 5'),
        ({'window': 0}, 'window=0 is not allowed: a whole number of at least 1'),
        ({'window': 2.5}, 'window=2.5 is not allowed: a whole number'),
        ({'shared': 1}, 'shared=1 is not allowed: true or false'),
        ({'res_scale': '1e-1'}, "res_scale='1e-1' is not allowed: a number"),
    ],
)
def test_bad_arguments_are_named_with_their_value_and_what_is_allowed(
    arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        NonLocalAttention(**{'channels': 8, **arguments})


@pytest.mark.parametrize('shared', [True, False])
def test_a_layer_says_whether_its_keys_are_its_queries(shared: bool) -> None:
    assert f'8, window=5, shared={shared}, reduction=4' in repr(NonLocalAttention(8, window=5, shared=shared))
