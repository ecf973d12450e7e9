from __future__ import annotations

import contextlib
import inspect

import pytest
import torch
import yaml
from conftest import (
    DEVICE,
    GOLDEN_NETWORKS,
    OPTION_FILES,
    golden,
    like_the_released,
    official,
    relative_error,
)

from nlsn_plugin import NLSN, NonLocalSparseAttention
from nlsn_plugin.archs import nlsn_arch
from nlsn_plugin.layers import ATTENTIONS


def small(**arguments: object) -> NLSN:
    torch.manual_seed(0)
    return NLSN(**{'num_feat': 8, 'num_block': 8, 'chunk_size': 16, **arguments})


@pytest.mark.parametrize('backend', ['reference', 'streamed', 'fused'])
@pytest.mark.parametrize('name', GOLDEN_NETWORKS)
def test_equals_the_released_network_with_its_state_dict_loaded_strictly(
    name: str, backend: str, request: pytest.FixtureRequest
) -> None:
    if backend == 'fused':
        request.getfixturevalue('large_tiles')
    config, arrays = golden(name)
    net = like_the_released(config, eval_seed=None, backend=backend)
    weights = official(name)
    net.load_state_dict(weights, strict=True)
    net.to(DEVICE)
    torch.manual_seed(int(arrays['seed']))
    with torch.no_grad():
        y = net(torch.tensor(arrays['x'], device=DEVICE))
    assert relative_error(y.cpu().numpy(), arrays['y']) < 1e-5
    assert list(net.state_dict()) == list(weights)


@pytest.mark.parametrize(('upscale', 'millions'), [(2, 41.80), (3, 44.75), (4, 44.16)])
def test_the_full_network_has_the_published_size(upscale: int, millions: float) -> None:
    with torch.device('meta'):
        net = NLSN(upscale=upscale)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)
    places = [int(name.split('.')[1]) for name, m in net.named_modules() if isinstance(m, NonLocalSparseAttention)]
    assert places == [0, 9, 18, 27, 36]


@pytest.mark.parametrize('upscale', [1, 2, 3, 4, 8])
@pytest.mark.parametrize('size', [(1, 1), (1, 9), (7, 11)])
def test_enlarges_any_size_and_trains(upscale: int, size: tuple[int, int]) -> None:
    net = small(upscale=upscale)
    y = net(torch.rand(2, 3, *size))
    assert y.shape == (2, 3, upscale * size[0], upscale * size[1])
    y.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_attentions_have_seeds_of_their_own() -> None:
    seeds = [m.eval_seed for m in small(eval_seed=5).modules() if isinstance(m, NonLocalSparseAttention)]
    assert seeds == [5, 6]
    seeds = [m.eval_seed for m in small(eval_seed=None).modules() if isinstance(m, NonLocalSparseAttention)]
    assert seeds == [None, None]


@pytest.mark.parametrize(
    ('attention_at', 'places'), [(None, [0, 9]), ([], []), ([4], [4]), ([8, 0], [0, 9]), ([0, 1, 8], [0, 2, 10])]
)
def test_attentions_stand_after_the_given_numbers_of_blocks(attention_at: list[int] | None, places: list[int]) -> None:
    body = small(attention_at=attention_at).body
    assert [i for i, module in enumerate(body) if isinstance(module, NonLocalSparseAttention)] == places
    assert len(body) == 8 + len(places) + 1


def test_the_image_range_inside_changes_neither_the_range_nor_the_mean_outside() -> None:
    net = small(img_range=255.0, attention_at=[])
    for parameter in net.tail.parameters():
        torch.nn.init.zeros_(parameter)
    mean = torch.tensor([0.4488, 0.4371, 0.4040])
    torch.testing.assert_close(net(torch.rand(1, 3, 5, 5)), mean[None, :, None, None].expand(1, 3, 10, 10))
    torch.testing.assert_close(net.sub_mean(255 * mean[None, :, None, None]), torch.zeros(1, 3, 1, 1))
    assert net.add_mean.bias.tolist() == pytest.approx([255 * m for m in (0.4488, 0.4371, 0.4040)])


def test_gray_images_go_with_one_mean() -> None:
    assert small(num_in_ch=1, num_out_ch=1, rgb_mean=(0.5,))(torch.rand(1, 1, 6, 6)).shape == (1, 1, 12, 12)


def test_shapes_can_be_inferred_on_the_meta_device() -> None:
    with torch.device('meta'):
        assert small().eval()(torch.rand(1, 3, 9, 11)).shape == (1, 3, 18, 22)


@pytest.mark.parametrize('shape', [(3, 8, 8), (1, 1, 8, 8)])
def test_an_input_of_a_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r'x has the shape .*: \[N, 3, H, W\] is expected'):
        small()(torch.rand(shape))


def test_under_autocast_the_image_itself_stays_in_float32() -> None:
    net = small().eval()
    with torch.autocast('cpu', torch.bfloat16):
        y = net(torch.rand(1, 3, 9, 9))
    assert y.dtype == torch.float32


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'upscale': 5}, 'upscale=5 is not allowed: 2, 3, 4 or another power of 2'),
        ({'upscale': 0}, 'upscale=0 is not allowed'),
        ({'num_feat': 6}, 'reduction=4 does not divide channels=6'),
        ({'num_block': 0}, 'num_block=0 is not allowed'),
        ({'num_in_ch': 1}, 'num_in_ch=1 does not fit rgb_mean'),
        (
            {'attention': 'nonlocal'},
            "attention='nonlocal' is not allowed: choose one of 'nlsa', 'nla', 'local', 'random',",
        ),
        ({'attention_options': []}, r'attention_options=\[\] is not allowed: names and values'),
        ({'attention_options': {'neighbors': 'none'}}, "attention='nlsa' takes no neighbors: did you mean neighbours"),
        ({'attention_options': {'neighbours': 'no'}}, "neighbours='no' is not allowed: choose one of 'both'"),
        ({'attention_options': {'n_hashes': 2}}, "attention='nlsa' takes no n_hashes: there are neighbours, window$"),
        (
            {'attention': 'nla', 'attention_options': {'windw': 5}},
            "attention='nla' takes no windw: did you mean window",
        ),
        ({'attention': 'local', 'attention_options': {'window': 0}}, 'window=0 is not allowed'),
        ({'attention': 'random', 'attention_options': {'partition': 'lsh'}}, "attention='random' takes no partition"),
        ({'attention': 'none', 'attention_options': {'window': 5}}, "attention='none' takes no window$"),
        ({'attention_at': [9]}, r'attention_at=\[9\] is not allowed: different numbers from 0 to num_block=8'),
        ({'attention_at': [1, 1]}, r'attention_at=\[1, 1\] is not allowed'),
        ({'attention_at': 8}, 'attention_at=8 is not allowed: a list'),
        ({'attention_at': [True]}, 'attention_at=True is not allowed: a whole number'),
        ({'rgb_mean': 0.5}, 'rgb_mean=0.5 is not allowed: a list'),
        ({'img_range': '255'}, "img_range='255' is not allowed: a number"),
        ({'img_range': 0}, 'img_range=0 is not allowed: more than 0'),
        ({'img_range': float('inf')}, 'img_range=inf is not allowed: a finite number'),
        ({'res_scale': float('nan')}, 'res_scale=nan is not allowed: a finite number'),
        ({'rgb_mean': [0.5, 0.5, float('nan')]}, 'rgb_mean=nan is not allowed: a finite number'),
        ({'res_scale': '1e-1'}, "res_scale='1e-1' is not allowed: a number"),
        ({'upscale': '2'}, "upscale='2' is not allowed: a whole number"),
        ({'eval_seed': True}, 'eval_seed=True is not allowed'),
        ({'backend': 'fast'}, "backend='fast' is not allowed"),
    ],
)
def test_bad_arguments_are_named_with_their_value_and_what_is_allowed(
    arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        small(**arguments)


OPTIONS = [
    pytest.param('nlsa', {'neighbours': 'previous'}, id='nlsa'),
    pytest.param('nlsa', {'window': 6}, id='nlsa-in-windows'),
    pytest.param('nla', {}, id='nla'),
    pytest.param('nla', {'window': 5, 'shared': False}, id='nla-in-windows'),
    pytest.param('local', {'window': 5}, id='local'),
    pytest.param('random', {'neighbours': 'none'}, id='random'),
    pytest.param('none', {}, id='none'),
]


@pytest.mark.parametrize('attention', ['nlsa', 'random'])
def test_compiled_and_recomputed_it_trains_as_otherwise(attention: str) -> None:
    torch.compiler.reset()
    net = small(attention=attention, num_block=1, attention_at=[0], backend='streamed', checkpointing=True)
    x = torch.rand(1, 3, 9, 10)
    torch.manual_seed(3)
    net(x).sum().backward()
    expected = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    torch.manual_seed(3)
    torch.compile(net, fullgraph=True, backend='aot_eager')(x).sum().backward()
    torch.testing.assert_close([parameter.grad for parameter in net.parameters()], expected)


def test_weights_may_have_another_type_than_the_means() -> None:
    """As mixed precision of fully_shard has it, which casts parameters alone."""
    net = small().eval()
    x = torch.rand(1, 3, 9, 10)
    expected = net(x)
    for parameter in net.parameters():
        parameter.data = parameter.data.bfloat16()
    torch.testing.assert_close(net(x.bfloat16()).float(), expected, atol=0.02, rtol=0)


@pytest.mark.parametrize(('attention', 'options'), OPTIONS)
class TestAnyAttention:
    def test_trains_and_is_the_same_again_in_eval_mode(self, attention: str, options: dict[str, object]) -> None:
        net = small(attention=attention, attention_options=options)
        x = torch.rand(2, 3, 7, 11)
        net(x).mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
        net.eval()
        assert net(x).equal(net(x))

    def test_is_one_graph_for_a_size(self, attention: str, options: dict[str, object]) -> None:
        torch.compiler.reset()
        arguments = {'attention': attention, 'attention_options': options, 'backend': 'streamed'}
        net = small(num_block=1, attention_at=[0], **arguments).eval()
        compiled = torch.compile(net, fullgraph=True, backend='aot_eager')
        for size in [(9, 10), (13, 11)]:  # for the second the compiler tries symbols in place of sizes
            x = torch.rand(1, 3, *size)
            torch.testing.assert_close(compiled(x), net(x))


def test_attentions_get_the_arguments_of_the_network_that_they_know_and_the_options() -> None:
    arguments = {'n_hashes': 2, 'reduction': 2, 'res_scale': 0.2, 'eval_seed': 5, 'backend': 'streamed'}
    for name, (layer, fixed) in ATTENTIONS.items():
        body = small(attention=name, **arguments).body
        own = [module for module in body if isinstance(module, layer)]
        assert [body[0], body[9]] == own
        for i, module in enumerate(own):
            given = {**arguments, 'chunk_size': 16, 'eval_seed': 5 + i, **fixed}
            known = set(inspect.signature(layer).parameters) & set(given)
            assert known >= {'reduction', 'res_scale'}
            assert all(getattr(module, key) == given[key] for key in known)
    assert small(attention='nla', attention_options={'window': 7}).body[0].window == 7


@pytest.mark.parametrize('attention_at', [None, [4], []])
def test_without_attention_the_keys_are_those_of_no_places(attention_at: list[int] | None) -> None:
    baseline = small(attention='none', attention_at=attention_at)
    assert list(baseline.state_dict()) == list(small(attention_at=[]).state_dict())


@pytest.mark.parametrize('path', OPTION_FILES, ids=lambda path: path.stem)
def test_every_option_file_builds_its_network(path) -> None:
    from basicsr.archs import build_network

    options = yaml.safe_load(path.read_text())
    with torch.device('meta'):
        net = build_network(options['network_g'])
    assert net.upscale == options['scale']


def gradients_and_bytes_kept(net: NLSN) -> tuple[list[torch.Tensor], int]:
    """Gradients of one training step, and how much memory it keeps between the passes."""
    kept = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        y = net(torch.rand(2, 3, 20, 22, generator=torch.Generator().manual_seed(2)))
    y.square().mean().backward()
    return [parameter.grad for parameter in net.parameters()], sum(kept.values())


def test_checkpointing_gives_the_same_gradients_in_less_memory() -> None:
    expected, whole = gradients_and_bytes_kept(small(upscale=1).train())
    gradients, part = gradients_and_bytes_kept(small(upscale=1, checkpointing=True).train())
    for ours, theirs in zip(gradients, expected):  # the rotations too have to be drawn again as they were
        torch.testing.assert_close(ours, theirs)
    assert part < whole / 2


def test_the_body_keeps_channels_last_and_the_image_comes_out_contiguous() -> None:
    net = small().eval()
    formats = []
    for module in net.body:
        module.register_forward_hook(
            lambda module, inputs, y: formats.append(y.is_contiguous(memory_format=torch.channels_last))
        )
    y = net(torch.rand(1, 3, 9, 10))
    assert formats == [True] * len(net.body)
    assert y.is_contiguous()


@pytest.mark.parametrize('upscale', [1, 2, 3, 4, 8])
@pytest.mark.parametrize('size', [(64, 17), (49, 9)])
def test_upsampling_in_strips_gives_what_upsampling_the_whole_does(
    upscale: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    net = NLSN(num_feat=8, num_block=1, upscale=upscale, attention='none').eval()
    x = torch.rand(2, 3, *size)
    with torch.no_grad():
        whole = net(x)
        seen = []
        enlarge = net._enlarge

        def spy(features: torch.Tensor) -> torch.Tensor:
            seen.append(features.shape[2])
            return enlarge(features)

        monkeypatch.setattr(net, '_enlarge', spy)
        monkeypatch.setitem(nlsn_arch.TAIL_NUMBERS, 'cpu', 16 * 2 * 8 * upscale**2 * size[1])
        torch.testing.assert_close(net(x), whole, rtol=1e-5, atol=1e-6)
    assert max(seen) == 20  # 16 rows, and 2 of context on either side
    seen.clear()
    net(x)
    assert seen == [size[0]]  # where gradients are wanted, in one piece


@pytest.mark.parametrize('place', ['tail.0.1', 'tail', 'add_mean'])
def test_whoever_looks_into_the_tail_sees_the_whole(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = NLSN(num_feat=8, num_block=1, attention='none').eval()
    x = torch.rand(1, 3, 64, 9)
    monkeypatch.setitem(nlsn_arch.TAIL_NUMBERS, 'cpu', 1)
    heights = []
    net.get_submodule(place).register_forward_hook(lambda module, inputs, output: heights.append(output.shape[2]))
    with torch.no_grad():
        net(x)
    assert heights == [128]


@pytest.mark.parametrize('how', ['a hook of all modules', 'another forward'])
def test_whoever_looks_otherwise_sees_the_whole_too(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = NLSN(num_feat=8, num_block=1, attention='none').eval()
    monkeypatch.setitem(nlsn_arch.TAIL_NUMBERS, 'cpu', 1)
    shuffle = net.get_submodule('tail.0.1')
    heights = []

    def look(module: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        if module is shuffle:
            heights.append(output.shape[2])

    if how == 'another forward':
        forward = shuffle.forward
        monkeypatch.setattr(shuffle, 'forward', lambda x: look(shuffle, (x,), y := forward(x)) or y)
        hook = contextlib.nullcontext()
    else:
        hook = torch.nn.modules.module.register_module_forward_hook(look)
    with torch.no_grad(), hook:
        net(torch.rand(1, 3, 64, 9))
    assert heights == [128]


def test_torch_func_maps_it() -> None:
    net = small(num_block=1).eval()
    x = torch.rand(3, 3, 7, 11)
    torch.testing.assert_close(torch.func.vmap(net)(x[:, None])[:, 0], net(x))


@pytest.mark.parametrize('trained', [False, True])
def test_of_no_images_it_makes_none(trained: bool) -> None:
    net = NLSN(num_feat=16, num_block=1, chunk_size=16).eval()
    with torch.set_grad_enabled(trained):
        assert net(torch.rand(0, 3, 12, 12)).shape == (0, 3, 24, 24)
