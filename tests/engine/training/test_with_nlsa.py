"""WithNLSA through option files: shipped ones, mistakes in them, a run that is resumed, tested and compared."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
import yaml
from conftest import ROOT, TRAIN, error_of, experiment, make_short, run
from pages import option_files

from nlsn_plugin import WithNLSA
from nlsn_plugin.archs import bases
from nlsn_plugin.archs.with_nlsa_arch import checked_arguments
from nlsn_plugin.cli import main
from nlsn_plugin.engine.evaluation.contestants import Contestant, Inference, from_option_file, from_words
from nlsn_plugin.engine.options import schema
from nlsn_plugin.engine.options.documents import Document, find_option_file
from nlsn_plugin.engine.options.reading import checked
from nlsn_plugin.engine.training.resume_check import compare, result
from nlsn_plugin.errors import UserError

SHIPPED = sorted((ROOT / 'options' / 'with_nlsa').glob('*.yml'))
SWINIR = {'type': 'SwinIR', 'upscale': 2, 'img_size': 16, 'window_size': 4, 'depths': [1, 1], 'embed_dim': 8,
          'num_heads': [2, 2], 'mlp_ratio': 2, 'upsampler': 'pixelshuffledirect'}  # fmt: skip
NETWORK = {'type': 'WithNLSA', 'arch': SWINIR, 'after': ['layers.*'], 'nlsa': {'n_hashes': 2, 'chunk_size': 64}}


def network_of(path: Path) -> dict[str, Any]:
    return Document(path).options['network_g']


@pytest.mark.parametrize('path', SHIPPED, ids=lambda path: path.stem)
def test_shipped_options_are_of_one_network_for_training_and_testing(path: Path) -> None:
    phase, arch, _, scale = path.stem.split('_')
    document = Document(path)
    options = (schema.TrainingOptions if phase == 'train' else schema.TestOptions).model_validate(document.options)
    network = document.options['network_g']
    assert (network['type'], network['arch']['type'], network['arch']['upscale']) == ('WithNLSA', arch, options.scale)
    assert network == network_of(path.with_name(path.name.replace(phase, 'test' if phase == 'train' else 'train')))
    assert list(bases.misfits(network['arch'])) == []
    assert checked_arguments('nlsa', network['nlsa'])['chunk_size'] == 144
    assert options.val.metrics['psnr'].model_extra['crop_border'] == int(scale[1:])
    assert find_option_file(path.stem).samefile(path)


@pytest.mark.parametrize('arch', ['EDSR', 'SwinIR'])
def test_shipped_options_pass_all_checks(arch: str) -> None:
    checked(Document(ROOT / 'options' / 'with_nlsa' / f'train_{arch}_NLSA_x2.yml'), is_train=True)


def test_both_scales_are_shipped_for_three_networks() -> None:
    names = {
        f'{kind}_{arch}_NLSA_x{x}' for kind in ('train', 'test') for arch in ('EDSR', 'RCAN', 'SwinIR') for x in (2, 4)
    }
    assert {path.stem for path in SHIPPED} == names


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'arch': {**SWINIR, 'type': 'SwinIRR'}}, 'network_g: arch: type: no network SwinIRR: did you mean SwinIR?'),
        (
            {'arch': {**SWINIR, 'window_sze': 4}},
            'network_g: arch: window_sze: SwinIR takes no window_sze: did you mean window_size?',
        ),
        ({'arch': {'type': 'EDSR', 'num_in_ch': 3}}, 'network_g: arch: EDSR needs num_out_ch'),
        ({'arch': 'SwinIR'}, "network_g: arch: 'SwinIR' is not allowed: names and values are expected"),
        ({'nlsa': {'n_hash': 2}}, "network_g: nlsa: attention='nlsa' takes no n_hash: did you mean n_hashes?"),
        ({'after': 'layrs.*'}, 'network_g: after: SwinIR has no layrs.*: did you mean layers.1 or layers.0 or layers?'),
        ({'aftr': 'layers.*'}, 'network_g: aftr: WithNLSA takes no aftr: did you mean after?'),
        ({'arch': {**SWINIR, 'upscale': 4}}, 'network_g: upscale 4 is not scale 2'),
    ],
)
def test_a_nested_mistake_is_one_line_and_makes_nothing(
    change: dict[str, Any],
    message: str,
    small_options: Callable[..., Path],
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    network = {**NETWORK, **change}
    path = small_options('train_NLSN_x2', lambda options: options.update(network_g=network))
    error = error_of(['train', '-opt', str(path)], capsys)
    assert message in error
    if 'line' in error:
        line = path.read_text().splitlines()[int(re.search(r'line (\d+): ', error)[1]) - 1]
        assert any(word in line for word in re.findall(r'\w+', message)[:3])
    assert not (place / 'experiments').exists()


@pytest.fixture
def trained(place: Path, small_options: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path]:
    """A run of a small SwinIR with NLSA on top of weights of SwinIR alone: its working directory and option file."""
    torch.manual_seed(0)
    torch.save({'params': bases.build_base(SWINIR).state_dict()}, place / 'swinir.pth')
    base = small_options('train_NLSN_x2', make_short)
    options = {
        '_base_': base.name,
        'name': 'SwinIR_NLSA',
        'network_g': NETWORK,
        'path': {'pretrain_network_g': 'swinir.pth'},
        'train': {'total_iter': 6},
        'logger': {'save_checkpoint_freq': 3},
    }
    path = tmp_path / 'swinir.yml'
    path.write_text(yaml.safe_dump(options))
    return place, path


def test_a_run_resumes_exactly_and_its_network_is_tested_on_images_of_any_size(
    trained: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, options = trained
    first = run(TRAIN, '-opt', options, '--force_yml', 'train:total_iter=3', cwd=place)
    assert '8 entries did not match and were left as they were' in first.stdout + first.stderr
    more = run(TRAIN, '-opt', options, '--auto_resume', cwd=place)
    assert re.search(r'# psnr: \d+\.\d+', more.stderr)
    resumed = result(experiment(place, 'SwinIR_NLSA'))
    run(TRAIN, '-opt', options, '--archive', cwd=place)
    compare(resumed, result(experiment(place, 'SwinIR_NLSA')))

    monkeypatch.chdir(place)
    recipe = from_option_file(str(options))
    contestant = Contestant(recipe, 'cpu')
    assert isinstance(contestant.net, WithNLSA)
    assert [attention.eval_seed for attention in contestant.attentions] == [0, 1]
    assert any(attention.conv_assembly[0].weight.any() for attention in contestant.attentions)
    lr = cv2.imread(str(place / 'datasets/benchmark/Set5/LR_bicubic/X2/chelseax2.png'))
    assert lr.shape[1] % 4
    assert contestant.enlarge(lr, Inference()).shape == (2 * lr.shape[0], 2 * lr.shape[1], 3)
    with pytest.raises(UserError, match=r'swinir\.pth has no weights of attentions: they would be untrained'):
        Contestant(type(recipe)(**{**vars(recipe), 'weights': 'swinir.pth'}), 'cpu')


def test_on_the_command_line_the_inner_network_gets_the_usual_arguments() -> None:
    words = ['WithNLSA', 'a.pth', 'arch={type: EDSR, num_feat: 8, num_block: 1}', 'after=body']
    arch = from_words(words, 4).arguments['arch']
    assert (arch['num_in_ch'], arch['num_out_ch'], arch['upscale']) == (3, 3, 4)
    with pytest.raises(UserError, match=r'arch: num_fet: EDSR takes no num_fet: did you mean num_feat\?'):
        from_words(['WithNLSA', 'a.pth', 'arch={type: EDSR, num_fet: 8}', 'after=body'], 4)


def test_the_option_files_of_the_page_train(place: Path) -> None:
    """docs/basicsr.md: the second changes the first."""
    names = [path.name for path in option_files('docs/basicsr.md', place)]
    assert names == ['train_EDSR_M_NLSA_x2.yml', 'train_mine.yml']
    small = ['network_g:arch:num_feat=8', 'network_g:arch:num_block=4', 'datasets:train:gt_size=32']
    short = ['datasets:train:batch_size_per_gpu=2', 'datasets:train:num_worker_per_gpu=1', 'train:total_iter=2']
    run(TRAIN, '-opt', names[1], '--force_yml', *small, *short, cwd=place)
    saved = torch.load(experiment(place, 'mine') / 'models' / 'net_g_latest.pth', weights_only=True)
    assert {'nlsa.conv_first.conv_match.0.weight', 'nlsa.body-3.conv_match.0.weight'} < saved['params_ema'].keys()


def test_the_table_of_the_page_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / 'docs' / 'basicsr.md').read_text()
    (words,) = re.findall(r'^nlsn (modules .*)$', text, re.MULTILINE)
    main(words.split())
    printed = [re.sub(r'[ -]+', ' ', line) for line in capsys.readouterr().out.splitlines()]
    shown = [line for line in text.split('small input:')[1].split('...')[0].splitlines() if line.startswith('|')]
    assert len(shown) == 10
    assert all(re.sub(r'[ -]+', ' ', line) in printed for line in shown)
