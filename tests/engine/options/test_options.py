from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from conftest import OPTION_FILES, ROOT, error_of
from option_file import write

from nlsn_plugin.cli import main
from nlsn_plugin.engine.options.documents import Document, find_option_file, keep_copy, shipped_options
from nlsn_plugin.engine.options.reading import checked, fit_to_machine
from nlsn_plugin.errors import OptionError, UserError
from nlsn_plugin.ops import cpu_matmul

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
    with pytest.raises(UserError, match=r'no option file zzz: the nearest of \d+ are '):
        find_option_file('zzz')


@pytest.mark.parametrize('kind', [[], ['--test']])
def test_the_schema_is_printed_with_words_for_every_key(kind: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(['options', *kind])
    lines = capsys.readouterr().out.splitlines()
    assert all(re.fullmatch(r' *[\w.]+:( \[.*\])?  # .{6,}', line) for line in lines)
    assert not any('None' in line for line in lines)
    assert '\n  metrics:' in (text := '\n'.join(lines))
    assert re.search(r'\n  metrics:.*\n    NAME:.*\n      type:.*\n      better:.*\n      \.\.\.:', text)
    assert ('  batch_size_per_gpu:' in '\n'.join(lines)) == (not kind)


def test_editors_get_a_json_schema_that_knows_the_shipped_files(tmp_path: Path) -> None:
    for kind, name in (([], 'train_NLSN_x2'), (['--test'], 'test_NLSN_x2')):
        main(['options', *kind, '--json-schema', str(tmp_path / 'schema.json')])
        schema = json.loads((tmp_path / 'schema.json').read_text())
        options = yaml.safe_load((ROOT / 'options' / f'{name}.yml').read_text())
        assert options.keys() <= schema['properties'].keys()
        assert schema['additionalProperties'] is False


def published(network: dict[str, object], model_type: str = 'SRModel', **train: object) -> str:
    """An option file in the shape of BasicSR's published recipes, with their keys and ways of writing numbers."""
    return yaml.safe_dump(
        {
            'name': '201_a_f64b16_DIV2K_300k_B16G1_wandb', 'model_type': model_type, 'scale': 2, 'num_gpu': 1,
            'manual_seed': 10, 'network_g': network,
            'datasets': {
                'train': {
                    'name': 'DIV2K', 'type': 'PairedImageDataset', 'dataroot_gt': 'a', 'dataroot_lq': 'b',
                    'meta_info_file': 'c.txt', 'filename_tmpl': '{}', 'io_backend': {'type': 'disk'}, 'gt_size': 96,
                    'use_flip': True, 'use_rot': True, 'use_shuffle': True, 'num_worker_per_gpu': 6,
                    'batch_size_per_gpu': 16, 'dataset_enlarge_ratio': 100, 'prefetch_mode': None,
                },
                'val': {
                    'name': 'Set5', 'type': 'PairedImageDataset', 'dataroot_gt': 'd', 'dataroot_lq': 'e',
                    'io_backend': {'type': 'disk'},
                },
            },
            'path': {'pretrain_network_g': None, 'strict_load_g': True, 'resume_state': None},
            'train': {
                'ema_decay': 0.999,
                'optim_g': {'type': 'Adam', 'lr': 1e-4, 'weight_decay': 0, 'betas': [0.9, 0.99]},
                'scheduler': {'type': 'MultiStepLR', 'milestones': [200000], 'gamma': 0.5},
                'total_iter': 300000, 'warmup_iter': -1,
                'pixel_opt': {'type': 'L1Loss', 'loss_weight': 1.0, 'reduction': 'mean'}, **train,
            },
            'val': {
                'val_freq': 5e3, 'save_img': False,
                'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': 2, 'test_y_channel': False}},
            },
            'logger': {
                'print_freq': 100, 'save_checkpoint_freq': 5e3, 'use_tb_logger': True,
                'wandb': {'project': None, 'resume_id': None},
            },
            'dist_params': {'backend': 'nccl', 'port': 29500},
        }
    )  # fmt: skip


RGB = [0.4488, 0.4371, 0.4040]
IN_AND_OUT = {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 64}


@pytest.mark.parametrize(
    'text',
    [
        published({'type': 'EDSR', **IN_AND_OUT, 'num_block': 16, 'upscale': 2, 'res_scale': 1, 'rgb_mean': RGB}),
        published({'type': 'RCAN', **IN_AND_OUT, 'num_group': 10, 'num_block': 20, 'squeeze_factor': 16}),
        published(
            {'type': 'MSRResNet', **IN_AND_OUT, 'num_block': 16, 'upscale': 4},
            scheduler={'type': 'CosineAnnealingRestartLR', 'periods': [250000] * 4, 'restart_weights': [1] * 4},
        ),
        published(
            {'type': 'MSRResNet', **IN_AND_OUT, 'num_block': 16, 'upscale': 4},
            scheduler={'type': 'CosineAnnealingRestartLR', 'periods': [2], 'restart_weights': [1]},
            total_iter=2,
        ),
        published({'type': 'SwinIR', 'upscale': 2, 'in_chans': 3, 'img_size': 48, 'window_size': 8}, 'SwinIRModel'),
    ],
    ids=['EDSR', 'RCAN', 'MSRResNet', 'the shortest', 'SwinIR'],
)
def test_option_files_like_basicsrs_recipes_pass(text: str, tmp_path: Path) -> None:
    opt = checked(Document(Path(write(tmp_path / 'a.yml', text))), is_train=True)
    assert opt['val']['val_freq'] == 5000
    assert opt['datasets']['train']['use_hflip'] is True


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


def test_a_data_set_may_be_left_out_on_the_command_line() -> None:
    document = Document(ROOT / 'options' / 'test_NLSN_x2.yml')
    document.override('datasets:test_1=~')
    assert 'test_1' not in checked(document, is_train=False)['datasets']
    document.override('datasets:test_7=~')
    with pytest.raises(OptionError, match='datasets: test_7 is None: a section is expected'):
        checked(document, is_train=False)


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


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv('HOME', str(tmp_path))
    return tmp_path


class TestBase:
    def test_a_file_changes_and_adds_to_its_base(self, tmp_path: Path) -> None:
        write(tmp_path / 'base.yml', {})
        (tmp_path / 'sub').mkdir()
        (tmp_path / 'sub' / 'middle.yml').write_text('_base_: ../base.yml\ntrain: {total_iter: 7}\n')
        (tmp_path / 'a.yml').write_text('_base_: sub/middle.yml\nname: mine\nnetwork_g:\n  num_block: 16\n')
        base, opt = (checked(Document(tmp_path / name), is_train=True) for name in ('base.yml', 'a.yml'))
        assert opt.pop('name') == 'mine'
        assert opt['train'].pop('total_iter') == 7
        assert opt['network_g'].pop('num_block') == 16
        del base['name'], base['train']['total_iter'], base['network_g']['num_block']
        assert opt == base

    def test_a_base_may_be_a_shipped_file_wherever_a_copy_lies(self, tmp_path: Path) -> None:
        expected = checked(Document(find_option_file('train_NLSN_x2')), is_train=True)
        (tmp_path / 'a.yml').write_text('_base_: train_NLSN_x2\n')
        assert checked(Document(tmp_path / 'a.yml'), is_train=True) == expected
        shipped = find_option_file('with_nlsa/train_RCAN_NLSA_x2')
        copy = tmp_path / 'copy.yml'
        copy.write_text(shipped.read_text())
        assert checked(Document(copy), is_train=True) == checked(Document(shipped), is_train=True)

    @pytest.mark.parametrize('base', ['~/base.yml', 'base.yml'])
    def test_a_base_may_lie_at_home_and_begin_with_a_mark_of_its_encoding(self, base: str, at_home: Path) -> None:
        write(at_home / 'base.yml', {})
        expected = Document(at_home / 'base.yml').options
        (at_home / 'base.yml').write_text(
            (at_home / 'base.yml').read_text(), encoding='utf-8-sig'
        )  # as Windows's Notepad
        (at_home / 'a.yml').write_text(f'_base_: {base}\n', encoding='utf-8-sig')
        assert Document(at_home / 'a.yml').options == expected

    def test_a_mistake_is_told_where_it_stands(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        write(tmp_path / 'base.yml', {'train:gradclip': 1})
        (tmp_path / 'a.yml').write_text('_base_: base.yml\nname: mine\nscale: two\n')
        with pytest.raises(SystemExit):
            main(['train', '-opt', str(tmp_path / 'a.yml')])
        said = capsys.readouterr().err
        assert "a.yml, line 3: scale is 'two'" in said
        assert re.search(r'base\.yml, line \d+: train: gradclip is unknown', said)

    @pytest.mark.parametrize(
        ('text', 'message'),
        [
            ('_base_: none.yml', 'a.yml, line 1: _base_: there is no file '),
            ('_base_: mine/train_NLSN_x2.yml', 'a.yml, line 1: _base_: there is no file '),
            ('_base_: a.yml', 'a.yml, line 1: _base_: '),
        ],
    )
    def test_no_such_base(self, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
        (tmp_path / 'a.yml').write_text(text)
        assert message in error_of(['train', '-opt', str(tmp_path / 'a.yml')], capsys)

    def test_what_a_run_keeps_is_whole(self, tmp_path: Path) -> None:
        write(tmp_path / 'base.yml', {})
        (tmp_path / 'a.yml').write_text('_base_: base.yml\nname: mine\n')
        (tmp_path / 'kept').mkdir()
        keep_copy(tmp_path / 'a.yml', tmp_path / 'kept')
        assert Document(tmp_path / 'kept' / 'a.yml').options == Document(tmp_path / 'a.yml').options
        assert (tmp_path / 'kept' / 'a.yml').read_text().startswith('# GENERATE TIME: ')


def test_nothing_in_an_option_file_is_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / 'a.yml', f'name: !!python/object/apply:os.mkdir ["{tmp_path}/made"]\n')
    assert 'could not determine a constructor' in error_of(['train', '-opt', path], capsys)
    assert not (tmp_path / 'made').exists()


def test_what_basicsr_must_be_told_has_defaults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(
        tmp_path / 'a.yml', {'num_gpu': ..., 'logger:use_tb_logger': ..., 'dist_params': ..., 'manual_seed': 7}
    )
    opt = checked(Document(Path(path)), is_train=True)
    assert opt['num_gpu'] == 'auto'
    assert opt['logger']['use_tb_logger'] is False
    assert opt['dist_params'] == {'backend': 'nccl', 'port': 29500}


@pytest.mark.skipif(cpu_matmul.matmul_settings() is None, reason='this PyTorch cannot choose oneDNN for products')
@pytest.mark.parametrize('error', [1e-6, 3e-3])
def test_onednn_multiplies_where_an_option_file_asks_for_it_unless_it_rounds(
    error: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_matmul, 'product_error', lambda: error)
    cpu_matmul.error_at.cache_clear()
    settings = cpu_matmul.matmul_settings()
    before = settings.fp32_precision
    path = tmp_path / 'own.yml'
    try:
        checked(Document(Path(write(path, {}))), True)
        assert settings.fp32_precision == before
        document = Document(Path(write(path, {'onednn_matmul': True})))
        if error < cpu_matmul.LARGEST_ERROR:
            checked(document, True)
            assert settings.fp32_precision == 'bf16'
        else:
            with pytest.raises(
                OptionError, match=r'own\.yml, line \d+: onednn_matmul: oneDNN rounds .* error of 3\.0e-03'
            ):
                checked(document, True)
            assert settings.fp32_precision == before
    finally:
        settings.fp32_precision = before
        cpu_matmul.error_at.cache_clear()
