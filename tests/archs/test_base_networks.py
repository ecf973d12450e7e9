"""Base networks of all kinds, of strangers too, in which WithNLSA puts attentions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from nlsn_plugin import WithNLSA
from nlsn_plugin.archs.places import in_channels
from nlsn_plugin.errors import ArgumentError
from nlsn_plugin.models.checkpoint import load_weights

IMAGE = torch.rand(2, 3, 16, 12, generator=torch.Generator().manual_seed(2))


class Sequences(BaseModule):
    """Hands the size to its layers in every way that networks do."""

    def __init__(self, way: str, init_cfg: Any = None) -> None:
        super().__init__(init_cfg)
        self.way = way
        self.embed = nn.Conv2d(3, 8, 1)
        self.layer = Layer()

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        size = tuple(x.shape[2:])
        rows = x.flatten(2).transpose(1, 2)
        if self.way == 'pair':
            rows = self.layer(rows, size)
        elif self.way == 'keyword':
            rows = self.layer(rows, x_size=size)
        else:
            rows = self.layer(rows, *size)
        return rows.transpose(1, 2).unflatten(2, size)


class Layer(nn.Module):
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return x * 2


@pytest.fixture
def registered() -> Iterator[None]:
    MODELS.register_module(module=Sequences)
    yield
    del MODELS.module_dict['Sequences']


@pytest.mark.usefixtures('registered')
@pytest.mark.parametrize('way', ['pair', 'keyword', 'two numbers'])
def test_sequences_are_attended_to_as_the_images_that_they_are(way: str) -> None:
    config = {'type': 'WithNLSA', 'arch': {'type': 'Sequences', 'way': way}, 'after': ['layer'], 'zero_start': False}
    net = MODELS.build(config).eval()
    layer = net.nlsa.get_submodule('layer')
    with torch.no_grad():
        assert net(IMAGE).equal(layer(2 * net.embed(IMAGE)))


@pytest.mark.usefixtures('registered')
def test_mmengines_way_to_initialise_leaves_the_zero_start() -> None:
    net = WithNLSA(
        {'type': 'Sequences', 'way': 'pair', 'init_cfg': {'type': 'Constant', 'layer': 'Conv2d', 'val': 2.0}}, 'layer'
    )
    net.init_weights()
    assert net.embed.weight.eq(2).all()
    layer = net.nlsa.get_submodule('layer')
    assert layer.conv_match[0].weight.eq(2).all()
    assert not layer.conv_assembly[0].weight.any()
    of_basicsr = {'type': 'MSRResNet', 'num_feat': 8, 'num_block': 1, 'upscale': 2}
    WithNLSA(of_basicsr, 'body.0').init_weights()  # which has no such method


@pytest.mark.parametrize(
    ('arch', 'reason'),
    [
        ({'type': 'SRVGGNetCompact', 'act_type': 'lrelu'}, 'activation'),
        ({'type': 'RCAN', 'num_in_ch': 3, 'num_out_ch': 3, 'squeeze_factor': 0}, 'ZeroDivisionError'),
        ({'type': 'SwinIR', 'depths': [2, 2], 'num_heads': [2], 'embed_dim': 8, 'img_size': 14}, 'IndexError: list'),
    ],
)
def test_what_a_base_network_says_of_its_arguments_is_one_line(arch: dict[str, Any], reason: str) -> None:
    with pytest.raises(ArgumentError, match=f'^arch: {arch["type"]} cannot be built: .*{reason}') as caught:
        WithNLSA(arch, 'body.0')
    assert '\n' not in str(caught.value)


def test_a_single_pixel_is_no_image_of_features() -> None:
    arch = {'type': 'RCAN', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 16, 'num_group': 1, 'num_block': 1}
    with pytest.raises(ArgumentError, match='which gives a single pixel'):
        WithNLSA({**arch, 'squeeze_factor': 4}, 'AdaptiveAvgPool2d', probe=[3, 64, 64])


def test_an_attention_after_a_body_that_is_checkpointed_is_trained() -> None:
    base = {'type': 'NLSN', 'num_feat': 16, 'num_block': 1, 'attention': 'none', 'checkpointing': True}
    net = WithNLSA(base, after='body', nlsa={'chunk_size': 16}, zero_start=False).train()
    torch.manual_seed(0)
    trained = net(torch.ones(1, 3, 12, 10) * torch.linspace(0, 1, 10))
    trained.sum().backward()
    assert all(weight.grad is not None for weight in net.nlsa.parameters())
    torch.manual_seed(0)
    with torch.no_grad():
        assert (net(torch.ones(1, 3, 12, 10) * torch.linspace(0, 1, 10)) - trained).abs().max() < 1e-5


def test_a_toolbox_that_refuses_to_be_imported_is_named_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As some of OpenMMLab's do that find a newer package than they know."""
    (tmp_path / 'mmpose').mkdir()
    (tmp_path / 'mmpose' / '__init__.py').write_text("raise AssertionError('mmcv==2.2 is used, <2.2 is wanted')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ArgumentError, match=r'mmpose does not import: mmcv==2\.2 is used, <2\.2 is wanted'):
        WithNLSA({'type': 'mmpose.HRNet'}, after='body')


def test_channels_of_an_image_are_those_that_the_first_convolution_takes() -> None:
    net = nn.Sequential(nn.ReLU(), nn.Conv2d(1, 4, 3), nn.Conv2d(4, 8, 3))
    assert in_channels(net, {}) == 1


@pytest.mark.usefixtures('registered')
def test_attentions_that_mmengine_takes_from_a_file_stay(tmp_path: Path) -> None:
    arch = {'type': 'Sequences', 'way': 'pair'}
    trained = WithNLSA(arch, 'layer', zero_start=False).state_dict()
    torch.save(trained, tmp_path / 'net.pth')
    net = WithNLSA({**arch, 'init_cfg': {'type': 'Pretrained', 'checkpoint': str(tmp_path / 'net.pth')}}, 'layer')
    net.init_weights()
    assert all(weight.equal(trained[name]) for name, weight in net.state_dict().items())


class Normalised(nn.Module):
    """Its weights are computed, with gradients, when it is built: such tensors are not copied."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.utils.weight_norm(nn.Conv2d(3, 8, 3, padding=1))
        self.tail = nn.utils.weight_norm(nn.Conv2d(8, 3, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.head(x))


@pytest.mark.filterwarnings('ignore:`torch.nn.utils.weight_norm` is deprecated')
def test_weights_may_be_normalised_in_the_old_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS.module_dict, 'Normalised', Normalised)
    net = WithNLSA({'type': 'Normalised'}, after='head')
    net(torch.rand(1, 3, 16, 16)).mean().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


class RunsThrough(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))


def test_a_base_network_may_run_through_all_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS.module_dict, 'RunsThrough', RunsThrough)
    net = WithNLSA({'type': 'RunsThrough'}, after='ReLU')
    base = RunsThrough()
    load_weights(net, base.state_dict(), 'base.pth')
    assert net(IMAGE).equal(base(IMAGE))
