from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, error_of
from option_file import write

from nlsn_plugin.cli import main
from nlsn_plugin.engine.options.documents import Document, find_option_file
from nlsn_plugin.engine.options.misfits import has_compiler
from nlsn_plugin.engine.options.reading import check_paths, checked
from nlsn_plugin.errors import UserError


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with nothing in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_shipped_name_under_a_path_that_is_not_there_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'no option file .*train_NLSN_x2\.yml: did you mean train_NLSN_x2\.yml'):
        find_option_file(str(tmp_path / 'train_NLSN_x2.yml'))
    with pytest.raises(UserError, match='is a folder: name the option file in it'):
        find_option_file(str(tmp_path))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ('', 'holds nothing: keys and values are expected'),
        ('- 1', 'holds list: keys and values are expected'),
        ({'path': None}, 'path is None: a section is expected'),
        ({'datasets': None}, 'datasets is None: a section is expected'),
        ({'name': 2024}, 'name is 2024: text is expected'),
        ({'scale': '2'}, "scale is '2': a whole number is expected"),
        ({'scale': True}, 'scale is True: a whole number is expected'),
        ({'train:total_iter': 2.5}, 'train: total_iter is 2.5: a whole number is expected'),
        ({'train:ema_decay': '1e-3'}, "train: ema_decay is '1e-3': a number is expected (in YAML write 0.0001, or"),
        ({'train:ema_decay': 1.0}, 'train: ema_decay is 1.0: less than 1.0 is expected'),
        ({'train:total_iter': -1}, 'train: total_iter is -1: at least 1 is expected'),
        ({'train:clip_grad_norm': 0.0}, 'train: clip_grad_norm is 0.0: more than 0.0 is expected'),
        ({'manual_seed': 2**32}, 'manual_seed is 4294967296: less than 4294967296 is expected'),
        ({'name': ''}, "name is '': the name of a folder is expected"),
        ({'name': 'a\nb'}, "name is 'a\\nb': the name of a folder is expected"),
        ({'name': 'a/../../b'}, "name is 'a/../../b': the name of a folder is expected"),
        ({'datasets:val:mean': [0.5, 0.5, 0.5]}, 'datasets: val: mean: needs std'),
        (
            {'train:pixel_opt:loss_weight': '1e-2'},
            "train: pixel_opt: loss_weight: '1e-2' is text (in YAML write 0.0001",
        ),
        ({'train:pixel_opt:reduction': 'avg'}, 'train: pixel_opt: L1Loss: Unsupported reduction mode: avg'),
        (
            {'train:pixel_opt:reduction': 'none'},
            'L1Loss gives [1, 3, 2, 2] for images of [1, 3, 2, 2]: one number is expected',
        ),
        ({'train:pixel_opt:loss_weight': 'half'}, "train: pixel_opt: loss_weight: 'half' is not allowed: a number"),
        ({'train:pixel_opt': {'type': 'GANLoss', 'gan_type': 'vanilla'}}, 'train: pixel_opt: GANLoss: '),
        ({'val:metrics:psnr:crop_border': 2.5}, 'crop_border: 2.5 is not allowed: a whole number of at least 0'),
        ({'val:metrics:psnr:crop_border': -2}, 'crop_border: -2 is not allowed: a whole number of at least 0'),
        ({'val:metrics:psnr:crop_border': '2'}, "val: metrics: psnr: crop_border: '2' is text"),
        ({'val:metrics:psnr:test_y_channel': 'no'}, "test_y_channel: 'no' is not allowed: true or false is expected"),
        ({'val:metrics:psnr:input_order': 'XYZ'}, "input_order: 'XYZ' is not allowed: choose one of 'HWC', 'CHW'"),
        ({'train:optim_g:lr': '1e-4'}, "train: optim_g: lr: '1e-4' is text (in YAML write 0.0001"),
        ({'train:optim_g:betas': [0.9, '9e-1']}, "train: optim_g: betas: '9e-1' is text"),
        ({'train:optim_g:betas': [0.9]}, 'train: optim_g: Adam: '),
        ({'train:optim_g:lr': ...}, 'train: optim_g: lacks the key lr'),
        ({'train:scheduler:gamma': '5e-1'}, "train: scheduler: gamma: '5e-1' is text"),
        ({'train:scheduler:gamma': None}, 'train: scheduler: gamma: None is not allowed: a number is expected'),
        ({'train:scheduler:milestones': ['2e5', '4e5']}, "train: scheduler: milestones: '2e5' is text"),
        ({'train:scheduler:milestones': [0.5]}, 'milestones: 0.5 is not allowed: a whole number of at least 0'),
        ({'train:scheduler:milestones': ['a']}, "milestones: 'a' is not allowed: a whole number of at least 0"),
        (
            {'train:scheduler': {'type': 'CosineAnnealingRestartLR', 'periods': 250000}},
            'train: scheduler: CosineAnnealingRestartLR: ',
        ),
        (
            {'train:scheduler': {'type': 'OneCycleLR', 'max_lr': 0.1, 'total_steps': 9}},
            'train: scheduler: total_steps: 9 end before total_iter 1000000',
        ),
        ({'train:scheduler': {'type': 'StepLR', 'step_size': 0}}, 'step_size: 0 is not allowed: a whole number of at'),
        ({'train:scheduler': {'type': 'LambdaLR', 'lr_lambda': 1}}, 'train: scheduler: LambdaLR: '),
        (
            {'path:ignore_resume_networks': ['netwrok_g']},
            'path: ignore_resume_networks: there is no netwrok_g: did you mean network_g?',
        ),
        ({'network_d': {'type': 'Nothing'}}, 'network_d: is read by GAN models alone, not by NLSNModel'),
        ({'path:pretrain_network_d': 'a.pth'}, 'path: pretrain_network_d: is read by GAN models alone'),
        ({'path:results_root': 'a'}, 'path: results_root: is read in testing alone'),
        ({'val:suffix': 'a'}, 'val: suffix: is read in testing alone'),
        ({'val:tile_overlap': 8}, 'val: tile_overlap: needs tile'),
        ({'datasets:train:io_backend:foo': 1}, 'datasets: train: io_backend: foo is unknown'),
        ({'datasets:train:filename_tmpl': '{name}x2'}, "filename_tmpl is '{name}x2': a name with {} in it is expected"),
        ({'datasets:train:filename_tmpl': 'x2'}, "filename_tmpl is 'x2': a name with {} in it is expected"),
        ({'datasets:val:color': 'y'}, 'datasets: val: color: images of 1 channels, and network_g takes 3 (num_in_ch)'),
        (
            {'datasets:val:mean': [0.5] * 4, 'datasets:val:std': [1.0]},
            'datasets: val: mean: has 4 values: one for each',
        ),
        ({'datasets:val:mean': [0.5], 'datasets:val:std': [0.0]}, 'datasets: val: std: has a 0, by which images would'),
        ({'logger:wandb': {'project': 'a'}}, 'logger: wandb: project: '),
        ({'train:optim_g': {'type': 'LBFGS', 'lr': 1.0}}, 'train: optim_g: LBFGS: '),
        ({'train:optim_g': {'type': 'SparseAdam', 'lr': 1.0}}, 'train: optim_g: SparseAdam: '),
        (
            {'compare_with_bicubic': True, 'val:metrics': None, 'val:save_img': True},
            'compare_with_bicubic: needs val with metrics',
        ),
        (
            {'datasets:train:type': 'FFHQDataset', 'datasets:train:batch_size_per_gpu': ...},
            'lacks the key batch_size_per_gpu',
        ),
        ({'train:amp': 'bf61'}, "train: amp is 'bf61': Input should be 'off', 'bf16' or 'fp16'"),
        ({'model_type': ...}, 'lacks the key model_type'),
        ({'network_g:type': ...}, 'network_g: lacks the key type'),
        ({'datasets:train:batch_size_per_gpu': ...}, 'datasets: train: lacks the key batch_size_per_gpu'),
        ({'datasets:val:dataroot_gt': 3}, 'datasets: val: dataroot_gt is 3: text is expected'),
        ({'train:gradclip': 1.0}, 'train: gradclip is unknown: there are '),
        ({'num_gpus': 1}, 'num_gpus is unknown: did you mean num_gpu?'),
        ({'train:total_iter': '5e3'}, "train: total_iter is '5e3': a whole number is expected (in YAML write 5000)"),
        ({'num_gpu': -1}, "num_gpu is -1: 'auto', or a whole number of at least 0, is expected"),
        ({'datasets:train:gt_size': '96'}, 'gt_size'),
        ({'datasets:train:meta_info_file': 'a.txt'}, 'datasets: train: meta_info_file: is for folders: of an LMDB all'),
        (
            {'train:accumulate': 2, 'train:pixel_opt:reduction': 'sum'},
            'train: pixel_opt: reduction: sum does not go with accumulate',
        ),
        ({'path:model': 'x'}, 'path: model is unknown: there are '),
        ({'datasets:train:use_hflipp': True}, 'datasets: train: use_hflipp is unknown: did you mean use_hflip?'),
        ({'datasets:vall': {}}, 'datasets: vall is no phase: train, val, val_2, test_1 and the like are expected'),
        ({'logger:print_frq': 1}, 'logger: print_frq is unknown: did you mean print_freq?'),
        ({'model_type': 'NLSNModl'}, 'model_type: no NLSNModl: did you mean NLSNModel?'),
        ({'network_g:type': 'NLSNN'}, 'network_g: type: no NLSNN: did you mean NLSN?'),
        (
            {'network_g': {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'upscale': 5}},
            'network_g: EDSR cannot be built: ',
        ),
        (
            {'network_g': {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'upscale': 2, 'num_feat': '64'}},
            'network_g: EDSR cannot be built: ',
        ),
        ({'network_g:n_hash': 4}, 'network_g: n_hash: NLSN takes no n_hash: did you mean n_hashes?'),
        ({'network_g:upscale': '2'}, "network_g: upscale: '2' is not allowed: a whole number"),
        ({'network_g:chunk_size': -1}, 'network_g: chunk_size: -1 is not allowed: a whole number of at least 1'),
        (
            {'datasets:train:type': 'PairedImageDatasets'},
            'datasets: train: no PairedImageDatasets: did you mean ',
        ),
        ({'datasets:val:name': '..'}, "datasets: val: name is '..': the name of a folder is expected"),
        ({'datasets:val:name': 'a/b'}, "datasets: val: name is 'a/b': the name of a folder is expected"),
        ({'train:scheduler:milestones': 5}, 'train: scheduler: milestones: 5 is not allowed: a list is expected'),
        ({'train:optim_g:lr': 'nan'}, "train: optim_g: lr: 'nan' is text"),
        ({'train:pixel_opt:type': 'L3Loss'}, 'train: pixel_opt: type: no L3Loss: did you mean L1Loss?'),
        ({'train:pixel_opt:weight': 1}, 'train: pixel_opt: weight: L1Loss takes no weight: did you mean loss_weight?'),
        ({'train:pixel_opt': ...}, 'train: pixel_opt or perceptual_opt is expected: there is no loss'),
        ({'train:optim_g:type': 'AdamX'}, 'train: optim_g: type: no AdamX: did you mean Adam?'),
        (
            {'train:optim_g:beta': 0.9},
            'train: optim_g: beta: Adam takes no beta: did you mean betas?',
        ),
        (
            {'train:scheduler:milestones': [3, 200], 'train:warmup_iter': 4},
            'train: scheduler: milestones: [3, 200]: one is before warmup_iter 4, while the rate still warms up',
        ),
        ({'train:scheduler:type': 'MultStepLR'}, 'train: scheduler: type: no MultStepLR: did you mean MultiStepLR?'),
        ({'val:metrics:psnr:type': 'psnr'}, 'val: metrics: psnr: type: no psnr'),
        ({'val:metrics:psnr:border': 2}, 'val: metrics: psnr: border: calculate_psnr takes no border'),
        ({'val:metrics:niqe': {'type': 'calculate_niqe'}}, 'val: metrics: niqe: calculate_niqe needs crop_border'),
        (
            {'datasets:val:mean': [0.5], 'datasets:val:std': [0.5]},
            'datasets: val: mean and std are others than those of train: the network is one',
        ),
        ({'val:metrics': ...}, 'val: has no metrics and writes no images: there is nothing to do'),
        ({'datasets:val': ...}, 'val: there is nothing to validate on: datasets has no val'),
        ({'datasets:train:gt_size': 97}, 'datasets: train: gt_size: 97 is not divisible by scale 2: 96 is'),
        ({'datasets:train:use_hflip': ...}, 'datasets: train: lacks the key use_hflip'),
        ({'datasets:train:use_shuffle': False}, 'datasets: train: use_shuffle is False: Input should be True'),
        ({'val': ..., 'compare_with_bicubic': True}, 'compare_with_bicubic: needs val with metrics'),
        ({'train:amp': 'bf16', 'model_type': 'SRModel'}, 'train: amp: is read by NLSNModel alone, not by SRModel'),
        ({'val:tile': 64, 'model_type': 'SRModel'}, 'val: tile: is read by NLSNModel alone, not by SRModel'),
        ({'train:net_d_iters': 2}, 'train: net_d_iters: is read by GAN models alone, not by NLSNModel'),
        ({'train:accumulate': 3}, 'train: accumulate: 3 does not divide batch_size_per_gpu 16'),
        ({'val:tile': 16, 'val:tile_overlap': 16}, 'val: tile_overlap=16 is not less than tile=16'),
        (
            {'datasets:train:pin_memory': False, 'datasets:train:prefetch_mode': 'cuda'},
            'prefetch_mode: cuda needs pin_memory: true',
        ),
    ],
)
def test_a_mistake_in_an_option_file_is_one_line_and_makes_nothing(
    change: dict[str, object] | str, message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(here / 'a.yml', change)
    error = error_of(['train', '-opt', path], capsys)
    assert message in error
    if isinstance(change, dict) and ... not in change.values():
        number = int(re.search(r'a\.yml, line (\d+): ', error)[1])
        line = Path(path).read_text().splitlines()[number - 1]
        named = [
            *(key for keys in change for key in keys.split(':')[-2:]),
            *(key for value in change.values() for key in (value if isinstance(value, dict) else ())),
        ]
        assert any(key in line for key in named)
    assert [entry.name for entry in here.iterdir()] == ['a.yml']


def test_a_network_is_not_compiled_without_a_compiler(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (('PATH', ''), ('CC', ''), ('CXX', '')):
        monkeypatch.setenv(name, value)
    error = error_of(['train', '-opt', write(here / 'a.yml', {'train:compile': True})], capsys)
    assert 'train: compile: needs a compiler of C++, and none is there' in error


@pytest.mark.parametrize(
    ('gpu', 'of_cpp', 'of_c', 'there'),
    [
        (False, 'no-such', 'sh', False),
        (True, 'no-such', 'sh', True),
        (True, ' ', 'no-such', False),
        (False, 'sh -e', '', True),
    ],
)
def test_compilers_that_variables_name_go_before_others(
    gpu: bool, of_cpp: str, of_c: str, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpu)
    monkeypatch.setenv('CXX', of_cpp)
    monkeypatch.setenv('CC', of_c)
    assert has_compiler() == there


def test_what_a_model_of_two_networks_lacks_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / 'a.yml', {'model_type': 'SRGANModel', 'network_d': {'type': 'VGGStyleDiscriminators'}})
    with pytest.raises(SystemExit):
        main(['train', '-opt', path])
    said = capsys.readouterr().err
    assert 'network_d: type: no VGGStyleDiscriminators: did you mean VGGStyleDiscriminator?' in said
    assert 'train: lacks the key optim_d, which SRGANModel needs' in said
    assert 'train: lacks the key gan_opt, which SRGANModel needs' in said


ADVERSARIAL = {
    'model_type': 'SRGANModel',
    'network_d': {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 4},
    'train:optim_d': {'type': 'AdamW', 'lr': 1e-4},
    'train:gan_opt': {'type': 'GANLoss', 'gan_type': 'vanilla', 'loss_weight': 0.1},
}
"""A model of two networks, one of them by the short name that BasicSR takes too."""


def test_a_model_of_two_networks_is_taken(tmp_path: Path) -> None:
    opt = checked(Document(Path(write(tmp_path / 'a.yml', ADVERSARIAL))), is_train=True)
    assert opt['network_d']['type'] == 'UNetDiscriminatorSN'


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'train:gan_opt:gan_type': 'hinged'}, 'train: gan_opt: GANLoss: '),
        ({'train:gan_opt:real_label_val': 'a'}, 'train: gan_opt: GANLoss: '),
        ({'train:optim_d:type': 'AdamX'}, 'train: optim_d: type: no AdamX: did you mean Adam'),
        (
            {'network_d': {'type': 'VGGStyleDiscriminator', 'num_in_ch': 3, 'num_feat': 4}},
            'network_d: VGGStyleDiscriminator fails on a patch of [3, 96, 96]: ',
        ),
        ({'network_d:num_in_ch': 1}, 'network_d: UNetDiscriminatorSN fails on a patch of [3, 96, 96]: '),
        ({'train:net_d_init_iters': 1000000}, 'train: net_d_init_iters: less than total_iter 1000000 is expected'),
        ({'path:pretrain_network_d': 'a.pth'}, 'path: pretrain_network_d: there is no file a.pth'),
    ],
)
def test_a_mistake_in_what_is_of_two_networks_is_one_line(
    change: dict[str, object], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    roots = {f'datasets:{phase}:{key}': '.' for phase in ('train', 'val') for key in ('dataroot_gt', 'dataroot_lq')}
    assert message in error_of(['train', '-opt', write(here / 'a.yml', {**ADVERSARIAL, **change, **roots})], capsys)
    assert [entry.name for entry in here.iterdir()] == ['a.yml']


def test_two_data_sets_of_one_name_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = yaml.safe_load((ROOT / 'options' / 'test_NLSN_x2.yml').read_text())
    document['datasets']['test_2']['name'] = document['datasets']['test_1']['name']
    (tmp_path / 'a.yml').write_text(yaml.safe_dump(document))
    error = error_of(['test', '-opt', str(tmp_path / 'a.yml')], capsys)
    assert error.endswith('datasets: test_2: name: Set5 is the name of test_1 already')


def test_a_data_set_may_have_any_class_and_what_the_loop_reads_has_defaults(tmp_path: Path) -> None:
    path = write(tmp_path / 'a.yml', {'datasets:train:type': 'FFHQDataset', 'datasets:train:prefetch_mode': ...})
    assert checked(Document(Path(path)), is_train=True)['datasets']['train']['prefetch_mode'] is None
    short = {'datasets:train:type': 'RealESRGANPairedDataset', 'datasets:train:name': 'DF2K/OST'}  # a registry's suffix
    assert checked(Document(Path(write(tmp_path / 'a.yml', short))), is_train=True)['datasets']['train']['name']


@pytest.mark.parametrize(
    ('command', 'name', 'other'), [('test', 'train_NLSN_x2', 'train'), ('train', 'test_NLSN_x2', 'test')]
)
def test_an_option_file_for_the_other_command_is_one_line(
    command: str, name: str, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = error_of([command, '-opt', name], capsys)
    path = ROOT / 'options' / f'{name}.yml'
    assert error == f'nlsn: {path} is an option file for {other}ing: nlsn {other} -opt {path}'


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'path:pretrain_network_g': None}, 'path: names no weights: pretrain_network_g is expected'),
        ({'datasets': {}}, 'datasets: names no data set: test_1 is expected'),
    ],
)
def test_what_testing_needs_is_named(
    change: dict[str, object], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in error_of(['test', '-opt', write(tmp_path / 'a.yml', change, 'test_NLSN_x2')], capsys)


def test_a_quotation_in_the_environment_that_does_not_end_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv('NLSN_FORCE_YML', "name='t")
    error = error_of(['train', '-opt', 'train_NLSN_x2'], capsys)
    assert error == "nlsn: NLSN_FORCE_YML name='t: No closing quotation"


def test_a_place_with_too_long_a_name_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    error = error_of(['train', '-opt', 'n' * 300], capsys)
    assert error == f'nlsn: {"n" * 300}: File name too long'


def test_a_part_that_is_in_itself_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / 'a.yml').write_text('a: &x {b: *x}')
    assert error_of(['train', '-opt', str(tmp_path / 'a.yml')], capsys).endswith('a.yml holds a part that is in itself')


def test_a_file_that_is_not_utf8_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / 'a.yml').write_bytes(b'name: caf\xe9')
    assert 'a.yml is not UTF-8 text' in error_of(['train', '-opt', str(tmp_path / 'a.yml')], capsys)


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--force_yml', 'foo'], '--force_yml foo: KEY=VALUE is expected'),
        (['--force_yml', 'train:x=[1,'], '--force_yml train:x=[1,: [1, is no value'),
        (['--force_yml', 'trian:x=1'], '--force_yml trian:x=1: trian is unknown: did you mean train?'),
        (
            ['--force_yml', 'train:total=1'],
            '--force_yml train:total=1: train: total is unknown: did you mean total_iter?',
        ),
        (['--force_yml', 'num_gpu:x=1'], '--force_yml num_gpu:x=1: num_gpu is no section'),
        (['--force_yml', 'scale=two'], "--force_yml scale=two: scale is 'two': a whole number is expected"),
        (['--launcher', 'pytorch'], '--launcher pytorch: this process was not started by `torchrun'),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in error_of(['train', '-opt', 'train_NLSN_x2', *words], capsys)


def test_the_environment_is_checked_as_the_command_line_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv('NLSN_FORCE_YML', 'train:total=1')
    message = error_of(['train', '-opt', 'train_NLSN_x2'], capsys)
    assert 'NLSN_FORCE_YML train:total=1: train: total is unknown: did you mean total_iter?' in message
    monkeypatch.setenv('NLSN_FORCE_YML', "name='my run' scale=two")
    message = error_of(['train', '-opt', 'train_NLSN_x2', '--force_yml', 'scale=three'], capsys)
    assert "--force_yml scale=three: scale is 'three': a whole number is expected" in message


def test_bad_yaml_is_told_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / 'bad.yml', 'name: a\nscale: [2\nmodel_type: b\n')
    assert f'{path}, line ' in error_of(['train', '-opt', path], capsys)


def test_all_mistakes_are_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / 'a.yml', {'train:gradclip': 1, 'scale': 'x', 'val:pbarr': True})
    with pytest.raises(SystemExit):
        main(['train', '-opt', path])
    title, *lines = capsys.readouterr().err.splitlines()
    assert title == f'nlsn: {path} has 3 mistakes:'
    assert len(lines) == 3


def test_a_key_that_stands_twice_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / 'a.yml', 'name: a\nscale: 2\ntrain:\n  total_iter: 1\n  total_iter: 2\n')
    message = error_of(['train', '-opt', path], capsys)
    assert message == f'nlsn: {path}, line 5: train: total_iter stands on line 4 already'


RRDB = {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1, 'num_grow_ch': 4}
OF_4 = 'network_g: it enlarges by 4, and scale is 2'


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'network_g:upscale': 4}, 'network_g: upscale 4 is not scale 2'),
        ({'network_g:upscale': 3}, 'network_g: upscale 3 is not scale 2'),
        ({'network_g': {**RRDB, 'scale': 4}}, OF_4),
        ({'network_g': {'type': 'WithNLSA', 'arch': {**RRDB, 'scale': 4}, 'after': 'conv_body'}}, OF_4),
    ],
)
def test_a_network_of_another_scale_is_refused(
    change: dict[str, object],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    workplace: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """BasicSR's own train_RCAN_x2.yml has upscale: 4."""
    (tmp_path / 'datasets').symlink_to(workplace / 'datasets')
    monkeypatch.chdir(tmp_path)
    assert message in error_of(['train', '-opt', write(tmp_path / 'a.yml', change)], capsys)
    assert not (tmp_path / 'experiments').exists()


def test_missing_weights_are_named(tmp_path: Path) -> None:
    opt = {'is_train': True, 'datasets': {}, 'path': {'pretrain_network_g': 'nowhere/net.pth'}}
    with pytest.raises(UserError, match=r'there is no file nowhere/net.pth \(there is no folder nowhere\)'):
        check_paths(opt, tmp_path / 'a.yml')


def test_a_bad_argument_of_the_network_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_options, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / 'datasets').symlink_to(workplace / 'datasets')
    monkeypatch.chdir(tmp_path)
    path = small_options('train_NLSN_x2', lambda options: options['network_g'].update(upscale=5))
    message = error_of(['train', '-opt', str(path)], capsys)
    assert message.endswith('network_g: upscale: 5 is not allowed: 2, 3, 4 or another power of 2 is expected')
