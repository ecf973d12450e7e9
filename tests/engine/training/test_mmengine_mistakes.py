"""Mistakes on mmengine's command line and in its configs: a line that names each, and mostly before a run is built."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import NO_WORKERS, ROOT, run
from mmengine.config import Config
from mmengine.optim import ApexOptimWrapper, OptimWrapper
from mmengine.registry import MODELS, Registry

from nlsn_plugin.cli import main
from nlsn_plugin.engine.training import mmengine_checks, mmengine_config, mmengine_run
from nlsn_plugin.engine.training.mmengine_parts import BFloat16OptimWrapper
from nlsn_plugin.errors import OptionError, UserError
from nlsn_plugin.metrics.mmengine_metric import SuperResolutionMetric

CONFIGS = sorted(path for path in (ROOT / 'options' / 'mmengine').glob('*.py') if not path.name.startswith('mmagic_'))
TINY = 'nlsn_x2c8b8_1xb2-12_div2k'
BROKEN = {
    'syntax.py': 'scale = 2\nmodel = = 3',
    'name.py': 'scale = 2\nmodel = nothing',
    'child.py': "_base_ = 'name.py'",
    'orphan.py': "_base_ = 'nam.py'",
    'imports.py': "custom_imports = dict(imports=['nlsn_plugin.nothing'])",
    'no_model.py': 'train_cfg = dict()\ntrain_dataloader = dict()\noptim_wrapper = dict()',
    'basicsr.yml': 'name: NLSN_x2\nnetwork_g:\n  type: NLSN',
    'broken.yml': 'model: [1\n',
    'lazy.py': (
        'from nlsn_plugin.archs import NLSM\n'
        'model = dict(generator=dict(type=NLSM))\ntrain_cfg = train_dataloader = optim_wrapper = dict()'
    ),
}


def said_by(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The lines that a failing command ends with; mmengine's and PyTorch's warnings may go before them."""
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 1
    said = capsys.readouterr().err
    return said[said.index('nlsn: ') :].rstrip()


@pytest.mark.parametrize(
    ('name', 'said'),
    [
        ('syntax.py', 'syntax.py, or a base of it, line 2: invalid syntax: model = = 3'),
        ('name.py', "name.py, line 2: NameError: name 'nothing' is not defined"),
        ('child.py', "name.py, line 2: NameError: name 'nothing' is not defined"),
        ('orphan.py', 'nam.py (did you mean '),
        ('imports.py', 'imports.py: ImportError: Failed to import nlsn_plugin.nothing'),
        ('no_model.py', 'no_model.py has no model'),
        ('basicsr.yml', 'it is an option file for `nlsn train`'),
        ('broken.yml', 'broken.yml, line 2: '),
        ('lazy.py', 'Failed to import NLSM from nlsn_plugin.archs'),
    ],
)
def test_a_config_that_does_not_load(name: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file, text in BROKEN.items():
        (tmp_path / file).write_text(text)
    line = said_by(['train-mmengine', str(tmp_path / name), '--work-dir', str(tmp_path / 'work')], capsys)
    assert said in line
    assert '\n' not in line
    assert not (tmp_path / 'work').exists()


@pytest.mark.parametrize(
    ('option', 'said'),
    [
        ('a=[1,(2]', '--cfg-options a=[1,(2]: Imbalanced brackets'),
        ('=3', '--cfg-options =3: KEY=VALUE is expected'),
        ('max_iters=1', '--cfg-options max_iters: nothing reads max_iters: did you mean train_cfg.max_iters?'),
        ('num_feat=8', 'did you mean model.generator.num_feat?'),
        ('train_dataloder.batch_size=3', 'did you mean train_dataloader.batch_size?'),
        ('lrr=1', 'did you mean optim_wrapper.optimizer.lr?'),
        ('model.generator.num_feat.x=3', 'model.generator.num_feat is 8, with no x in it'),
        ('custom_hooks.7.strict=False', 'custom_hooks is a list of 2: a number below that is expected, not 7'),
        ('custom_hooks.0=3', '--cfg-options custom_hooks.0 cannot be set'),
        (
            'model.generator.num_fet=3',
            'generator.num_fet: NLSN takes no num_fet: did you mean num_feat?',
        ),
        ('model.generator.type=NLSM', f'{TINY}: model.generator.type: no NLSM: did you mean NLSN?'),
        ('model.generator.type=WithNLSA', f'{TINY}: model.generator: WithNLSA needs arch'),
        ('model.generator=3', f'{TINY}: model.generator: 3 is not allowed'),
        ('model.pixel_loss.type=torch.nn.L1Los', f'{TINY}: model.pixel_loss.type: no torch.nn.L1Los'),
        ('train_cfg=None', f'{TINY} has no train_cfg'),
        ('train_cfg.max_itres=3', 'IterBasedTrainLoop takes no max_itres: did you mean max_iters?'),
        ('val_cfg=None', f'{TINY} has no val_cfg: val_dataloader, val_cfg, val_evaluator go together'),
        ('val_evaluator.border=3', 'SuperResolutionMetric takes no border: did you mean crop_border?'),
        ('train_dataloader.batchsize=3', 'DataLoader takes no batchsize: did you mean batch_size?'),
        ('train_dataloader.dataset.gtsize=3', 'SuperResolutionDataset takes no gtsize: did you mean gt_size?'),
        ('optim_wrapper.accumulative_count=2', 'did you mean accumulative_counts?'),
        ('optim_wrapper.accumulative_counts=0', 'accumulative_counts=0 is not allowed: a whole number of at least 1'),
        (
            'optim_wrapper.clip_grad.max_nrm=1',
            'clip_grad_norm_ takes no max_nrm: did you mean max_norm?',
        ),
        ('optim_wrapper.clip_grad.max_norm=abc', "clip_grad: clip_grad_norm_ does not take {'max_norm': 'abc'}: could"),
        (
            'optim_wrapper.clip_grad.type=vale',
            "optim_wrapper.clip_grad: type='vale' is not allowed: choose one",
        ),
        ('optim_wrapper.clip_grad.type=value', 'optim_wrapper.clip_grad: clip_grad_value_ needs clip_value'),
        ('optim_wrapper.clip_grad=1', 'optim_wrapper.clip_grad: 1 is not allowed: dict(max_norm=...) is expected'),
        ('train_cfg.val_interval=0', f'{TINY}: train_cfg: val_interval=0 is not allowed: a whole number of at least 1'),
        ('train_cfg.val_begin=soon', "train_cfg: val_begin='soon' is not allowed: a whole number is expected"),
        ('default_hooks.checkpoint.interval=abc', "default_hooks.checkpoint: interval='abc' is not allowed: a whole"),
        ('default_hooks.logger.interval=abc', "default_hooks.logger: interval='abc' is not allowed: a whole number"),
        (
            'default_hooks.checkpoint.max_keep_ckpts=abc',
            "default_hooks.checkpoint: max_keep_ckpts='abc' is not allowed",
        ),
        (
            'default_hooks.checkpoint.save_best=Set5/psnr',
            'default_hooks.checkpoint.save_best: val_evaluator gives no Set5/psnr: did you mean Set5/psnr_y?',
        ),
        (
            'param_scheduler.milestones=[a]',
            "param_scheduler: milestones: 'a' is not allowed: a whole number of at least",
        ),
        ('param_scheduler.gamma=abc', "param_scheduler: gamma: 'abc' is not allowed: a number is expected"),
        ('optim_wrapper.optimizer.lrr=1', 'Adam takes no lrr: did you mean lr?'),
        ('param_scheduler.gama=1', 'MultiStepLR takes no gama: did you mean gamma?'),
        ('default_hooks.chekpoint.interval=1', 'default_hooks.chekpoint: has no type'),
        ('custom_hooks.0.strct=1', 'custom_hooks.0.strct: AnyWeightsHook takes no strct: did you mean strict?'),
        ('randomness.sed=1', 'takes no sed: did you mean seed?'),
        ('launcher=pytroch', "launcher='pytroch' is not allowed"),
        ('load_from=3', 'load_from=3 is not allowed: the path of a file is expected'),
    ],
)
def test_an_option_that_nothing_takes(
    option: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in said_by(['train-mmengine', TINY, '--cfg-options', option], capsys)
    assert not list(tmp_path.iterdir())


def test_schedules_may_be_of_several_optimisers_and_one_needs_its_type() -> None:
    cfg = mmengine_config.read(TINY, {})
    schedule = dict(cfg.param_scheduler)
    cfg.param_scheduler = {'generator': schedule, 'discriminator': [schedule]}
    assert list(mmengine_checks.misfits(cfg)) == []
    del schedule['type']
    cfg.param_scheduler = schedule
    assert ('param_scheduler', 'has no type') in list(mmengine_checks.misfits(cfg))


def test_what_mixed_precision_takes_is_known() -> None:
    cfg = mmengine_config.read(TINY, {'optim_wrapper.type': 'AmpOptimWrapper', 'optim_wrapper.accumulative_count': 2})
    with pytest.raises(
        OptionError, match='AmpOptimWrapper takes no accumulative_count: did you mean accumulative_counts'
    ):
        mmengine_checks.check(cfg, TINY)


def test_classes_themselves_are_taken_as_their_names_are() -> None:
    cfg = mmengine_config.read(TINY, {'default_hooks.checkpoint.save_best': 'Set5/psnr'})
    cfg.optim_wrapper.type, cfg.val_evaluator.type = OptimWrapper, SuperResolutionMetric  # as if imported
    assert [key for key, _ in mmengine_checks.misfits(cfg)] == ['default_hooks.checkpoint.save_best']
    mmengine_run.use_amp(cfg)
    assert cfg.optim_wrapper.type in ('AmpOptimWrapper', 'BFloat16OptimWrapper')
    cfg.optim_wrapper.type = BFloat16OptimWrapper
    mmengine_run.use_amp(cfg)
    assert cfg.optim_wrapper.type is BFloat16OptimWrapper
    cfg.optim_wrapper.type = ApexOptimWrapper
    with pytest.raises(UserError, match=r"--amp: the config has optim_wrapper\.type='ApexOptimWrapper'"):
        mmengine_run.use_amp(cfg)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_what_runner_takes_is_let_through(path: Path) -> None:
    options = {
        'auto_scale_lr.base_batch_size': 4,
        'find_unused_parameters': True,
        'optim_wrapper.accumulative_counts': 2,
        'optim_wrapper.clip_grad.max_norm': '1.5',
        'optim_wrapper.clip_grad.norm_type': 'inf',
        'optim_wrapper.paramwise_cfg.bias_lr_mult': 2.0,
        'default_hooks.checkpoint.interval': -1,
        'train_cfg.val_interval': 5e3,
        'param_scheduler.by_epoch': False,
        'param_scheduler.end': 9,
        'custom_hooks.0.strict': False,
        'default_hooks.timer': None,
        'train_dataloader.num_batch_per_epoch': 3,
        'scale': 2,
    }
    cfg = mmengine_config.read(str(path), options)
    mmengine_checks.check(cfg, str(path))
    assert cfg.param_scheduler.end == 9


def test_a_config_of_another_toolbox_finds_its_own() -> None:
    others = Registry('model', parent=MODELS, scope='another')

    @others.register_module()
    class Enlarger(torch.nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()

    cfg = mmengine_config.read(TINY, {})
    cfg.model.generator = {'type': 'Enlarger', 'siz': 3}
    with pytest.raises(OptionError, match='no Enlarger'):
        mmengine_checks.check(cfg, TINY)
    cfg.default_scope = 'another'
    with pytest.raises(OptionError, match='Enlarger takes no siz: did you mean size'):
        mmengine_checks.check(cfg, TINY)
    cfg.model.generator = {'type': 'Enlarger', 'size': 3}
    mmengine_checks.check(cfg, TINY)


def test_several_optimisers_are_left_to_their_constructor() -> None:
    cfg = mmengine_config.read(TINY, {})
    one = dict(cfg.optim_wrapper)
    cfg.optim_wrapper = {'constructor': 'Another', 'generator': one, 'discriminator': one}
    mmengine_checks.check(cfg, TINY)


def test_a_value_that_a_part_refuses(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    said = said_by(['train-mmengine', TINY, '--cfg-options', 'train_dataloader.batch_size=0'], capsys)
    assert said.splitlines()[-1].startswith(f'nlsn: {TINY} cannot be built: ValueError: batch_size should be')


@pytest.mark.parametrize(
    ('launcher', 'said'),
    [
        ('pytorch', 'was not started by `torchrun --nproc_per_node N` (RANK is not set)'),
        ('slurm', 'was not started by `srun` (SLURM_PROCID is not set)'),
        ('mpi', 'was not started by `mpirun -n N` (OMPI_COMM_WORLD_LOCAL_RANK is not set)'),
    ],
)
def test_a_launcher_that_has_not_launched(
    launcher: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable in ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_LOCAL_RANK'):
        monkeypatch.delenv(variable, raising=False)
    assert said in said_by(['train-mmengine', TINY, '--launcher', launcher], capsys)
    assert said in said_by(['train-mmengine', TINY, '--cfg-options', f'launcher={launcher}'], capsys)


def test_what_mmengines_processes_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('OMPI_COMM_WORLD_LOCAL_RANK', '0')
    monkeypatch.delenv('MASTER_ADDR', raising=False)
    with pytest.raises(UserError, match='MASTER_ADDR is not set'):
        mmengine_run.check_launcher('mpi')
    if not torch.cuda.is_available():
        monkeypatch.setenv('RANK', '0')
        with pytest.raises(UserError, match='need a GPU each'):
            mmengine_run.check_launcher('pytorch')


@pytest.mark.parametrize('spelling', ['--local_rank', '--local-rank'])
def test_the_rank_may_come_by_the_command_line(
    spelling: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv('LOCAL_RANK', '1')
    assert 'there is no config' in said_by(['train-mmengine', 'nothing', spelling, '3'], capsys)
    assert os.environ['LOCAL_RANK'] == '1'
    del os.environ['LOCAL_RANK']
    said_by(['train-mmengine', 'nothing', spelling, '3'], capsys)
    assert os.environ['LOCAL_RANK'] == '3'


def test_the_learning_rate_is_scaled_where_the_config_says_how(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    words = ['train-mmengine', TINY, '--auto-scale-lr', '--work-dir', 'work']
    assert said_by(words, capsys) == f'nlsn: --auto-scale-lr: {TINY} has no auto_scale_lr=dict(base_batch_size=...)'
    words += ['--cfg-options', 'auto_scale_lr.base_batch_size=8', 'train_cfg.max_iters=1']
    run('-m', 'nlsn_plugin', *words, cwd=place)
    (group,) = torch.load('work/iter_1.pth', weights_only=True)['optimizer']['param_groups']
    assert group['lr'] == pytest.approx(Config.fromfile(CONFIGS[-2]).optim_wrapper.optimizer.lr * 2 / 8)


def test_a_folder_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / 'file').write_text('')
    for place in (tmp_path / 'file', tmp_path / 'file' / 'below', Path('/proc/nothing')):
        said = said_by(['train-mmengine', TINY, '--work-dir', str(place)], capsys)
        assert said.startswith(f'nlsn: the folder {place} cannot be written to: ')


@pytest.mark.parametrize('words', [['--resume', '{}'], ['--cfg-options', 'load_from={}']], ids=['resume', 'load_from'])
def test_checkpoints_that_are_not_there(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path('iter_5.pth').write_bytes(b'')
    Path('folder').mkdir()
    for name, expected in (
        ('iter_6.pth', 'nlsn: there is no file iter_6.pth (did you mean iter_5.pth?)'),
        ('folder', 'nlsn: folder is a folder: name the file in it'),
    ):
        assert said_by(['train-mmengine', TINY, *(word.format(name) for word in words)], capsys) == expected
    assert not Path('work_dirs').exists()


def save_damaged(path: Path, what: str) -> None:
    """A file that is no checkpoint of a run."""
    state: Any = {'state_dict': {'weight': torch.zeros(999)}, 'meta': {'iter': 1, 'epoch': 0}}
    torch.save({'truncated': state, 'weights': {'weight': torch.zeros(1)}, 'list': [1]}.get(what), path)
    if what == 'truncated':  # by a kill during a save
        path.write_bytes(path.read_bytes()[:-1000])
    if what == 'junk':
        path.write_bytes(b'a file of text, not of weights')


@pytest.mark.parametrize(
    ('what', 'said'),
    [
        ('truncated', 'bad.pth does not load: it is truncated or damaged'),
        ('junk', 'bad.pth does not load: it is no file of weights: .pt, .pth or .safetensors is expected'),
        ('list', 'bad.pth holds a list: a dict of tensors is expected'),
        ('weights', 'bad.pth holds weights alone: begin a new run from them'),
    ],
)
def test_checkpoints_that_do_not_load(
    what: str, said: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    save_damaged(Path('bad.pth'), what)
    line = said_by(
        ['train-mmengine', TINY, '--resume', 'bad.pth', '--cfg-options', 'custom_hooks=[]', *NO_WORKERS], capsys
    )
    assert line.startswith(f'nlsn: {said}')
    assert '\n' not in line
