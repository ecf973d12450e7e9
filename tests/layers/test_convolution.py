from __future__ import annotations

import concurrent.futures

import pytest
import torch
import torch.nn.functional as F
from conftest import DEVICE
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from nlsn_plugin import NLSN
from nlsn_plugin.layers import convolution
from nlsn_plugin.layers.convolution import Conv2d, Conv3x3
from nlsn_plugin.ops import cpu_matmul, winograd


@pytest.fixture
def by_winograd(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """Let every size be large enough; the dtypes of what was computed so."""
    for name in ('FEWEST_CHANNELS', 'FEWEST_PIXELS', 'FEWEST_PIXELS_PACKED', 'SHORTEST_EDGE'):
        monkeypatch.setattr(winograd, name, 1)
    calls: list[torch.dtype] = []
    convolve = winograd.conv3x3

    def counted(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        calls.append(x.dtype)
        return convolve(x, weight, bias)

    monkeypatch.setattr(winograd, 'conv3x3', counted)
    return calls


@pytest.fixture(params=[False, True], ids=['without half precision', 'with half precision'])
def has_half(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(cpu_matmul, 'has_products_in', lambda dtype: bool(request.param))
    return bool(request.param)


def conv3x3(**arguments: str) -> Conv3x3:
    torch.manual_seed(0)
    return Conv3x3(8, 12, **arguments)


def image() -> Tensor:
    return torch.randn(2, 8, 13, 18, generator=torch.Generator().manual_seed(1))


def published(module: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, module.weight, module.bias, padding=module.padding)


@pytest.mark.usefixtures('by_winograd')
@pytest.mark.parametrize('how', ['fake', 'a graph', 'functionalised', 'mapped', 'differentiated', 'carried along'])
def test_what_is_more_than_run_takes_pytorchs_convolution_and_leaves_nothing_behind(how: str) -> None:
    """Also in a thread that has run nothing else."""
    module, x = conv3x3().requires_grad_(False), image()
    expected = published(module, x)

    def watched() -> Tensor:
        if how == 'fake':
            with FakeTensorMode(allow_non_fake_inputs=True) as mode:
                return module(mode.from_tensor(x))
        if how == 'a graph':
            graph = make_fx(module)(x)
            assert all(constant.dtype == x.dtype for constant in graph.state_dict().values())  # no bytes of a thread's
            return graph(x)
        if how == 'functionalised':
            return torch.func.functionalize(module)(x)
        if how == 'mapped':
            return torch.func.vmap(module)(x[None])[0]
        if how == 'differentiated':
            return torch.func.vjp(module, x)[0]
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(module(forward_ad.make_dual(x, x))).tangent + module.bias[:, None, None]

    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        found, afterwards = thread.submit(watched).result(), thread.submit(lambda: module(x)).result()
    assert found.shape == expected.shape
    assert how == 'fake' or (found - expected).abs().max() < 1e-5
    assert (afterwards - expected).abs().max() < 1e-5


def test_many_channels_and_pixels_go_by_winograd_where_nothing_is_trained(by_winograd: list[torch.dtype]) -> None:
    module, x = conv3x3(), image()
    with torch.no_grad():
        expected = published(module, x)
        assert (module(x) - expected).abs().max() < 2e-6 * expected.abs().max()
    assert by_winograd == [torch.float32]
    module.requires_grad_(False)
    module(x)
    assert len(by_winograd) == 2


def test_what_is_trained_does_not(by_winograd: list[torch.dtype]) -> None:
    module, x = conv3x3(), image().requires_grad_()
    assert torch.equal(module(x), published(module, x))
    module.requires_grad_(False)
    module(x).sum().backward()
    assert x.grad is not None
    assert not by_winograd


@pytest.mark.parametrize('by_variable', [False, True])
def test_the_reference_does_not(
    by_variable: bool, by_winograd: list[torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    if by_variable:
        monkeypatch.setenv('NLSN_BACKEND', 'reference')
    module, x = conv3x3(backend='auto' if by_variable else 'reference'), image()
    with torch.no_grad():
        assert torch.equal(module(x), published(module, x))
    assert not by_winograd


@pytest.mark.filterwarnings('ignore:.*torch.jit.trace')
def test_a_graph_does_not(by_winograd: list[torch.dtype]) -> None:
    module, x = conv3x3().requires_grad_(False), image()
    traced = torch.jit.trace(module, x, check_trace=False)
    assert torch.equal(traced(x), published(module, x))
    exported = torch.export.export(module, (x,)).module()
    assert torch.equal(exported(x), published(module, x))
    assert not by_winograd


@pytest.mark.parametrize(
    ('shape', 'out_channels', 'packs', 'expected'),
    [
        ((1, 256, 48, 48), 256, False, True),
        ((1, 256, 48, 48), 256, True, False),
        ((1, 256, 80, 80), 256, True, True),
        ((1, 192, 100, 90), 768, True, True),
        ((1, 256, 47, 48), 256, False, False),
        ((9, 256, 47, 48), 256, False, False),
        ((9, 256, 79, 80), 256, True, False),
        ((1, 256, 15, 1000), 256, True, False),
        ((1, 64, 500, 500), 64, True, False),
        ((1, 256, 500, 500), 3, False, False),
        ((1, 3, 500, 500), 256, True, False),
    ],
)
def test_where_it_is_faster(
    shape: tuple[int, ...], out_channels: int, packs: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, 'can_pack', lambda weight: packs)
    x, weight = torch.empty(shape, device='meta'), torch.empty(out_channels, shape[1], 3, 3)
    assert not winograd.is_faster(x, weight)  # no CPU
    assert winograd.is_faster(torch.empty(1).expand(shape), weight) == expected


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('way', ['autocast', 'weights in half precision'])
@pytest.mark.parametrize('kind', [Conv2d, Conv3x3])
def test_half_precision_is_as_exact_as_pytorchs_and_of_its_type(
    dtype: torch.dtype, way: str, kind: type[Conv2d], has_half: bool, by_winograd: list[torch.dtype]
) -> None:
    torch.manual_seed(0)
    module: nn.Conv2d = Conv3x3(8, 12) if kind is Conv3x3 else Conv2d(8, 12, 1)
    plain = nn.Conv2d(8, 12, module.kernel_size, padding=module.padding)
    plain.load_state_dict(module.state_dict())
    x = image()
    with torch.no_grad():
        exact = plain.double()(x.double())
        if way == 'autocast':
            plain.float()
            with torch.autocast('cpu', dtype):
                found, theirs = module(x), plain(x)
        else:
            found, theirs = module.to(dtype)(x.to(dtype)), plain.to(dtype)(x.to(dtype))
    assert found.dtype == theirs.dtype == dtype
    if has_half:
        assert torch.equal(found, theirs)
        assert not by_winograd
    else:
        assert (found - exact).abs().max() <= 1.01 * (theirs - exact).abs().max()
        assert len(by_winograd) == (kind is Conv3x3)


@pytest.mark.parametrize('trained', [False, True])
@pytest.mark.parametrize(('given', 'cast_to'), [(torch.bfloat16, torch.float16), (torch.float16, torch.bfloat16)])
@pytest.mark.parametrize('weights', [torch.float32, torch.bfloat16])
def test_autocast_casts_the_other_half_precision_as_pytorch_does(
    given: torch.dtype, cast_to: torch.dtype, weights: torch.dtype, trained: bool, has_half: bool
) -> None:
    module, x = conv3x3().to(weights), image().to(given)
    with torch.autocast('cpu', cast_to), torch.set_grad_enabled(trained):
        found = module(x)
        assert found.dtype == published(module, x).dtype == cast_to
        torch.testing.assert_close(found, published(module, x), rtol=0.02, atol=0.02)


def test_half_precision_is_trained_as_ever(has_half: bool) -> None:
    module, x = conv3x3(), image()
    with torch.autocast('cpu', torch.bfloat16):
        found = module(x)
        assert torch.equal(found, published(module, x))
    found.sum().backward()
    assert module.weight.grad is not None


@pytest.mark.parametrize('shape', [(8, 13, 18), (1, 2, 8, 13, 18), (2, 7, 13, 18), (2, 24, 13, 18)])
def test_an_image_without_a_batch_and_a_wrong_shape_are_pytorchs(
    shape: tuple[int, ...], by_winograd: list[torch.dtype]
) -> None:
    module, x = conv3x3(), torch.randn(shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        if len(shape) == 3:
            assert torch.equal(module(x), published(module, x))
        else:
            with pytest.raises(RuntimeError, match=r'Expected 3D|to have 8 channels'):
                module(x)
    assert not by_winograd


def test_a_wrong_type_is_pytorchs_error(by_winograd: list[torch.dtype]) -> None:
    with torch.no_grad(), pytest.raises(RuntimeError, match='type'):
        conv3x3()(image().double())
    assert not by_winograd


@pytest.mark.parametrize('type_', [torch.bfloat16, torch.float16])
def test_half_precision_with_weights_of_another_type_is_pytorchs_error_too(type_: torch.dtype, has_half: bool) -> None:
    with torch.no_grad(), pytest.raises(RuntimeError, match='type'):
        conv3x3()(image().to(type_))


def test_a_frozen_module_trains_what_its_weights_are_made_of(by_winograd: list[torch.dtype]) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, weight: Tensor) -> Tensor:
            return weight * self.scale

    module = conv3x3().requires_grad_(False)
    torch.nn.utils.parametrize.register_parametrization(module, 'weight', Scaled())
    module(image()).sum().backward()
    assert module.parametrizations.weight[0].scale.grad is not None
    assert not by_winograd


@pytest.mark.parametrize('upscale', [1, 2, 3])
def test_the_network_is_the_same(upscale: int, by_winograd: list[torch.dtype]) -> None:
    def net(backend: str) -> NLSN:
        torch.manual_seed(0)
        return NLSN(num_feat=16, num_block=4, upscale=upscale, chunk_size=16, backend=backend).eval()

    x = torch.rand(2, 3, 19, 23)
    with torch.no_grad():
        expected = net('reference')(x)
        assert not by_winograd
        assert (net('auto')(x) - expected).abs().max() < 1e-6
    convolutions = sum(isinstance(module, Conv3x3) for module in net('auto').modules())
    assert len(by_winograd) == convolutions


def test_the_modules_are_convolutions_to_whoever_looks_for_them() -> None:
    assert all(issubclass(kind, nn.Conv2d) for kind in (convolution.Conv2d, convolution.Conv3x3))
    assert list(conv3x3().state_dict()) == ['weight', 'bias']


@pytest.mark.skipif(DEVICE == 'cpu', reason='needs a GPU')
@pytest.mark.parametrize('channels_last', [True, False])
def test_on_a_gpu_a_kernel_of_1x1_gives_what_pytorch_s_gives(channels_last: bool) -> None:
    torch.manual_seed(0)
    module = Conv2d(8, 12, 1).to(DEVICE, torch.bfloat16)
    x = image().to(DEVICE, torch.bfloat16).requires_grad_()
    rows = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    found = []
    for y in (module(rows), published(module, rows)):
        gradients = torch.autograd.grad(y.float().square().sum(), (x, *module.parameters()))
        found.append((y, *gradients))
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02 * theirs.abs().max().item())


@pytest.mark.usefixtures('has_half')
def test_autocast_leaves_float64_as_it_is() -> None:
    module, x = conv3x3().double(), image().double()
    with torch.no_grad():
        expected = published(module, x)
        with torch.autocast('cpu', torch.bfloat16):
            found = module(x)
    assert found.dtype == torch.float64
    assert (found - expected).abs().max() < 1e-12
