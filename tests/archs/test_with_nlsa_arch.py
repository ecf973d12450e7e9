from __future__ import annotations

import copy
import io
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nlsn_plugin import NonLocalSparseAttention, WithNLSA
from nlsn_plugin.archs.bases import build_base
from nlsn_plugin.errors import ArgumentError, CheckpointError, UserError
from nlsn_plugin.layers import ATTENTIONS
from nlsn_plugin.models.checkpoint import load_weights

RGB = {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8}
SWINIR = {'type': 'SwinIR', 'img_size': 8, 'window_size': 4, 'depths': [1, 1], 'embed_dim': 8, 'num_heads': [2, 2],
          'mlp_ratio': 2, 'upscale': 2, 'upsampler': 'pixelshuffledirect'}  # fmt: skip
NETWORKS: dict[str, tuple[dict[str, Any], list[str]]] = {
    'EDSR': ({'type': 'EDSR', **RGB, 'num_block': 2, 'upscale': 2, 'img_range': 1.0}, ['conv_first', 'body.*[1::2]']),
    'MSRResNet': ({'type': 'MSRResNet', **RGB, 'num_block': 2, 'upscale': 2}, ['body.0']),
    'RCAN': (
        {'type': 'RCAN', **RGB, 'num_group': 2, 'num_block': 1, 'squeeze_factor': 4, 'upscale': 2, 'img_range': 1.0},
        ['ResidualGroup'],
    ),
    'RRDBNet': ({'type': 'RRDBNet', **RGB, 'num_block': 1, 'num_grow_ch': 4, 'scale': 2}, ['body.*']),
    'SwinIR': (SWINIR, ['layers.*', 'conv_after_body']),
    'SRVGGNetCompact': ({'type': 'SRVGGNetCompact', **RGB, 'num_conv': 2, 'upscale': 2}, ['PReLU[-2:]']),
}
every_network = pytest.mark.parametrize('name', NETWORKS)


def built(name: str, **arguments: Any) -> WithNLSA:
    torch.manual_seed(0)
    arch, after = NETWORKS[name]
    nlsa = {'n_hashes': 2, 'chunk_size': 16, **arguments.pop('nlsa', {})}
    return WithNLSA(arch, arguments.pop('after', after), nlsa, **arguments)


def base(name: str) -> nn.Module:
    torch.manual_seed(1)
    return build_base(NETWORKS[name][0])


def image() -> Tensor:
    return torch.rand(2, 3, 16, 12, generator=torch.Generator().manual_seed(2))


def attentions(net: nn.Module) -> list[NonLocalSparseAttention]:
    return [module for module in net.modules() if isinstance(module, NonLocalSparseAttention)]


@every_network
def test_training_starts_from_the_base_networks_function_and_reaches_every_weight(name: str) -> None:
    pure, net = base(name), built(name)
    net.load_state_dict(pure.state_dict(), strict=True)  # its own checkpoint, as it is
    with torch.no_grad():
        assert net.eval()(image()).equal(pure.eval()(image()))

    net.train()
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    net(image()).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert all(layer.conv_assembly[0].weight.grad.any() for layer in attentions(net))
    optimiser.step()
    optimiser.zero_grad()
    net(image()).square().mean().backward()
    assert all(parameter.grad.any() for layer in attentions(net) for parameter in layer.parameters())
    with torch.no_grad():
        before = net.eval()(image())
        for layer in attentions(net):
            layer.res_scale = 0
        assert not net(image()).equal(before)  # the attentions have come to do something


@every_network
def test_names_of_weights_are_the_base_networks_and_some_below_nlsa(name: str) -> None:
    net, pure = built(name, zero_start=False).eval(), base(name)
    own = [key for key in net.state_dict() if not key.startswith('nlsa.')]
    assert own == list(pure.state_dict())
    assert [key for key, _ in net.named_parameters() if key not in dict(pure.named_parameters())] == [
        key for key in net.state_dict() if key.startswith('nlsa.')
    ]
    assert isinstance(net, WithNLSA)
    assert isinstance(net, type(pure))
    assert net.upscale == 2
    assert net.num_in_ch == 3

    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    other = built(name).eval()
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    with torch.no_grad():
        assert other(image()).equal(net(image()))


@every_network
def test_copies_are_whole_and_their_own(name: str) -> None:
    net = built(name, zero_start=False).eval()
    with torch.no_grad():
        y = net(image())
        for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            assert type(other) is type(net)
            assert other(image()).equal(y)
            for layer in attentions(other):
                layer.conv_assembly[0].bias.add_(1)
            assert not other(image()).equal(y)
            assert net(image()).equal(y)


@every_network
def test_compiles_as_one_graph(name: str) -> None:
    torch._dynamo.reset()
    net = built(name, zero_start=False).eval()
    compiled = torch.compile(net, fullgraph=True, backend='eager')
    with torch.no_grad():
        assert compiled(image()).equal(net(image()))


def test_compiles_with_its_gradients() -> None:
    torch._dynamo.reset()
    net = built('MSRResNet', zero_start=False, nlsa={'eval_seed': 3}).eval()
    net(image()).square().mean().backward()
    expected = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    torch.compile(net, fullgraph=True, backend='aot_eager')(image()).square().mean().backward()
    for parameter, gradient in zip(net.parameters(), expected):
        torch.testing.assert_close(parameter.grad, gradient)


@every_network
def test_memory_formats_are_the_base_networks(name: str) -> None:
    net, pure = built(name, zero_start=False).eval(), base(name).eval()
    formats: dict[nn.Module, list[bool]] = {net: [], pure: []}
    for place in net.nlsa._modules:
        for owner, seen in formats.items():
            module = owner.get_submodule(place.replace('-', '.'))
            module.register_forward_hook(lambda module, args, y, seen=seen: seen.append(y.is_contiguous()))
    with torch.no_grad():
        y = net(image())
        pure(image())
        assert formats[net] == formats[pure]
        other = net.to(memory_format=torch.channels_last)(image().to(memory_format=torch.channels_last))
    torch.testing.assert_close(other, y, rtol=1e-4, atol=1e-5)


def test_a_base_checkpoint_loads_through_every_loader_and_is_said(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    from mmengine.runner.checkpoint import load_checkpoint

    weights = base('EDSR').state_dict()
    torch.save({'state_dict': weights}, tmp_path / 'edsr.pth')
    wrapped = nn.ModuleDict({'generator': built('EDSR')})
    with caplog.at_level(logging.WARNING, 'nlsn_plugin'):
        wrapped.load_state_dict({f'generator.{key}': value for key, value in weights.items()}, strict=True)
        load_checkpoint(net := built('EDSR'), str(tmp_path / 'edsr.pth'), map_location='cpu', strict=True)
    assert [record.message for record in caplog.records] == [
        'the weights are of EDSR without attentions: these stay as they are'
    ] * 2
    for loaded in (wrapped['generator'], net):
        assert all(value.equal(loaded.state_dict()[key]) for key, value in weights.items())
    lines = load_weights(built('EDSR'), weights, 'edsr.pth')
    assert len(lines) == 8
    assert lines[0] == 'nlsa.conv_first.conv_match.0.weight: the file has none'


def test_some_attentions_missing_is_an_error() -> None:
    net = built('EDSR')
    weights = {key: value for key, value in net.state_dict().items() if not key.startswith('nlsa.conv_first')}
    with pytest.raises(RuntimeError, match=r'Missing key.*nlsa\.conv_first'):
        built('EDSR').load_state_dict(weights)
    with pytest.raises(CheckpointError, match=r'4 differ: nlsa\.conv_first\.conv_match\.0\.weight: the file has none'):
        load_weights(built('EDSR'), weights, 'a.pth')
    weights = base('EDSR').state_dict()
    del weights['conv_last.bias']
    with pytest.raises(RuntimeError, match=r'Missing key.*"conv_last.bias"'):
        built('EDSR').load_state_dict(weights)


def test_without_zero_start_all_weights_have_gradients_at_once() -> None:
    net = built('MSRResNet', zero_start=False)
    net(image()).square().mean().backward()
    assert all(parameter.grad.any() for layer in attentions(net) for parameter in layer.parameters())


@pytest.mark.parametrize('kind', ATTENTIONS)
def test_any_attention_can_be_inserted(kind: str) -> None:
    arch, after = NETWORKS['EDSR']
    net = WithNLSA(arch, after, {'reduction': 2}, attention=kind, zero_start=False)
    assert all(type(layer) is ATTENTIONS[kind][0] for layer in net.nlsa.children())
    net(image()).mean().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_attentions_have_seeds_of_their_own_in_order_of_execution() -> None:
    def seeds(**nlsa: Any) -> dict[str, Any]:
        net = built('EDSR', after=['conv_after_body', 'body.1', 'conv_first'], nlsa=nlsa)
        return {name: layer.eval_seed for name, layer in net.nlsa.named_children()}

    assert seeds() == {'conv_first': 0, 'body-1': 1, 'conv_after_body': 2}
    assert list(seeds(eval_seed=5).values()) == [5, 6, 7]
    assert list(seeds(eval_seed=None).values()) == [None] * 3


@pytest.mark.parametrize(
    ('after', 'places'),
    [
        ('body.2', ['body-2']),
        ('body.*[1::2]', ['body-1', 'body-3']),
        ('body.*[-1]', ['body-3']),
        ('body.?[:1]', ['body-0']),
        ('**.conv1[2:]', ['body-2-conv1', 'body-3-conv1']),
        ('conv_[af]*', None),
        (['ResidualBlockNoBN[0]', 'body.0', 'body'], ['body-0', 'body']),
    ],
)
def test_selectors(after: Any, places: list[str] | None) -> None:
    arch = {**NETWORKS['EDSR'][0], 'num_block': 4}
    if places is None:
        with pytest.raises(ArgumentError, match=r"after: 'conv_\[af\]\*' is not allowed: a path, pattern or class"):
            WithNLSA(arch, after)
    else:
        assert list(WithNLSA(arch, after).nlsa._modules) == places


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'after': 'bdy.1'}, r'after: EDSR has no bdy\.1: did you mean body\.1 or body\.0 or body\?'),
        ({'after': 'ResidualBlokNoBN'}, r'has no ResidualBlokNoBN: did you mean ResidualBlockNoBN\?'),
        ({'after': 'zzz'}, r'after: EDSR has no zzz \(`nlsn modules` lists what there is\)'),
        ({'after': 'body.*[7::8]'}, r'body\.\*\[7::8\] is empty: body\.\* has 2 matches, from body\.0 on'),
        ({'after': 'body.*[2]'}, r'body\.\*\[2\] is empty'),
        ({'after': 'body.*[::0]'}, 'a step of 0'),
        ({'after': []}, 'at least one module is expected'),
        ({'after': 3}, 'after=3 is not allowed: a list is expected'),
        ({'after': [3]}, 'after: 3 is not allowed: a path, pattern or class'),
        ({'after': 'conv_last'}, r'nlsa, after conv_last: reduction=4 does not divide channels=3'),
        ({'nlsa': {'n_hash': 2}}, "nlsa: attention='nlsa' takes no n_hash: did you mean n_hashes"),
        ({'nlsa': {'res_scale': 0.0}}, 'would never train; zero_start'),
        ({'nlsa': {'eval_seed': -1}}, 'eval_seed=-1 is not allowed'),
        ({'attention': 'nlsaa'}, "attention='nlsaa' is not allowed"),
        ({'attention': 'none'}, "attention='none' is not allowed"),
        ({'zero_start': 1}, 'zero_start=1 is not allowed'),
        ({'probe': [3, 8]}, r'probe=\[3, 8\] is not allowed: \[channels, height, width\]'),
        ({'probe': [4, 8, 8]}, r'EDSR fails on an input of shape \[1, 4, 8, 8\]: .*; give one that it takes by probe'),
        ({'arch': {'type': 'RCANN'}}, r'arch: type: no network RCANN: did you mean RCAN\?'),
        ({'arch': {'num_feat': 8}}, 'arch: lacks the key type'),
        ({'arch': 'EDSR'}, "arch='EDSR' is not allowed"),
        ({'arch': {'type': 'EDSR', 'num_in_ch': 3}}, 'arch: EDSR needs num_out_ch'),
        ({'arch': {**SWINIR, 'window_sze': 8}}, r'SwinIR takes no window_sze: did you mean window_size\?'),
        ({'arch': {**SWINIR, 'window_size': 0}}, 'arch: SwinIR cannot be built: '),
        ({'arch': {'type': 'BasicVSR'}}, r'BasicVSR fails on .* \(and of 6 other sizes\); give one .* by probe'),
        ({'arch': {'type': 'WithNLSA', 'arch': NETWORKS['EDSR'][0], 'after': 'body'}}, 'has a part named nlsa already'),
        ({'arch': SWINIR, 'after': 'layers.0.residual_group.blocks.0.mlp'}, 'no height and width of it among its arg'),
        (
            {'arch': SWINIR, 'after': 'WindowAttention'},
            r'which gives \[24, 16, 8\]: images \[N, C, H, W\] or sequences',
        ),
        ({'arch': SWINIR, 'after': 'layers'}, 'no attention after layers, which is never called as a module'),
    ],
)
def test_a_mistake_is_one_line(arguments: dict[str, Any], message: str) -> None:
    arch, after = NETWORKS['EDSR']
    with pytest.raises(ArgumentError, match=message) as error:
        WithNLSA(**{'arch': arch, 'after': after, **arguments})
    assert '\n' not in str(error.value)


def test_a_hook_registered_after_unpickling_takes_no_attentions_place(monkeypatch: pytest.MonkeyPatch) -> None:
    net = built('EDSR', after='body.0', zero_start=False).eval()
    content = pickle.dumps(net)
    monkeypatch.setattr(RemovableHandle, 'next_id', 0)  # as in a fresh process
    other = pickle.loads(content)
    for _ in range(RemovableHandle.next_id + 1):
        other.body[0].register_forward_hook(lambda *args: None)
    with torch.no_grad():
        assert other(image()).equal(net(image()))


def test_distributed_training_reaches_the_attentions(tmp_path: Path) -> None:
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    dist.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        net = DistributedDataParallel(built('SwinIR', zero_start=False))
        net(image()).mean().backward()
        assert all(layer.conv_match[0].weight.grad.any() for layer in attentions(net))
    finally:
        dist.destroy_process_group()


def test_copies_for_several_gpus_of_one_process_are_refused() -> None:
    net = WithNLSA({'type': 'MSRResNet', 'num_feat': 8, 'num_block': 2}, 'body.0', {'chunk_size': 16})
    with pytest.raises(UserError, match='torchrun --nproc_per_node N'):
        net._replicate_for_data_parallel()
