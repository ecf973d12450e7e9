from __future__ import annotations

import attention_loop
import pytest
import torch
from torch import Tensor

from nlsn_plugin import LocalWindowAttention, NonLocalSparseAttention


def layer_and_image(size: tuple[int, int] = (10, 12), **arguments: object) -> tuple[LocalWindowAttention, Tensor]:
    torch.manual_seed(0)
    return LocalWindowAttention(8, **arguments), torch.randn(2, 8, *size)


@pytest.mark.parametrize(
    ('size', 'window'),
    [
        pytest.param((1, 1), 12, id='one-pixel'),
        pytest.param((3, 4), 1, id='windows-of-one'),
        pytest.param((4, 6), 2, id='whole-windows'),
        pytest.param((7, 6), 3, id='rows-left-over'),
        pytest.param((6, 8), 3, id='columns-left-over'),
        pytest.param((8, 7), 3, id='both-left-over'),
        pytest.param((4, 7), 5, id='lower-than-a-window'),
        pytest.param((3, 4), 6, id='smaller-than-a-window'),
    ],
)
def test_equals_the_equation_pixel_by_pixel(size: tuple[int, int], window: int) -> None:
    layer, x = layer_and_image(size, window=window, res_scale=0.5)

    def sees(query: tuple[int, int], key: tuple[int, int]) -> bool:
        return [q // window for q in query] == [k // window for k in key]

    attention_loop.assert_equal_in_outputs_and_gradients(
        layer, x, lambda image: attention_loop.attend(layer, image, sees, unit_keys=True)
    )


def test_in_one_window_it_is_sparse_attention_with_one_chunk() -> None:
    layer, x = layer_and_image((12, 12))
    sparse = NonLocalSparseAttention(8, chunk_size=144, neighbours='none')
    sparse.load_state_dict(layer.state_dict(), strict=True)
    torch.testing.assert_close(layer(x), sparse(x))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'channels': 10}, 'reduction=4 does not divide channels=10: the nearest that does is 5'),
        ({'window': 0}, 'window=0 is not allowed: a whole number of at least 1'),
        ({'window': None}, 'window=None is not allowed: a whole number'),
    ],
)
def test_bad_arguments_are_named_with_their_value_and_what_is_allowed(
    arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        LocalWindowAttention(**{'channels': 8, **arguments})


def test_windows_are_the_papers_and_a_layer_says_what_it_is() -> None:
    assert repr(LocalWindowAttention(8)).startswith(
        'LocalWindowAttention(\n  8, window=12, reduction=4, res_scale=1.0\n'
    )
