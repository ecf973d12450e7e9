"""`nlsn convert`: between all layouts and back, proved; whatever cannot be done is one line and leaves no file."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import GOLDEN, GOLDEN_NETWORKS, error_of, golden, official, relative_error
from safetensors import safe_open

from nlsn_plugin import NLSN
from nlsn_plugin.archs import WithNLSA
from nlsn_plugin.cli import main
from nlsn_plugin.engine import conversion
from nlsn_plugin.models.checkpoint import read_stored
from nlsn_plugin.models.formats import load_network
from nlsn_plugin.models.inference import window_of

OFFICIAL_X2 = GOLDEN / 'nlsn_x2_small_official_state_dict.pt'
ARGUMENTS: dict[str, Any] = {'num_feat': 8, 'num_block': 8, 'chunk_size': 16, 'n_hashes': 2}


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """Weights as an experiment leaves them, of arguments that keys do not tell."""
    torch.manual_seed(0)
    params, average = (NLSN(**ARGUMENTS).state_dict() for _ in range(2))
    path = tmp_path / 'net_g_latest.pth'
    torch.save({'params': params, 'params_ema': average}, path)
    return path


def convert(*words: object) -> None:
    main(['convert', *map(str, words)])


def metadata_of(path: Path) -> dict[str, Any]:
    with safe_open(path, 'pt') as file:
        return json.loads(file.metadata()['nlsn'])


@pytest.mark.parametrize('name', GOLDEN_NETWORKS)
def test_round_all_layouts_and_back_bit_by_bit(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = [
        GOLDEN / f'{name}_official_state_dict.pt',
        *(tmp_path / file for file in ('a.pth', 'a.safetensors', 'b.pth', 'a.pt')),
    ]
    for source, target, layout in zip(places, places[1:], ['basicsr', 'safetensors', 'mmengine', 'authors']):
        convert(source, target, '--to', layout)
        assert read_stored(target).layout == layout
        printed = capsys.readouterr().out
        assert f'{target}: {layout}, 52 tensors bit-identical, its output on an image of 32x24 too' in printed
        assert ('ASSUMED' in printed) == (layout == 'basicsr')  # from there on the files say it
    weights, again = official(name), torch.load(places[-1], weights_only=True)
    assert list(again) == list(weights)
    assert all(again[key].equal(tensor) and again[key].dtype == tensor.dtype for key, tensor in weights.items())
    _, arrays = golden(name)
    for place in places:
        net = load_network(place, eval_seed=None)
        torch.manual_seed(int(arrays['seed']))
        with torch.no_grad():
            assert relative_error(net(torch.tensor(arrays['x'])).numpy(), arrays['y']) < 1e-5


def test_what_was_inferred_and_what_was_assumed_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert(OFFICIAL_X2, tmp_path / 'a.safetensors', 'n_hashes=8')
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f'{OFFICIAL_X2}: authors, NLSN x2, 0.05 M parameters'
    assert lines[1].startswith('  inferred from its weights: num_in_ch=3, num_out_ch=3, num_feat=16, num_block=8, ')
    assert lines[2] == '  given: n_hashes=8'
    assert lines[3] == '  ASSUMED, since nothing says them: chunk_size=144, res_scale=0.1, attention=nlsa'
    assert metadata_of(tmp_path / 'a.safetensors')['arguments']['n_hashes'] == 8


def test_an_option_file_says_what_weights_do_not(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = tmp_path / 'a.yml'
    options.write_text(yaml.safe_dump({'network_g': {'type': 'NLSN', **ARGUMENTS, 'upscale': 2}}))
    convert('-opt', options, trained, tmp_path / 'a.safetensors', 'n_hashes=3')
    assert 'ASSUMED' not in capsys.readouterr().out  # for what the option file leaves out it has defaults
    arguments = metadata_of(tmp_path / 'a.safetensors')['arguments']
    assert (arguments['chunk_size'], arguments['n_hashes'], arguments['res_scale']) == (16, 3, 0.1)
    average = torch.load(trained, weights_only=True)['params_ema']
    net = load_network(tmp_path / 'a.safetensors')
    assert net.head[0].weight.equal(average['head.0.weight'])
    assert (net.body[0].chunk_size, net.body[0].n_hashes) == (16, 3)


def test_arguments_may_stand_anywhere(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert(trained, tmp_path / 'a.safetensors', '--param-key', 'params', 'n_hashes=2', 'chunk_size=16')
    assert load_network(tmp_path / 'a.safetensors').body[0].n_hashes == 2
    with pytest.raises(SystemExit) as stop:
        convert(trained, tmp_path / 'b.safetensors', '--half', 'n_hashes')
    said = {2: 'unrecognized arguments: n_hashes', 1: 'n_hashes: KEY=VALUE is expected'}  # the latter by Python 3.14
    assert said[stop.value.code] in capsys.readouterr().err


def test_param_key_takes_the_network_rather_than_its_average(trained: Path, tmp_path: Path) -> None:
    convert(trained, tmp_path / 'a.pt', '--param-key', 'params')
    params = torch.load(trained, weights_only=True)['params']
    assert torch.load(tmp_path / 'a.pt', weights_only=True)['head.0.weight'].equal(params['head.0.weight'])


def test_what_the_authors_layout_loses_is_said(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(trained, tmp_path / 'a.pt', 'chunk_size=16', 'res_scale=1')
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == (
        "  The authors' layout has no room for arguments. To be said when loading: chunk_size=16, res_scale=1"
    )


def test_half_is_half_the_size_and_says_its_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / 'a.safetensors'
    convert(OFFICIAL_X2, target, '--half')
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(
        f'{target}: safetensors, float16, 52 tensors; its output on an image of 32x24 in [0, 1] differs'
    )
    assert 0 < float(line.split()[-3]) < 1e-3
    weights = read_stored(target).weights
    assert weights['head.0.weight'].dtype == torch.float16
    assert weights['add_mean.bias'].equal(official('nlsn_x2_small')['add_mean.bias'])  # means stay exact
    assert target.stat().st_size < 0.6 * OFFICIAL_X2.stat().st_size
    convert(target, tmp_path / 'b.pth')  # of half precision too, without --half: as it is
    assert 'bit-identical' in capsys.readouterr().out


def test_weights_beyond_float16_are_refused(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = torch.load(trained, weights_only=True)
    content['params_ema']['head.0.weight'] *= 1e7
    torch.save(content, trained)
    assert 'the output of its network differs, by nan' in error_of(
        ['convert', str(trained), str(tmp_path / 'a.pth'), '--half'], capsys
    )
    assert not (tmp_path / 'a.pth').exists()


def test_a_network_of_another_class_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from basicsr.archs.edsr_arch import EDSR

    arguments = {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_block': 1, 'upscale': 4}
    torch.save({'params': EDSR(**arguments).state_dict()}, tmp_path / 'edsr.pth')
    words = [f'{name}={value}' for name, value in arguments.items()]
    convert(tmp_path / 'edsr.pth', tmp_path / 'edsr.safetensors', 'type=EDSR', *words)
    assert 'edsr.pth: basicsr, EDSR x4' in capsys.readouterr().out
    assert metadata_of(tmp_path / 'edsr.safetensors') == {'type': 'EDSR', 'arguments': arguments}


@pytest.mark.parametrize('scale', [1, 2, 4])
def test_a_network_that_takes_pixels_apart_first(
    scale: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from basicsr.archs.rrdbnet_arch import RRDBNet

    arguments = {'num_in_ch': 3, 'num_out_ch': 3, 'scale': scale, 'num_feat': 8, 'num_block': 1, 'num_grow_ch': 4}
    torch.save({'params': RRDBNet(**arguments).state_dict()}, tmp_path / 'a.pth')
    words = [f'{name}={value}' for name, value in arguments.items()]
    convert(tmp_path / 'a.pth', tmp_path / 'a.safetensors', 'type=RRDBNet', *words)
    assert f'a.pth: basicsr, RRDBNet x{scale}' in capsys.readouterr().out
    assert load_network(tmp_path / 'a.safetensors').upscale == scale
    assert window_of({'type': 'RRDBNet', **arguments}) == 4 // scale


def test_with_nlsa_goes_round_by_its_option_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arch = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 2, 'upscale': 4}
    arguments = {'arch': arch, 'after': 'body.0', 'nlsa': {'chunk_size': 16}, 'zero_start': False}
    weights = WithNLSA(**arguments).state_dict()
    torch.save({'params': weights}, tmp_path / 'a.pth')
    words = ['convert', str(tmp_path / 'a.pth'), str(tmp_path / 'a.safetensors')]
    assert 'a.pth holds a WithNLSA, whose weights do not tell its arch: `nlsn convert' in error_of(words, capsys)
    (tmp_path / 'a.yml').write_text(yaml.safe_dump({'network_g': {'type': 'WithNLSA', **arguments}}))
    convert(*words[1:], '-opt', tmp_path / 'a.yml')
    convert(tmp_path / 'a.safetensors', tmp_path / 'b.pth')
    assert 'WithNLSA x4' in capsys.readouterr().out
    again = load_network(tmp_path / 'b.pth')
    assert all(again.state_dict()[name].equal(tensor) for name, tensor in weights.items())

    base = {name: tensor for name, tensor in weights.items() if not name.startswith('nlsa.')}
    torch.save({'params': base}, tmp_path / 'base.pth')
    line = error_of(
        ['convert', str(tmp_path / 'base.pth'), words[2], '-opt', str(tmp_path / 'a.yml'), '--force'], capsys
    )
    assert 'base.pth has no attentions, 4 entries of WithNLSA' in line


def test_killed_before_the_proof_ends_it_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / 'a.pth'
    target.write_text('mine')
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(conversion, 'prove', lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        conversion.convert(OFFICIAL_X2, target, conversion.Wish(force=True), None, {})
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert target.read_text() == 'mine'
    convert(OFFICIAL_X2, target, '--force')
    assert read_stored(target).layout == 'basicsr'


def test_what_appears_meanwhile_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / 'a.safetensors'
    prove = conversion.prove

    def late(*arguments: Any) -> str:
        target.write_text('of another')
        return prove(*arguments)

    monkeypatch.setattr(conversion, 'prove', late)
    line = error_of(['convert', str(OFFICIAL_X2), str(target)], capsys)
    assert line == f'nlsn: {target} is there by now, and was left as it is'
    assert target.read_text() == 'of another'
    assert list(tmp_path.iterdir()) == [target]
    convert(OFFICIAL_X2, target, '--force')
    assert load_network(target).upscale == 2


def test_what_is_there_is_replaced_by_force_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / 'a.pth'
    target.write_text('mine')
    assert error_of(['convert', str(OFFICIAL_X2), str(target)], capsys) == (
        f'nlsn: {target} is there already: --force replaces it'
    )
    assert target.read_text() == 'mine'
    convert(OFFICIAL_X2, target, '--force')
    assert read_stored(target).layout == 'basicsr'
    words = ['convert', str(target), str(target), '--force']
    assert error_of(words, capsys) == f'nlsn: {target} is the file that is read: name another'


def test_what_differs_when_read_back_never_takes_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = conversion.write_layout

    def faulty(path: Path, weights: dict[str, torch.Tensor], *rest: Any) -> None:
        write(path, {name: w + 1e-7 if name == 'tail.1.bias' else w for name, w in weights.items()}, *rest)

    monkeypatch.setattr(conversion, 'write_layout', faulty)
    target = tmp_path / 'a.pth'
    target.write_text('mine')
    line = error_of(['convert', str(OFFICIAL_X2), str(target), '--force'], capsys)
    assert line == f'nlsn: {target} was not written: tail.1.bias differs when read back'
    assert target.read_text() == 'mine'
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ('source', 'words', 'message'),
    [
        ('none.pth', [], 'there is no file {tmp}/none.pth'),
        ('.', [], 'is a folder: name the file in it'),
        ('text.pth', [], 'text.pth does not load (nothing in it was executed)'),
        ('truncated.pt', [], 'truncated.pt does not load'),
        ('other.pth', [], 'other.pth holds no NLSN: head.0.weight'),
        (OFFICIAL_X2, ['num_feat=64'], 'num_feat=64 as given contradicts its weights: 16'),
        (OFFICIAL_X2, ['nhashes=4'], 'NLSN takes no nhashes: did you mean n_hashes?'),
        (OFFICIAL_X2, ['n_hashes'], 'n_hashes: KEY=VALUE is expected'),
        (OFFICIAL_X2, ['n_hashes=[1'], 'n_hashes=[1: [1 is no value'),
        (OFFICIAL_X2, ['type=NLSM'], 'did you mean NLSN?'),
        (OFFICIAL_X2, ['type=EDSR', 'num_in_ch=3', 'num_out_ch=3'], 'does not fit EDSR'),
        (OFFICIAL_X2, ['-opt', 'train_NLSN_x3'], 'contradicts its weights'),
        (OFFICIAL_X2, ['--embed', '--to', 'basicsr'], 'embed is for safetensors: basicsr was asked for'),
        (OFFICIAL_X2, ['--prefix', 'generator.'], 'prefix=generator. is for mmengine: basicsr was asked for'),
        (OFFICIAL_X2, ['--to', 'mmengine', '--prefix', 'generator'], 'a dot at its end is expected: generator.'),
        (OFFICIAL_X2, ['type=3'], 'type=3 is not allowed: the name of a network is expected'),
        (OFFICIAL_X2, ['--to', 'safetensors'], 'out.pth is no name for safetensors: .safetensors is expected'),
    ],
)
def test_mistakes_are_one_line_and_leave_no_file(
    source: str | Path, words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / 'text.pth').write_text('no weights')
    (tmp_path / 'truncated.pt').write_bytes(OFFICIAL_X2.read_bytes()[:5000])
    torch.save({'weight': torch.ones(1)}, tmp_path / 'other.pth')
    before = sorted(tmp_path.iterdir())
    line = error_of(['convert', str(tmp_path / source), str(tmp_path / 'out.pth'), *words], capsys)
    assert message.format(tmp=tmp_path) in line
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ('target', 'message'),
    [
        ('a.onnx', 'ends in no known way: .pt (authors), .pth'),
        ('none/a.pth', 'there is no folder'),
        ('folder.pth', 'is a folder: name the file in it'),
    ],
)
def test_places_that_cannot_be_written_are_named(
    target: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / 'folder.pth').mkdir()
    assert message in error_of(['convert', str(OFFICIAL_X2), str(tmp_path / target)], capsys)
    assert [path.name for path in tmp_path.iterdir()] == ['folder.pth']


def test_a_name_that_is_no_utf_8_is_printed_with_marks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / os.fsdecode(b'caf\xe9.pth')
    try:
        target.touch()
    except OSError:
        pytest.skip('file names are UTF-8 here')
    convert(OFFICIAL_X2, target, '--force')
    assert f'{tmp_path}/caf\ufffd.pth: basicsr, 52 tensors' in capsys.readouterr().out
