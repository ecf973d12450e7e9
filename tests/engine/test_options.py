from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from conftest import OPTION_FILES, ROOT

from nlsn_plugin.cli import main
from nlsn_plugin.engine.options import find_option_file, fit_to_machine, shipped_options
from nlsn_plugin.errors import UserError

PAPER_PSNR = {  # Table 1, NLSN: Set5, Set14, B100, Urban100, Manga109
    2: ['38.34', '34.08', '32.43', '33.42', '39.59'],
    3: ['34.85', '30.70', '29.34', '29.25', '34.57'],
    4: ['32.59', '28.87', '27.78', '26.96', '31.27'],
}


def test_an_option_file_is_found_by_path_or_by_the_name_of_a_shipped_one() -> None:
    path = ROOT / 'options' / 'train_NLSN_x2.yml'
    assert find_option_file(str(path)) == path
    for name in ('train_NLSN_x2', 'train_NLSN_x2.yml', 'options/train_NLSN_x2.yml'):
        assert find_option_file(name).samefile(path)


def test_a_file_of_ones_own_goes_before_a_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path('train_NLSN_x2.yml').touch()
    assert find_option_file('train_NLSN_x2.yml') == Path('train_NLSN_x2.yml')


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UserError, match=r'no option file train_NLNS_x2\.yml: did you mean train_NLSN_x2\.yml\?'):
        find_option_file('train_NLNS_x2.yml')
    with pytest.raises(UserError, match=r'no option file zzz: there are quickstart_NLSN_x2\.yml, '):
        find_option_file('zzz')


def test_every_published_number_has_an_option_file() -> None:
    names = {path.stem for path in shipped_options().glob('*.yml')}
    assert names >= {f'{kind}_NLSN_x{scale}' for kind in ('train', 'test') for scale in (2, 3, 4)}


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_training_options_are_the_papers_recipe(scale: int) -> None:
    text = (ROOT / 'options' / f'train_NLSN_x{scale}.yml').read_text()
    options = yaml.safe_load(text)
    assert all(number in text.split('name:')[0] for number in PAPER_PSNR[scale])
    network, train, data = options['network_g'], options['train'], options['datasets']['train']
    assert (network['num_feat'], network['num_block'], network['upscale']) == (256, 32, scale)
    assert (network['n_hashes'], network['chunk_size'], network['reduction']) == (4, 144, 4)
    assert (data['gt_size'], data['batch_size_per_gpu']) == (48 * scale, 16)
    assert data['use_hflip']
    assert data['use_rot']
    optimiser = {key: float(value) if key in ('lr', 'eps') else value for key, value in train['optim_g'].items()}
    assert optimiser == {'type': 'Adam', 'lr': 1e-4, 'weight_decay': 0, 'betas': [0.9, 0.99], 'eps': 1e-8}
    assert train['total_iter'] == 1_000_000
    assert train['scheduler']['milestones'] == [200_000, 400_000, 600_000, 800_000]
    assert train['pixel_opt']['type'] == 'L1Loss'


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_test_options_score_psnr_and_ssim_on_y_over_the_five_sets(scale: int) -> None:
    text = (ROOT / 'options' / f'test_NLSN_x{scale}.yml').read_text()
    options = yaml.safe_load(text)
    assert all(number in text.split('name:')[0] for number in PAPER_PSNR[scale])
    names = [dataset['name'] for dataset in options['datasets'].values()]
    assert names == ['Set5', 'Set14', 'B100', 'Urban100', 'Manga109']
    for metric, kind in (('psnr', 'calculate_psnr'), ('ssim', 'calculate_ssim')):
        assert options['val']['metrics'][metric] == {'type': kind, 'crop_border': scale, 'test_y_channel': True}


def test_training_and_testing_options_describe_one_network() -> None:
    for scale in (2, 3, 4):
        train, test = (
            yaml.safe_load((ROOT / 'options' / f'{kind}_NLSN_x{scale}.yml').read_text()) for kind in ('train', 'test')
        )
        assert train['network_g'] == test['network_g']


@pytest.mark.skipif(torch.cuda.is_available(), reason='this machine has a GPU')
def test_an_option_file_for_gpus_is_fitted_to_a_machine_without() -> None:
    options = {
        'num_gpu': 4,
        'datasets': {'train': {'prefetch_mode': 'cuda', 'pin_memory': True}, 'val': {'prefetch_mode': 'cpu'}},
    }
    fit_to_machine(options)
    assert options['num_gpu'] == 0
    assert options['datasets'] == {
        'train': {'prefetch_mode': None, 'pin_memory': False},
        'val': {'prefetch_mode': 'cpu', 'pin_memory': False},
    }


def error_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line a failing command prints."""
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert isinstance(stop.value.code, str)  # sys.exit prints it to stderr and exits with 1
    assert '\n' not in stop.value.code
    return stop.value.code


FULL_SIZE = [path for path in OPTION_FILES if 'quickstart' not in path.stem]


@pytest.mark.parametrize('path', FULL_SIZE, ids=lambda path: path.stem)
def test_without_data_the_missing_path_and_the_two_ways_on_are_told(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = yaml.safe_load(path.read_text())
    first = next(iter(options['datasets'].values()))['dataroot_gt']
    message = error_of([path.stem.split('_')[0], '-opt', str(path)], capsys)
    assert f'there is no {first}' in message
    assert 'nlsn prepare --input HR_IMAGES' in message
    assert ('--test' in message) == path.stem.startswith('test')
    assert 'nlsn train -opt quickstart_NLSN_x2.yml' in message
    assert list(tmp_path.iterdir()) == []


def write(path: Path, change: dict[str, object] | str) -> str:
    """An option file: the text, or the shipped one without data and with sections of it changed."""
    if isinstance(change, str):
        path.write_text(change)
    else:
        options = yaml.safe_load((ROOT / 'options' / 'train_NLSN_x2.yml').read_text())
        path.write_text(yaml.safe_dump({**options, 'datasets': {}, **change}))
    return str(path)


def test_a_shipped_name_under_a_path_that_is_not_there_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'no option file .*train_NLSN_x2\.yml: did you mean train_NLSN_x2\.yml'):
        find_option_file(str(tmp_path / 'train_NLSN_x2.yml'))
    with pytest.raises(UserError, match='is a folder: name the option file in it'):
        find_option_file(str(tmp_path))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ('', 'holds NoneType: keys and values are expected'),
        ('- 1', 'holds list: keys and values are expected'),
        ({'path': None}, 'path is None: a section is expected'),
        ({'datasets': None}, 'datasets is None: a section is expected'),
        ({'name': 2024}, 'name is 2024: text is expected'),
        ({'scale': '2'}, "scale is '2': a whole number is expected"),
        ({'network_g': {'num_feat': 8}}, "lacks the key 'network_g: type': text is expected"),
        ({'datasets': {'val': {'dataroot_gt': 3}}}, 'datasets: val: dataroot_gt is 3: text is expected'),
        ({'model_type': 'NLSNModl'}, 'no model_type NLSNModl: did you mean NLSNModel?'),
        ({'network_g': {'type': 'NLSNN'}}, 'no network_g of type NLSNN: did you mean NLSN?'),
        (
            {'network_g': {'type': 'NLSN', 'n_hash': 4}},
            "network_g: NLSN: got an unexpected keyword argument 'n_hash'; it",
        ),
        ({'network_g': {'type': 'NLSN', 'upscale': '2'}}, "upscale='2' is not allowed: a whole number"),
        ({'path': {'pretrain_network_g': '.'}}, '. is a folder: name the file in it'),
    ],
)
def test_a_mistake_in_an_option_file_is_one_line_and_makes_nothing(
    change: dict[str, object] | str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / 'a.yml', change)
    assert message in error_of(['train', '-opt', path], capsys)
    assert [entry.name for entry in tmp_path.iterdir()] == ['a.yml']


def test_a_file_that_is_not_utf8_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / 'a.yml').write_bytes(b'name: caf\xe9')
    assert 'a.yml is not UTF-8 text' in error_of(['train', '-opt', str(tmp_path / 'a.yml')], capsys)


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--force_yml', 'foo'], '--force_yml foo: KEY=VALUE is expected'),
        (['--force_yml', 'name=a=b'], '--force_yml name=a=b: KEY=VALUE is expected'),
        (['--force_yml', 'train:x=[1,'], '--force_yml train:x=[1,: [1, is no value'),
        (['--force_yml', 'trian:x=1'], '--force_yml trian:x=1: '),
        (['--force_yml', 'num_gpu:x=1'], 'has no such section'),
        (['--launcher', 'pytorch'], '--launcher pytorch: this process was not started by `torchrun'),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in error_of(['train', '-opt', 'train_NLSN_x2', *words], capsys)


def test_bad_yaml_is_told_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / 'bad.yml', 'name: a\nscale: [2\nmodel_type: b\n')
    assert f'{path}, line ' in error_of(['train', '-opt', path], capsys)


def test_a_missing_key_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / 'short.yml', 'name: a\nscale: 2\nnum_gpu: 0\n')
    assert error_of(['train', '-opt', path], capsys) == f"nlsn: {path} lacks the key 'model_type': text is expected"


def test_missing_weights_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / 'a.yml', {'path': {'pretrain_network_g': 'nowhere/net.pth'}})
    assert 'there is no file nowhere/net.pth (there is no folder nowhere)' in error_of(['train', '-opt', path], capsys)


def test_a_bad_argument_of_the_network_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_options, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / 'datasets').symlink_to(workplace / 'datasets')
    monkeypatch.chdir(tmp_path)
    path = small_options('train_NLSN_x2', lambda options: options['network_g'].update(upscale=5))
    message = error_of(['train', '-opt', str(path)], capsys)
    assert message == 'nlsn: upscale=5 is not allowed: 2, 3, 4 or another power of 2 is expected'
