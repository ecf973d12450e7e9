"""spandrel loads NLSN after `import nlsn_plugin`: the checks of its own tests, and the golden outputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GOLDEN, GOLDEN_NETWORKS, golden, official, python, relative_error
from torch import Tensor

from nlsn_plugin import NLSN
from nlsn_plugin.archs import WithNLSA
from nlsn_plugin.archs.bases import build_base
from nlsn_plugin.layers import NonLocalSparseAttention
from nlsn_plugin.models.formats import save_network

spandrel = pytest.importorskip('spandrel')
from nlsn_plugin.models import spandrel_arch  # noqa: E402

SMALL: dict[str, Any] = {'num_feat': 8, 'num_block': 8}
GRAY: dict[str, Any] = {'num_in_ch': 1, 'num_out_ch': 1, 'rgb_mean': [0.5]}
VARIANTS: list[dict[str, Any]] = [
    {},
    {'upscale': 1},
    {'upscale': 3},
    {'upscale': 4},
    {'upscale': 8},
    {'num_feat': 16},
    {'num_feat': 12, 'upscale': 3},
    {'num_block': 1},
    {'num_block': 4},
    {'num_block': 16},
    {'num_block': 17},
    {'num_block': 32},
    {'reduction': 1},
    {'reduction': 2},
    {'reduction': 8},
    {'attention_at': [0]},
    {'attention_at': [8]},
    {'attention_at': [1, 2, 5]},
    {'attention': 'nla', 'attention_options': {'shared': False}},
    {'img_range': 255.0},
    {'rgb_mean': [0.5, 0.5, 0.5]},
    {**GRAY},
    {**GRAY, 'upscale': 4, 'img_range': 255.0},
]
COMPARED = ('num_in_ch', 'img_range', 'upscale')


def small(**arguments: Any) -> NLSN:
    torch.manual_seed(0)
    return NLSN(**{**SMALL, **arguments}).eval()


def load(net: NLSN) -> Any:
    return spandrel.ModelLoader().load_from_state_dict(dict(net.state_dict()))


@pytest.mark.parametrize('arguments', VARIANTS, ids=str)
def test_load(arguments: dict[str, Any]) -> None:
    net = small(**arguments)
    model = load(net)
    assert model.architecture.id == 'NLSN'
    assert isinstance(model.model, NLSN)
    assert str(model.model) == str(net)  # modules and their arguments
    assert [getattr(model.model, name) for name in COMPARED] == [getattr(net, name) for name in COMPARED]
    ours, theirs = net.state_dict(), model.model.state_dict()
    assert list(ours) == list(theirs)
    assert all(tensor.equal(theirs[name]) for name, tensor in ours.items())
    assert model.scale == net.upscale
    assert model.input_channels == model.output_channels == net.num_in_ch
    assert model.purpose == ('Restoration' if net.upscale == 1 else 'SR')
    assert model.tiling is spandrel.ModelTiling.DISCOURAGED


@pytest.mark.parametrize('size', [(1, 1), (1, 7), (3, 2), (16, 16), (17, 23)])
def test_size_requirements(size: tuple[int, int]) -> None:
    model = load(small(upscale=3))
    assert model.size_requirements.none
    assert model(torch.rand(1, 3, *size)).shape == (1, 3, 3 * size[0], 3 * size[1])


@pytest.mark.parametrize('name', GOLDEN_NETWORKS)
def test_the_released_codes_file_makes_what_that_code_makes(name: str, caplog: pytest.LogCaptureFixture) -> None:
    _, arrays = golden(name)
    model = spandrel.ModelLoader().load_from_file(GOLDEN / f'{name}_official_state_dict.pt')
    assert 'does not say n_hashes, chunk_size, res_scale, attention: taken as released' in caplog.text
    assert model.tags == ['16nf', '8nb', 'nlsa']
    for module in model.model.modules():
        if isinstance(module, NonLocalSparseAttention):
            module.eval_seed = None  # rotations from the global generator, as the released code draws them
    torch.manual_seed(int(arrays['seed']))
    y = model(torch.tensor(arrays['x']))
    assert relative_error(y.numpy(), arrays['y'].clip(0, 1)) < 1e-5


@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)])
def test_low_precision_is_supported_as_declared(dtype: torch.dtype, tolerance: float) -> None:
    name = GOLDEN_NETWORKS[0]
    x = torch.tensor(golden(name)[1]['x'])
    exact = spandrel.ModelLoader().load_from_state_dict(official(name))(x)
    model = spandrel.ModelLoader().load_from_state_dict(official(name)).to(dtype)
    y = model(x.to(dtype))
    assert y.dtype == dtype
    assert float((y.float() - exact).abs().max()) < tolerance


def test_images_in_255_are_not_for_float16() -> None:
    model = load(small(img_range=255.0))
    assert not model.supports_half
    with pytest.raises(spandrel.UnsupportedDtypeError):
        model.half()
    assert model.bfloat16()(torch.rand(1, 3, 6, 6).bfloat16()).isfinite().all()


@pytest.mark.parametrize('attention', ['none', 'EDSR of BasicSR'])
def test_edsr_is_left_to_others(attention: str) -> None:
    from basicsr.archs.edsr_arch import EDSR

    net = small(attention='none') if attention == 'none' else EDSR(3, 3, num_feat=8, num_block=2)
    ours = [a for a in spandrel.MAIN_REGISTRY if isinstance(a.architecture, spandrel_arch.PluginArch)]
    assert len(ours) == 2
    assert not any(arch.detect(net.state_dict()) for arch in ours)


def test_ours_are_asked_first_and_take_nothing_of_others() -> None:
    order = [arch.architecture.id for arch in spandrel.MAIN_REGISTRY.architectures('detection')]
    assert order[:2] == ['NLSN', 'WithNLSA']
    from spandrel.architectures.RCAN import RCAN

    loaded = spandrel.ModelLoader().load_from_state_dict(RCAN(n_resgroups=1, n_resblocks=1, n_feats=16).state_dict())
    assert loaded.architecture.id == 'RCAN'


def test_registering_again_changes_nothing() -> None:
    before = list(spandrel.MAIN_REGISTRY)
    spandrel_arch.register(spandrel.MAIN_REGISTRY, '_nlsn_plugin')
    assert list(spandrel.MAIN_REGISTRY) == before


def test_anothers_nlsn_stays_and_ours_goes_first() -> None:
    class Other(spandrel.Architecture):
        def __init__(self) -> None:
            super().__init__(id='NLSN', detect=lambda weights: True)

        def load(self, state_dict: Any) -> Any:
            raise NotImplementedError

    registry = spandrel.ArchRegistry()
    registry.add(spandrel.ArchSupport.from_architecture(Other()))
    spandrel_arch.register(registry, '_nlsn_plugin')
    assert [arch.architecture.id for arch in registry] == ['NLSN', 'NLSN_nlsn_plugin', 'WithNLSA']
    assert registry.load(dict(small().state_dict())).architecture.id == 'NLSN_nlsn_plugin'


def output_of(net: Callable[[Tensor], Tensor]) -> Tensor:
    with torch.no_grad():
        return net(torch.rand(1, 3, 12, 13, generator=torch.Generator().manual_seed(1))).clamp(0, 1)


def test_embedded_metadata_reach_spandrel_and_others_do_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    arguments = {**SMALL, 'chunk_size': 16, 'n_hashes': 2, 'res_scale': 0.5}
    net, metadata = NLSN(**arguments).eval(), {'type': 'NLSN', 'arguments': arguments}
    save_network(net, tmp_path / 'a.safetensors', metadata, embed=True)
    assert output_of(spandrel.ModelLoader().load_from_file(tmp_path / 'a.safetensors')).equal(output_of(net))
    assert not caplog.records
    save_network(net, tmp_path / 'b.safetensors', metadata)
    assert not output_of(spandrel.ModelLoader().load_from_file(tmp_path / 'b.safetensors')).equal(output_of(net))
    assert 'taken as released' in caplog.records[0].message


def test_another_network_is_found_by_embedded_metadata(tmp_path: Path) -> None:
    from basicsr.archs.edsr_arch import EDSR

    arguments = {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_block': 1, 'upscale': 4}
    net = EDSR(**arguments).eval()
    save_network(net, tmp_path / 'a.safetensors', {'type': 'EDSR', 'arguments': arguments}, embed=True)
    model = spandrel.ModelLoader().load_from_file(tmp_path / 'a.safetensors')
    assert (model.architecture.id, model.scale, model.tags) == ('WithNLSA', 4, ['EDSR'])
    assert output_of(model).equal(output_of(net))


EDSR_NLSA = {
    'arch': {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 2, 'upscale': 4},
    'after': 'body.0',
    'nlsa': {'chunk_size': 16},
    'zero_start': False,
}
SWINIR = {'type': 'SwinIR', 'upscale': 2, 'img_size': 8, 'window_size': 8, 'depths': [2], 'num_heads': [2]}
SWINIR_NLSA = {
    'arch': {**SWINIR, 'embed_dim': 8, 'mlp_ratio': 1, 'upsampler': 'pixelshuffle'},
    'after': 'layers.0',
    'zero_start': False,
}


@pytest.mark.parametrize(('arguments', 'scale', 'unit'), [(EDSR_NLSA, 4, 1), (SWINIR_NLSA, 2, 8)])
def test_with_nlsa_loads_by_embedded_metadata(arguments: dict[str, Any], scale: int, unit: int, tmp_path: Path) -> None:
    net = WithNLSA(**arguments).eval()
    save_network(net, tmp_path / 'a.safetensors', {'type': 'WithNLSA', 'arguments': arguments}, embed=True)
    model = spandrel.ModelLoader().load_from_file(tmp_path / 'a.safetensors')
    assert (model.architecture.id, model.scale, model.tags) == ('WithNLSA', scale, [arguments['arch']['type']])
    assert model.size_requirements == spandrel.SizeRequirements(multiple_of=unit)
    assert model.tiling is spandrel.ModelTiling.DISCOURAGED
    x = torch.rand(1, 3, 16, 24)
    with torch.no_grad():
        assert model(x).equal(net(x).clamp(0, 1))
    assert model(x[..., :13, :17]).shape == (1, 3, 13 * scale, 17 * scale)


def test_without_spandrel_nothing_is_said() -> None:
    result = python(
        """
import importlib.util, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == 'spandrel' else find_spec(name, *rest)
import nlsn_plugin
print(nlsn_plugin.toolbox_problems, 'spandrel' in sys.modules)
"""
    )
    assert result.stdout == '{} False\n', result.stderr
    assert 'spandrel' not in result.stderr


def test_state_dicts_of_others_are_looked_at_whatever_is_in_them() -> None:
    strange: dict[Any, Any] = {0: torch.ones(1), 'nlsn_metadata': 'text', 'body.0.conv_match.0.weight': None}
    assert not any(spandrel.MAIN_REGISTRY[name].detect(strange) for name in ('NLSN', 'WithNLSA'))


def test_channels_of_the_output_are_those_that_the_network_gives(tmp_path: Path) -> None:
    arguments = {'num_in_ch': 3, 'num_out_ch': 1, 'num_feat': 4, 'num_block': 1, 'num_grow_ch': 4}
    net, metadata = build_base({'type': 'RRDBNet', **arguments}), {'type': 'RRDBNet', 'arguments': arguments}
    save_network(net, tmp_path / 'a.safetensors', metadata, embed=True)
    model = spandrel.ModelLoader().load_from_file(tmp_path / 'a.safetensors')
    assert (model.input_channels, model.output_channels) == (3, 1)
    assert model(torch.rand(1, 3, 8, 9)).shape == (1, 1, 32, 36)
