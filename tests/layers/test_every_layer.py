"""What all attention layers have in common, in eval mode."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nlsn_plugin.layers import LocalWindowAttention, NonLocalAttention, NonLocalSparseAttention

LAYERS = {
    'nlsa': lambda: NonLocalSparseAttention(8, chunk_size=16),
    'nlsa-random': lambda: NonLocalSparseAttention(8, chunk_size=16, partition='random'),
    'nlsa-in-windows': lambda: NonLocalSparseAttention(8, chunk_size=16, window=6),
    'nla': lambda: NonLocalAttention(8),
    'nla-nearby': lambda: NonLocalAttention(8, window=5),
    'local': lambda: LocalWindowAttention(8, window=4),
}


@pytest.fixture(params=LAYERS)
def layer(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return LAYERS[request.param]().eval()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 8, 10, 12, generator=torch.Generator().manual_seed(1))


def test_channels_may_be_last(layer: nn.Module, x: torch.Tensor) -> None:
    torch.testing.assert_close(layer(x.contiguous(memory_format=torch.channels_last)), layer(x))


def test_nothing_is_random(layer: nn.Module, x: torch.Tensor) -> None:
    before = torch.get_rng_state()
    assert layer(x).equal(layer(x))
    assert torch.get_rng_state().equal(before)


def test_images_of_a_batch_do_not_see_each_other(layer: nn.Module, x: torch.Tensor) -> None:
    torch.testing.assert_close(layer(x)[1:], layer(x[1:]))


def test_torch_func_maps_it(layer: nn.Module, x: torch.Tensor) -> None:
    torch.testing.assert_close(torch.func.vmap(layer)(x[:, None])[:, 0], layer(x))


def test_torch_func_takes_gradients_of_each_image(layer: nn.Module, x: torch.Tensor) -> None:
    weights = {name: parameter.detach() for name, parameter in layer.named_parameters()}

    def loss(weights: dict[str, torch.Tensor], image: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, weights, (image[None],)).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, x)
    layer(x[1:]).square().sum().backward()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(found[name][1], parameter.grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast(layer: nn.Module, x: torch.Tensor, dtype: torch.dtype) -> None:
    exact = layer(x)
    with torch.autocast('cpu', dtype):
        rounded = layer(x.requires_grad_())
    rounded.float().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert (rounded.float() - exact).abs().mean() < 0.02


def test_an_empty_batch_stays_empty(layer: nn.Module, x: torch.Tensor) -> None:
    assert layer(x[:0]).shape == (0, 8, 10, 12)


@pytest.mark.parametrize('shape', [(8, 4, 4), (1, 7, 4, 4), (1, 8, 4)])
def test_an_input_of_a_wrong_shape_is_refused(layer: nn.Module, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r'x has the shape .*: \[N, 8, H, W\] is expected'):
        layer(torch.randn(shape))


@pytest.mark.parametrize('kind', [NonLocalSparseAttention, NonLocalAttention, LocalWindowAttention])
def test_the_attention_weighs_as_much_as_is_asked_for(kind: type[nn.Module], x: torch.Tensor) -> None:
    outputs = []
    for res_scale in (0.5, 1.0):
        torch.manual_seed(0)
        outputs.append(kind(8, res_scale=res_scale).eval()(x))
    torch.testing.assert_close(2 * (outputs[0] - x), outputs[1] - x)
