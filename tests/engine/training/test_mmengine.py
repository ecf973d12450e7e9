"""Training on mmengine's Runner: short runs of the shipped configs, by the real command line."""

from __future__ import annotations

import os
import pickle
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from basicsr.metrics import calculate_metric
from basicsr.utils import tensor2img
from conftest import GOLDEN, NO_WORKERS, ROOT, run
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS, OPTIM_WRAPPERS, Registry
from mmengine.runner import CheckpointLoader
from safetensors.torch import save_file

from nlsn_plugin.cli import main
from nlsn_plugin.data.mmengine_dataset import SuperResolutionDataset
from nlsn_plugin.engine.training.mmengine_parts import (
    AnyWeightsHook,
    BFloat16OptimWrapper,
    schedules_of,
    settings_of,
)
from nlsn_plugin.errors import ArgumentError, CheckpointError, DataError
from nlsn_plugin.metrics.mmengine_metric import SuperResolutionMetric
from nlsn_plugin.models.mmengine_model import SuperResolutionModel

CONFIGS = sorted(path for path in (ROOT / 'options' / 'mmengine').glob('*.py') if not path.name.startswith('mmagic_'))
TINY = 'nlsn_x2c8b8_1xb2-12_div2k'
ACCUMULATE = 'optim_wrapper.accumulative_counts=2'
NETWORK = {'type': 'NLSN', 'num_feat': 8, 'num_block': 1, 'n_hashes': 1, 'chunk_size': 16}


def train(place: Path, *words: str) -> str:
    """What a run of the smallest config says."""
    return run(ROOT / 'tools' / 'train_mmengine.py', TINY, *words, cwd=place).stdout


@pytest.fixture(scope='module')
def uninterrupted(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a whole run in bfloat16, every update of two batches."""
    place = tmp_path_factory.mktemp('mmengine')
    (place / 'datasets').symlink_to(workplace / 'datasets')
    said = train(place, '--amp', '--work-dir', 'whole', '--cfg-options', ACCUMULATE)
    assert 'Iter(train) [12/12]' in said
    assert 'Set5/psnr_y: ' in said
    return place


def error_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The line that a failing command ends with; mmengine's and PyTorch's warnings may go before it."""
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 1
    return capsys.readouterr().err.splitlines()[-1]


def loaded(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds_and_its_network_enlarges(path: Path) -> None:
    cfg = Config.fromfile(path)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
        output = model.generator(torch.rand(1, 3, 12, 13))
    assert isinstance(model, SuperResolutionModel)
    assert output.shape == (1, 3, 12 * cfg.scale, 13 * cfg.scale)
    assert f'_x{cfg.scale}' in path.stem
    assert f'c{cfg.model.generator.num_feat}b{cfg.model.generator.num_block}_' in path.stem
    assert f'_1xb{cfg.train_dataloader.batch_size}-' in path.stem
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        assert loader.dataset.scale == cfg.scale
        assert DATASETS.get(loader.dataset.type) is SuperResolutionDataset
    assert f'_X{cfg.scale}_' in cfg.train_dataloader.dataset.dataroot_lq
    assert cfg.val_dataloader.dataset.filename_tmpl == f'{{}}x{cfg.scale}'
    assert cfg.train_dataloader.dataset.gt_size % cfg.scale == 0
    assert METRICS.build(cfg.val_evaluator).crop_border == cfg.scale
    assert all(HOOKS.build(hook) for hook in cfg.custom_hooks)


def test_all_parts_are_found_from_a_childs_scope() -> None:
    for registry, name in (
        (MODELS, 'NLSN'),
        (MODELS, 'NLSA'),
        (MODELS, 'WithNLSA'),
        (MODELS, 'SuperResolutionModel'),
        (DATASETS, 'SuperResolutionDataset'),
        (METRICS, 'SuperResolutionMetric'),
        (HOOKS, 'AnyWeightsHook'),
        (HOOKS, 'RandomStateHook'),
        (OPTIM_WRAPPERS, 'BFloat16OptimWrapper'),
    ):
        child = Registry(f'{registry.name} of a child', parent=registry, scope=f'child_of_{name.lower()}')
        assert child.get(name) is registry.get(name) is not None
        assert registry.get(f'mmengine.{name}') is registry.get(name)


def test_a_run_in_bfloat16_saves_what_plain_mmengine_reads(uninterrupted: Path) -> None:
    state = loaded(uninterrupted / 'whole' / 'iter_12.pth')
    assert state['meta']['iter'] == 12
    assert all(w.dtype == torch.float32 for w in state['state_dict'].values())
    first = loaded(uninterrupted / 'whole' / 'iter_4.pth')['state_dict']
    assert not first['generator.head.0.weight'].equal(state['state_dict']['generator.head.0.weight'])
    steps = state['optimizer']['state'][0]['step']
    assert steps == 6  # of 12 batches


def test_a_run_that_is_stopped_and_goes_on_ends_as_if_it_had_not_been(uninterrupted: Path) -> None:
    train(uninterrupted, '--amp', '--work-dir', 'part', '--resume', 'whole/iter_4.pth', '--cfg-options', ACCUMULATE)
    whole, part = (loaded(uninterrupted / name / 'iter_12.pth') for name in ('whole', 'part'))
    assert part['state_dict'].keys() == whole['state_dict'].keys()
    assert all(part['state_dict'][name].equal(w) for name, w in whole['state_dict'].items())
    histories = [state['message_hub']['log_scalars'] for state in (whole, part)]
    for name in ('train/loss', 'train/lr', 'val/Set5/psnr_y'):
        assert np.array_equal(*(history[name]._log_history for history in histories))
    assert whole['message_hub']['runtime_info']['best_score'] == part['message_hub']['runtime_info']['best_score']


@pytest.mark.parametrize(
    ('option', 'said'),
    [
        ('optim_wrapper.optimizer.lr=0.5', 'optim_wrapper.optimizer: lr is 0.5, with which whole/iter_8.pth cannot go'),
        ('param_scheduler.milestones=[9]', 'param_scheduler: milestones is [9], with which whole/iter_8.pth cannot go'),
        ('train_cfg.max_iters=6', 'whole/iter_8.pth is of iteration 8: the config has max_iters=6'),
    ],
)
def test_what_a_run_that_goes_on_cannot_follow_is_refused(option: str, said: str, uninterrupted: Path) -> None:
    words = [
        TINY,
        '--amp',
        '--work-dir',
        'refused',
        '--resume',
        'whole/iter_8.pth',
        '--cfg-options',
        option,
        ACCUMULATE,
    ]
    refused = run(ROOT / 'tools' / 'train_mmengine.py', *words, *NO_WORKERS, cwd=uninterrupted, check=False)
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith(f'nlsn: {said}')


def test_what_schedules_move_is_compared_as_it_began() -> None:
    group = {'params': [0], 'lr': 0.01, 'initial_lr': 0.1, 'betas': (0.8, 0.99), 'initial_momentum': 0.9, 'fused': True}
    state = {'state': {}, 'param_groups': [group]}
    assert settings_of(state) == {('', 0, 'lr'): 0.1, ('', 0, 'betas'): [0.9, 0.99]}
    assert settings_of({'of_g': state, 'loss_scaler': 1.0}).keys() == {('of_g', 0, 'lr'), ('of_g', 0, 'betas')}
    assert schedules_of([{'milestones': Counter({8: 2}), 'gamma': 0.5, 'last_step': 3}]) == {
        ('', 0, 'milestones'): [8, 8],
        ('', 0, 'gamma'): 0.5,
    }


def test_a_config_in_a_checkpoint_which_mmengine_would_run_is_left_alone(uninterrupted: Path) -> None:
    state = torch.load(uninterrupted / 'whole' / 'iter_12.pth', weights_only=False)
    state['meta']['config'] = "open('executed', 'w')"  # as an older mmengine wrote it
    torch.save(state, uninterrupted / 'of_a_stranger.pth')
    words = ['--work-dir', 'stranger', '--resume', 'of_a_stranger.pth']
    train(uninterrupted, *words, '--cfg-options', ACCUMULATE, 'train_cfg.max_iters=14', *NO_WORKERS)
    assert loaded(uninterrupted / 'stranger' / 'iter_14.pth')['meta']['iter'] == 14
    assert not (uninterrupted / 'executed').exists()


@pytest.mark.parametrize(
    ('argument', 'said'),
    [
        ({'scale': 'a'}, "scale='a' is not allowed: a whole number of at least 1 is expected"),
        ({'gt_size': 'a'}, "gt_size='a' is not allowed: a whole number of at least 1 is expected"),
        ({'gt_size': 33}, 'gt_size=33 is not divisible by scale=2: 32 is'),
        ({'use_hflip': 'no'}, "use_hflip='no' is not allowed: true or false is expected"),
        ({'use_rot': 1}, 'use_rot=1 is not allowed: true or false is expected'),
    ],
)
def test_arguments_of_another_type_are_refused(argument: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError) as error:
        SuperResolutionDataset(**{'dataroot_gt': 'a', 'dataroot_lq': 'b', 'scale': 2, **argument})
    assert str(error.value) == said


def test_resume_without_a_name_takes_the_newest(uninterrupted: Path) -> None:
    sizes = 'train_cfg.max_iters=13', 'train_cfg.val_interval=50', 'val_dataloader.num_workers=0'
    train(uninterrupted, '--work-dir', 'whole', '--resume', '--cfg-options', ACCUMULATE, *sizes)
    found = loaded(uninterrupted / 'whole' / 'iter_12.pth'), loaded(uninterrupted / 'whole' / 'iter_13.pth')
    assert [len(state['message_hub']['log_scalars']['train/loss']._log_history) for state in found] == [12, 13]


def test_the_metric_is_the_plugins_validation(workplace: Path) -> None:
    root = workplace / 'datasets' / 'benchmark' / 'Set5'
    dataset = SuperResolutionDataset(str(root / 'HR'), str(root / 'LR_bicubic' / 'X2'), 2, filename_tmpl='{}x2')
    torch.manual_seed(0)
    model = SuperResolutionModel(NETWORK).eval()
    metric = SuperResolutionMetric(crop_border=2, prefix='Set5')
    expected: dict[str, list[float]] = {'psnr': [], 'ssim': []}
    for index in range(len(dataset)):
        batch = torch.utils.data.default_collate([dataset[index]])
        with torch.no_grad():
            (sample,) = model.val_step(batch)
        metric.process(batch, [sample])
        images = {'img': tensor2img([sample['output']]), 'img2': tensor2img([sample['gt']])}
        for name, values in expected.items():
            values.append(
                calculate_metric(images, {'type': f'calculate_{name}', 'crop_border': 2, 'test_y_channel': True})
            )
    found = metric.evaluate(len(dataset))
    assert found.keys() == {'Set5/psnr_y', 'Set5/ssim_y', 'Set5/psnr_rgb', 'Set5/ssim_rgb'}
    for name, values in expected.items():
        assert found[f'Set5/{name}_y'] == pytest.approx(np.mean(values), abs=1e-9)


def test_only_protocols_that_score_rgb_are_taken() -> None:
    with pytest.raises(ArgumentError, match="protocol='vdsr' is not allowed: choose one of 'basicsr', 'matlab'"):
        SuperResolutionMetric(2, protocol='vdsr')


def test_the_model_says_what_it_lacks() -> None:
    model = SuperResolutionModel(NETWORK)
    with pytest.raises(ArgumentError, match=r"collate_fn=dict\(type='default_collate'\) is expected"):
        model([torch.rand(3, 8, 8)], mode='tensor')
    with pytest.raises(ArgumentError, match="mode='loss' needs data_samples"):
        model(torch.rand(1, 3, 8, 8), mode='loss')
    with pytest.raises(ArgumentError, match="mode='train' is not allowed"):
        model(torch.rand(1, 3, 8, 8), mode='train')
    assert model(torch.rand(1, 3, 8, 9)).shape == (1, 3, 16, 18)


def test_bfloat16_runs_where_mmengines_own_wrapper_is_not_built() -> None:
    model = SuperResolutionModel(NETWORK)
    wrapper = BFloat16OptimWrapper(torch.optim.Adam(model.parameters()))
    with wrapper.optim_context(model):
        assert model.generator.head[0](torch.rand(1, 3, 4, 4)).dtype == torch.bfloat16
    if not torch.cuda.is_available():
        with pytest.raises(AssertionError, match='only available training on gpu'):
            OPTIM_WRAPPERS.build({'type': 'AmpOptimWrapper', 'optimizer': wrapper.optimizer})


class Stopped:
    """A Runner that loads, as far as the hook looks at it."""

    work_dir = 'work'

    def __init__(self, model: torch.nn.Module, path: Path, resume: bool = False) -> None:
        self.model, self._load_from, self._resume = model, str(path), resume


OFFICIAL = GOLDEN / 'nlsn_x2_small_official_state_dict.pt'


@pytest.fixture
def small() -> SuperResolutionModel:
    return SuperResolutionModel({'type': 'NLSN', 'num_feat': 16, 'num_block': 8})


@pytest.mark.parametrize('layout', ['authors', 'basicsr', 'mmengine', 'mmengine without a prefix', 'safetensors'])
def test_weights_of_every_layout_load(layout: str, small: SuperResolutionModel, tmp_path: Path) -> None:
    from mmengine.runner.checkpoint import _load_checkpoint_to_model

    weights = loaded(OFFICIAL)
    content: dict[str, Any] = {
        'authors': weights,
        'basicsr': {'params': weights},
        'mmengine': {'state_dict': {f'generator.{name}': w for name, w in weights.items()}, 'meta': {}},
        'mmengine without a prefix': {'state_dict': weights, 'meta': {}},
    }
    path = tmp_path / 'weights.pth'  # an ending by which no torch.load takes safetensors
    if layout == 'safetensors':
        save_file(weights, path)
    else:
        torch.save(content[layout], path)
    hook, runner = AnyWeightsHook(), Stopped(small, path)
    hook.before_run(runner)
    checkpoint = CheckpointLoader.load_checkpoint(str(path), 'cpu')
    hook.after_load_checkpoint(runner, checkpoint)
    assert {name.removeprefix('generator.') for name in checkpoint['state_dict']} == weights.keys()
    with torch.no_grad():
        small.generator.head[0].weight.zero_()
    _load_checkpoint_to_model(small, checkpoint)
    assert small.generator.state_dict().keys() == weights.keys()
    assert all(w.equal(weights[name]) for name, w in small.generator.state_dict().items())


def test_what_does_not_fit_is_refused_and_not_left_out(small: SuperResolutionModel, tmp_path: Path) -> None:
    x3 = GOLDEN / 'nlsn_x3_small_official_state_dict.pt'
    before = {name: w.clone() for name, w in small.generator.state_dict().items()}
    with pytest.raises(CheckpointError, match=r'does not fit NLSN.*strict=False in the config of AnyWeightsHook'):
        AnyWeightsHook().after_load_checkpoint(Stopped(small, x3), loaded(x3))
    assert all(w.equal(before[name]) for name, w in small.generator.state_dict().items())
    checkpoint = loaded(x3)
    AnyWeightsHook(strict=False).after_load_checkpoint(Stopped(small, x3), checkpoint)
    assert small.generator.head[0].weight.equal(loaded(x3)['head.0.weight'])
    with pytest.raises(CheckpointError, match=r'has nothing that fits NLSN'):
        AnyWeightsHook(strict=False).after_load_checkpoint(Stopped(small, x3), {'state_dict': {'a': torch.ones(1)}})
    with pytest.raises(CheckpointError, match='holds weights alone: begin a new run from them'):
        AnyWeightsHook().after_load_checkpoint(Stopped(small, x3, resume=True), loaded(x3))


def test_a_run_begins_from_the_authors_weights(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    begin = ['--cfg-options', f'load_from={OFFICIAL}', 'train_cfg.max_iters=1']
    train(place, *begin, 'model.generator.num_feat=16', 'optim_wrapper.optimizer.lr=0.0')
    saved = loaded(place / 'work_dirs' / TINY / 'iter_1.pth')['state_dict']
    assert all(saved[f'generator.{name}'].equal(w) for name, w in loaded(OFFICIAL).items())
    said = error_of(['train-mmengine', TINY, *begin, *NO_WORKERS], capsys)
    assert said.startswith(f'nlsn: {OFFICIAL} does not fit NLSN')


class Asking:
    """Pickled as a call."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call[0], self.call[1:]


def test_what_mmengine_pickles_of_losses_loads(tmp_path: Path) -> None:
    buffer = HistoryBuffer([1.0, 3.0], [1, 1])
    torch.save({'loss': buffer, 'eta': np.float64(2.5)}, tmp_path / 'state.pth')
    state = loaded(tmp_path / 'state.pth')
    assert state['loss'].mean() == 2.0
    assert state['loss'].statistics('max') == 3.0
    assert state['eta'] == 2.5


@pytest.mark.parametrize(
    'asked',
    [
        Asking(getattr, HistoryBuffer, '__init__'),
        Asking(getattr, np.ndarray, 'tofile'),
        Asking(getattr, np.ndarray, 'mean'),
        Asking(eval, "__import__('os').abort()"),
    ],
    ids=['another attribute', 'another class', 'a statistic of another class', 'a function'],
)
def test_nothing_else_may_be_asked_of_getattr(asked: Asking, tmp_path: Path) -> None:
    torch.save({'loss': asked}, tmp_path / 'state.pth')
    with pytest.raises(pickle.UnpicklingError):
        loaded(tmp_path / 'state.pth')


def test_a_checkpoint_that_would_run_code_is_one_line(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    torch.save({'state_dict': Asking(os.mkdir, 'executed')}, 'bad.pth')
    said = error_of(['train-mmengine', TINY, '--cfg-options', 'load_from=bad.pth', *NO_WORKERS], capsys)
    expected = r'nlsn: bad\.pth does not load: .*(unsupported|Unsupported) '
    assert re.match(expected, said)
    assert 'weights_only' not in said
    assert not Path('executed').exists()


def test_faulty_data_are_one_line(place: Path) -> None:
    for name in ('HR', 'LR'):
        (place / 'faulty' / name).mkdir(parents=True)
        (place / 'faulty' / name / 'a.png').write_bytes(b'')
    roots = [f'train_dataloader.dataset.dataroot_{key}=faulty/{name}' for key, name in (('gt', 'HR'), ('lq', 'LR'))]
    words = ['train-mmengine', TINY, '--cfg-options', *roots, 'train_dataloader.batch_size=1']
    done = run('-m', 'nlsn_plugin', *words, cwd=place, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == 'nlsn: faulty/HR/a.png is not an image, or a damaged one (0 bytes)'


@pytest.mark.parametrize(
    ('words', 'said'),
    [
        (['nlsn_x2c8b8_div2k'], f'nlsn: there is no config nlsn_x2c8b8_div2k: did you mean {TINY}?'),
        ([TINY, '--cfg-options', 'max_iters'], 'nlsn: --cfg-options max_iters: KEY=VALUE is expected'),
        (
            [TINY, '--amp', '--cfg-options', 'optim_wrapper.type=ApexOptimWrapper'],
            "nlsn: --amp: the config has optim_wrapper.type='ApexOptimWrapper': OptimWrapper is expected",
        ),
    ],
    ids=['config', 'option', 'amp'],
)
def test_mistakes_are_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(['train-mmengine', *words], capsys).startswith(said)


def test_stores_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'there is no .*gt\.lmdb \(dataroot_gt\)'):
        SuperResolutionDataset(str(tmp_path / 'gt.lmdb'), str(tmp_path / 'lq.lmdb'), 2, 32)


def test_an_lmdb_beside_a_folder_is_refused_with_what_to_do_in_a_config_too(workplace: Path, tmp_path: Path) -> None:
    store = workplace / 'datasets' / 'DIV2K' / 'DIV2K_train_HR_sub.lmdb'
    with pytest.raises(DataError, match=r'two LMDBs are expected, whose names end in \.lmdb'):
        SuperResolutionDataset(str(store), str(tmp_path), 2, 32)


def test_patches_are_cut_and_whole_images_are_not(workplace: Path) -> None:
    stores = workplace / 'datasets' / 'DIV2K'
    roots = str(stores / 'DIV2K_train_HR_sub.lmdb'), str(stores / 'DIV2K_train_LR_bicubic_X2_sub.lmdb')
    sample = SuperResolutionDataset(*roots, 2, 32)[0]
    assert sample['inputs'].shape == (3, 16, 16)
    assert sample['data_samples']['gt'].shape == (3, 32, 32)
    whole = SuperResolutionDataset(*roots, 2)[0]
    assert whole['data_samples']['gt'].shape == (3, 96, 96)
