"""Networks saved and loaded in every layout; files of others read without running what is in them."""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import GOLDEN, GOLDEN_NETWORKS, golden, official, relative_error
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from nlsn_plugin import NLSN
from nlsn_plugin.errors import ArgumentError, CheckpointError, SaveError, UserError
from nlsn_plugin.models.checkpoint import METADATA_KEY, read_stored, read_weights
from nlsn_plugin.models.formats import LAYOUTS, load_network, save_network
from nlsn_plugin.models.inert import InertUnpickler, Sealed

ARGUMENTS: dict[str, Any] = {'num_feat': 8, 'num_block': 8, 'chunk_size': 16, 'n_hashes': 2, 'res_scale': 0.5}
OFFICIAL_X2 = GOLDEN / 'nlsn_x2_small_official_state_dict.pt'


def small(**arguments: Any) -> NLSN:
    torch.manual_seed(0)
    return NLSN(**{**ARGUMENTS, **arguments}).eval()


def metadata(**arguments: Any) -> dict[str, Any]:
    return {'type': 'NLSN', 'arguments': {**ARGUMENTS, **arguments}}


def file_of(folder: Path, layout: str) -> Path:
    return folder / f'{layout}{LAYOUTS[layout]}'


def same(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(tensor.equal(theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize('name', GOLDEN_NETWORKS)
def test_the_authors_file_loads_by_itself_and_makes_what_their_code_makes(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    _, arrays = golden(name)
    with caplog.at_level(logging.WARNING, 'nlsn_plugin'):
        net = load_network(GOLDEN / f'{name}_official_state_dict.pt', eval_seed=None)
    torch.manual_seed(int(arrays['seed']))
    with torch.no_grad():
        assert relative_error(net(torch.tensor(arrays['x'])).numpy(), arrays['y']) < 1e-5
    assert 'does not say n_hashes, chunk_size, res_scale, attention: taken as released, n_hashes=4' in caplog.text


@pytest.mark.parametrize('layout', ['basicsr', 'safetensors', 'mmengine'])
def test_a_network_comes_back_with_all_that_it_was_built_with(
    layout: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    net, path = small(upscale=3, img_range=255.0), file_of(tmp_path, layout)
    save_network(net, path, metadata(upscale=3, img_range=255.0), layout=layout)
    again = load_network(path)
    x = torch.rand(1, 3, 12, 13)
    with torch.no_grad():
        assert again(x).equal(net(x))
    assert same(again, net)
    assert not again.training
    assert again.upscale == 3
    assert not caplog.records  # nothing was assumed
    assert read_stored(path).layout == layout


def test_options_of_attentions_come_back(tmp_path: Path) -> None:
    arguments = {'attention': 'random', 'attention_options': {'neighbours': 'none', 'window': 9}, 'attention_at': [4]}
    net = small(**arguments)
    save_network(net, tmp_path / 'a.safetensors', metadata(**arguments))
    assert repr(load_network(tmp_path / 'a.safetensors')) == repr(net)


def test_what_is_of_the_run_is_not_kept(tmp_path: Path) -> None:
    save_network(small(), tmp_path / 'a.safetensors', metadata(backend='streamed', checkpointing=True))
    with safe_open(tmp_path / 'a.safetensors', 'pt') as file:
        arguments = json.loads(file.metadata()[METADATA_KEY])['arguments']
    assert not {'backend', 'checkpointing'} & set(arguments)
    assert arguments['reduction'] == 4  # a default, written out


def test_arguments_go_before_metadata_and_are_then_not_assumed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_network(small(), tmp_path / 'a.safetensors', metadata())
    assert load_network(tmp_path / 'a.safetensors', n_hashes=7).body[0].n_hashes == 7
    assert not caplog.records
    net = load_network(OFFICIAL_X2, n_hashes=2, chunk_size=16)
    assert (net.body[0].n_hashes, net.body[0].chunk_size) == (2, 16)
    assert 'does not say res_scale, attention: taken as released' in caplog.text


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'num_feat': 64}, 'num_feat=64 as given contradicts its weights: 16'),
        ({'num_block': 32}, 'num_block=32 as given contradicts its weights: 8'),
        ({'upscale': 3}, 'upscale=3 as given contradicts its weights: 2'),
        ({'reduction': 2}, 'reduction=2 as given contradicts its weights: 4'),
        ({'attention_at': [8]}, r'attention_at=\[8\] as given contradicts its weights: None'),
        ({'attention': 'none'}, "attention='none' as given contradicts its weights: 'nlsa'"),
        ({'img_range': 255}, 'img_range=255 contradicts the weights, which add means of 0.4488'),
        ({'img_range': 0}, 'img_range=0 contradicts the weights, which add means of 0.4488'),
        ({'rgb_mean': [0.5, 0.5, 0.5]}, 'rgb_mean=.* contradicts its weights'),
        ({'num_feats': 16}, 'NLSN takes no num_feats: did you mean num_feat'),
        ({'n_hashes': 0}, 'n_hashes=0 is not allowed'),
        ({'attention_options': {'window': 3, 'shard': 1}}, 'takes no shard'),
    ],
)
def test_arguments_that_cannot_be_are_refused_in_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message) as error:
        load_network(OFFICIAL_X2, **arguments)
    assert '\n' not in str(error.value)


def test_the_released_placing_may_be_named(tmp_path: Path) -> None:
    assert same(
        load_network(OFFICIAL_X2, attention_at=[0, 8], rgb_mean=(0.4488, 0.4371, 0.404)), load_network(OFFICIAL_X2)
    )


def test_metadata_that_contradict_the_weights_are_refused_when_written_and_when_read(tmp_path: Path) -> None:
    path = tmp_path / 'a.safetensors'
    with pytest.raises(CheckpointError, match='num_block=16 in its metadata contradicts its weights: 8'):
        save_network(small(), path, metadata(num_block=16))
    assert not path.exists()
    save_file(small().state_dict(), path, {METADATA_KEY: json.dumps(metadata(num_feat=16))})
    with pytest.raises(CheckpointError, match='num_feat=16 in its metadata contradicts its weights: 8'):
        load_network(path)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('{', "its metadata 'nlsn' is no JSON"),
        ('[1]', r"its metadata 'nlsn' are \[1\]: a type and arguments are expected"),
        ('{"type": "NLSN"}', 'a type and arguments are expected'),
        ('{"type": "NLSM", "arguments": {}}', 'NLSM.*: did you mean NLSN'),
        ('{"type": "NLSN", "arguments": {"img_range": "x"}}', "img_range='x' is not allowed"),
    ],
)
def test_metadata_that_are_none_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / 'a.safetensors'
    save_file(small().state_dict(), path, {METADATA_KEY: text})
    with pytest.raises((CheckpointError, ArgumentError), match=message) as error:
        load_network(path)
    assert '\n' not in str(error.value)


def test_other_registered_networks_go_by_their_metadata(tmp_path: Path) -> None:
    from basicsr.archs.edsr_arch import EDSR

    net = EDSR(num_in_ch=3, num_out_ch=3, num_feat=4, num_block=1, upscale=4).eval()
    arguments = {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_block': 1, 'upscale': 4}
    save_network(net, tmp_path / 'a.safetensors', {'type': 'EDSR', 'arguments': arguments})
    again = load_network(tmp_path / 'a.safetensors')
    assert isinstance(again, EDSR)
    assert same(again, net)
    assert again.upscale == 4


@pytest.mark.parametrize(
    ('name', 'wish', 'message'),
    [
        ('a.onnx', {}, r'a\.onnx ends in no known way: \.pt'),
        ('a', {}, 'ends in no known way'),
        ('a.pth', {'layout': 'safetensors'}, r'a\.pth is no name for safetensors: \.safetensors is expected'),
        ('a.safetensors', {'layout': 'mmengine'}, r'a\.safetensors is no name for mmengine: \.pth is expected'),
        ('a.pth', {'layout': 'onnx'}, "layout='onnx' is not allowed: choose one of 'authors'"),
        ('a.pth', {'embed': True}, '^embed is for safetensors: basicsr was asked for'),
        ('a.safetensors', {'embed': True, 'metadata': None}, 'embed keeps the metadata as a tensor too, and there are'),
        ('a.pth', {'prefix': 'generator.'}, r'^prefix=generator\. is for mmengine: basicsr was asked for'),
    ],
)
def test_what_does_not_fit_a_layout_is_refused(name: str, wish: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=message):
        save_network(small(), tmp_path / name, **{'metadata': metadata(), **wish})
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_leaves_the_older_one(tmp_path: Path) -> None:
    path = tmp_path / 'a.safetensors'
    save_network(small(), path, metadata())
    before = path.read_bytes()
    weights = {name: tensor.to_sparse() for name, tensor in small().state_dict().items()}
    with pytest.raises(SaveError):
        save_network(weights, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(SaveError, match='could not be saved: No such file or directory'):
        save_network(small(), tmp_path / 'none' / 'a.pth')


@pytest.mark.parametrize('layout', LAYOUTS)
def test_damaged_files_are_refused_in_one_line_or_load(layout: str, tmp_path: Path) -> None:
    path = file_of(tmp_path, layout)
    save_network(small(num_feat=4, num_block=1, reduction=1), path, layout=layout)
    intact, said = path.read_bytes(), []
    random = np.random.default_rng(0)
    for _ in range(40):
        damaged = bytearray(intact)
        for place in random.integers(0, 2500, 3):
            damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        try:
            load_network(path)
        except UserError as error:
            said.append(str(error))
    assert len(said) > 10
    assert not any('\n' in line for line in said)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_files_have_the_usual_permissions(layout: str, tmp_path: Path) -> None:
    save_network(small(), file_of(tmp_path, layout), layout=layout)
    (tmp_path / 'usual').touch()
    assert file_of(tmp_path, layout).stat().st_mode == (tmp_path / 'usual').stat().st_mode


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('kept', [0, 4, 100, 5000])
def test_truncated_files_are_named_in_one_line(layout: str, kept: int, tmp_path: Path) -> None:
    path = file_of(tmp_path, layout)
    save_network(small(), path, layout=layout)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match='does not load') as error:
        load_network(path)
    assert str(path) in str(error.value)
    assert '\n' not in str(error.value)


def test_what_a_file_is_shows_in_its_content_not_in_its_name(tmp_path: Path) -> None:
    save_network(small(), tmp_path / 'a.safetensors', metadata())
    save_network(small(), tmp_path / 'a.pth', metadata())
    (tmp_path / 'a.safetensors').rename(tmp_path / 'b.pt')
    (tmp_path / 'a.pth').rename(tmp_path / 'b.safetensors')
    assert read_stored(tmp_path / 'b.pt').layout == 'safetensors'
    assert same(load_network(tmp_path / 'b.pt'), small())
    assert same(load_network(tmp_path / 'b.safetensors'), small())


def test_param_key_chooses_between_the_network_and_its_average(tmp_path: Path) -> None:
    one, other = small().state_dict(), NLSN(**ARGUMENTS).state_dict()
    torch.save({'params': one, 'params_ema': other}, tmp_path / 'a.pth')
    assert load_network(tmp_path / 'a.pth', **ARGUMENTS).head[0].weight.equal(other['head.0.weight'])
    chosen = load_network(tmp_path / 'a.pth', param_key='params', **ARGUMENTS)
    assert chosen.head[0].weight.equal(one['head.0.weight'])


class Payload:
    """Makes a folder when it is unpickled, unless nothing runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize('place', ['hub', 'meta', 'weights'])
def test_a_malicious_mmengine_checkpoint_does_not_run(place: str, tmp_path: Path) -> None:
    weights: dict[str, Any] = dict(small().state_dict())
    payload, content = Payload(tmp_path / 'ran'), {'meta': {}, 'state_dict': weights, 'message_hub': {}}
    if place == 'hub':
        content['message_hub'] = {'log_scalars': [payload]}
    elif place == 'meta':
        content['meta']['cfg'] = payload
    else:
        weights['head.0.weight'] = payload
    path = tmp_path / 'a.pth'
    torch.save(content, path)
    if place == 'weights':
        with pytest.raises(CheckpointError, match=r'head\.0\.weight is a Inert: tensors are expected'):
            load_network(path)
    else:
        assert read_weights(path)['head.0.weight'].equal(small().head[0].weight)
    assert not (tmp_path / 'ran').exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / 'ran').exists()  # as the payload does where nothing stops it


def test_a_pickle_cannot_change_what_it_may_call() -> None:
    from torch._utils import _rebuild_tensor_v2

    before = _rebuild_tensor_v2.__defaults__
    # the function by its name, and BUILD on it with the state (None, {'__defaults__': (1,)})
    tampering = b'\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x0c\x00\x00\x00__defaults__K\x01\x85s\x86b.'
    assert pickle.loads(tampering) is _rebuild_tensor_v2
    assert _rebuild_tensor_v2.__defaults__ == (1,)  # as pickle itself lets it
    _rebuild_tensor_v2.__defaults__ = before
    assert isinstance(InertUnpickler(io.BytesIO(tampering)).load(), Sealed)
    assert _rebuild_tensor_v2.__defaults__ == before


def test_other_files_with_foreign_objects_are_still_refused(tmp_path: Path) -> None:
    torch.save({'params': small().state_dict(), 'by': Payload(tmp_path / 'ran')}, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='nothing in it was executed'):
        load_network(tmp_path / 'a.pth')
    with (tmp_path / 'b.pth').open('wb') as file:
        pickle.dump({'meta': {'by': Payload(tmp_path / 'ran')}, 'state_dict': {}}, file, protocol=2)
    with pytest.raises(CheckpointError, match='nothing in it was executed'):
        load_network(tmp_path / 'b.pth')
    assert not (tmp_path / 'ran').exists()


@pytest.fixture(scope='module')
def run_of_mmengine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A checkpoint that mmengine's own Runner saved, with EMAHook, and the model that was trained."""
    from mmengine.model import BaseModel
    from mmengine.runner import Runner

    class Enlarger(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.generator = small()

        def forward(self, inputs: torch.Tensor, mode: str = 'tensor', **_: Any) -> Any:
            y = self.generator(torch.stack(list(inputs)))
            return {'loss': y.square().mean()} if mode == 'loss' else y

    folder = tmp_path_factory.mktemp('mmengine')
    runner = Runner(
        Enlarger(),
        str(folder),
        train_dataloader={
            'dataset': [{'inputs': torch.rand(3, 6, 6)} for _ in range(2)],
            'sampler': {'type': 'DefaultSampler', 'shuffle': False},
            'batch_size': 1,
            'num_workers': 0,
        },
        train_cfg={'by_epoch': False, 'max_iters': 2},
        optim_wrapper={'optimizer': {'type': 'SGD', 'lr': 0.1}},
        default_hooks={'checkpoint': {'type': 'CheckpointHook', 'by_epoch': False, 'interval': 2}},
        custom_hooks=[{'type': 'EMAHook', 'momentum': 0.5}],
        default_scope='mmengine',
        log_level='ERROR',
    )
    runner.train()
    return folder / 'iter_2.pth', runner


@pytest.fixture
def nothing_allowed() -> Iterator[None]:
    """torch.load knows no class of mmengine's, as where mmengine is not installed."""
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    yield
    torch.serialization.add_safe_globals(allowed)


@pytest.mark.usefixtures('nothing_allowed')
def test_a_checkpoint_of_mmengines_runner_loads(run_of_mmengine: tuple[Path, Any]) -> None:
    path, runner = run_of_mmengine
    with pytest.raises(pickle.UnpicklingError, match='HistoryBuffer'):
        torch.load(path, weights_only=True)
    average = next(hook for hook in runner.hooks if type(hook).__name__ == 'EMAHook').ema_model.module.generator
    assert same(load_network(path, **ARGUMENTS), average)
    trained = load_network(path, param_key='params', **ARGUMENTS)
    assert same(trained, runner.model.generator)
    assert not same(trained, average)
    assert read_stored(path).layout == 'mmengine'


@pytest.mark.parametrize(
    ('prefixes', 'param_key', 'taken'),
    [
        (['generator.'], 'params_ema', 0),
        (['module.'], 'params_ema', 0),
        (['net.'], 'params', 0),
        (['generator.', 'generator_ema.'], 'params_ema', 1),
        (['generator.', 'generator_ema.module.'], 'params_ema', 1),
        (['generator.', 'generator_ema.'], 'params', 0),
    ],
)
def test_what_stands_before_names_in_mmagics_models_is_taken_off(
    prefixes: list[str], param_key: str, taken: int, tmp_path: Path
) -> None:
    nets = [small(), NLSN(**ARGUMENTS)]
    weights = {
        prefix + name: tensor for prefix, net in zip(prefixes, nets) for name, tensor in net.state_dict().items()
    }
    if len(prefixes) > 1:
        weights['step_counter'] = torch.tensor(3)
    torch.save({'meta': {}, 'state_dict': weights}, tmp_path / 'a.pth')
    assert same(load_network(tmp_path / 'a.pth', param_key=param_key, **ARGUMENTS), nets[taken])


def test_mmengine_loads_what_is_saved_for_it(tmp_path: Path) -> None:
    from mmengine.runner import load_checkpoint

    save_network(small(), tmp_path / 'a.pth', metadata(), layout='mmengine')
    net = NLSN(**ARGUMENTS)
    load_checkpoint(net, str(tmp_path / 'a.pth'), strict=True)
    assert same(net, small())
    whole = nn.Module()
    whole.generator = NLSN(**ARGUMENTS)
    save_network(small(), tmp_path / 'b.pth', metadata(), layout='mmengine', prefix='generator.')
    load_checkpoint(whole, str(tmp_path / 'b.pth'), strict=True)
    assert same(whole.generator, small())


def test_the_released_layout_is_what_the_released_code_saves(tmp_path: Path) -> None:
    weights = official('nlsn_x2_small')
    save_network(weights, tmp_path / 'a.pt')
    saved = torch.load(tmp_path / 'a.pt', weights_only=True)
    assert list(saved) == list(weights)
    assert all(np.array_equal(saved[name], tensor) for name, tensor in weights.items())


def test_a_network_whose_only_part_is_a_list_keeps_its_names(tmp_path: Path) -> None:
    from basicsr.archs.srvgg_arch import SRVGGNetCompact

    arguments = {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_conv': 1, 'upscale': 2}
    net = SRVGGNetCompact(**arguments)
    save_network(net, tmp_path / 'a.pth', {'type': 'SRVGGNetCompact', 'arguments': arguments}, layout='mmengine')
    assert same(load_network(tmp_path / 'a.pth'), net)
