from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from basicsr.models.sr_model import SRModel
from conftest import TRAIN, experiment, run, write_options
from torchvision.transforms.functional import normalize

from nlsn_plugin import NLSN, NLSNModel
from nlsn_plugin.engine.training.resume_check import newest
from nlsn_plugin.engine.training.validation import image_path, measure, undone
from nlsn_plugin.errors import DataError
from nlsn_plugin.metrics.protocols import mean
from nlsn_plugin.models.checkpoint import load_safely


def test_an_image_that_equals_its_truth_does_not_make_the_mean_infinite(tmp_path: Path, photographs: Path) -> None:
    """A network of zeros gives its mean colour everywhere; one of two photographs is of that colour."""
    hr, lr = tmp_path / 'HR', tmp_path / 'LR'
    for folder in (hr, lr):
        folder.mkdir()
    colour = np.round(255 * np.array([0.4040, 0.4371, 0.4488])).astype(np.uint8)
    truths = {
        'plain': np.tile(colour, (48, 48, 1)),
        'photograph': cv2.imread(str(photographs / 'coffee.png'))[:48, :48],
    }
    for name, truth in truths.items():
        cv2.imwrite(str(hr / f'{name}.png'), truth)
        cv2.imwrite(str(lr / f'{name}.png'), truth[::2, ::2])

    def change(options: dict) -> None:
        dataset = {**options['datasets']['test_1'], 'dataroot_gt': 'HR', 'dataroot_lq': 'LR', 'filename_tmpl': '{}'}
        options['datasets'] = {'test_1': {**dataset, 'name': 'pair'}}
        options['path']['pretrain_network_g'] = 'zeros.pth'

    options = write_options(tmp_path / 'test.yml', 'test_NLSN_x2', change)
    network = NLSN(num_feat=8, num_block=8, n_hashes=2, chunk_size=64)
    zeros = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
    torch.save({'params': {**network.state_dict(), **zeros}}, tmp_path / 'zeros.pth')
    said = run('-m', 'nlsn_plugin', 'test', '-opt', options, cwd=tmp_path).stderr
    psnr = float(re.search(r'# psnr: (\S+)', said)[1])
    difference = truths['photograph'][2:-2, 2:-2].astype(float) - colour
    luma = difference @ [24.966, 128.553, 65.481] / 255
    assert psnr == pytest.approx(20 * np.log10(255 / np.sqrt((luma**2).mean())), abs=1e-3)
    assert 'pair: 1 results equal their ground truth, and are left out of the mean PSNR' in said


def test_means_do_not_depend_on_the_order() -> None:
    values = [1e16, 1.0, -1e16, 3.0]
    assert mean(values) == mean(values[::-1]) == 1.0
    assert mean([float('inf'), 3.0]) == 3.0
    assert mean([float('inf')]) == float('inf')


def test_images_of_several_sets_have_folders_of_their_own() -> None:
    opt = {'is_train': True, 'path': {'visualization': 'v'}, 'datasets': {'train': {}, 'val': {}}}
    assert image_path(opt, 'a/b.png', 5, 'Set5') == Path('v/b/b_5.png')  # as BasicSR has it
    opt['datasets']['val_2'] = {}
    assert image_path(opt, 'a/b.png', 5, 'Set5') == Path('v/Set5/b/b_5.png')


def test_an_image_that_cannot_be_written_ends_the_run_saved(place: Path, short: Path) -> None:
    in_the_way = experiment(place) / 'visualization' / 'coffeex2'
    in_the_way.parent.mkdir(parents=True)
    in_the_way.touch()
    ended = run(TRAIN, '-opt', short, '--force_yml', 'val:save_img=true', cwd=place, check=False)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == (
        f'nlsn: {in_the_way}/coffeex2_6.png could not be saved: File exists; saved at iteration 6, '
        '--auto_resume goes on from there'
    )
    assert newest(experiment(place)) == '6.state'
    in_the_way.unlink()  # and what was not measured is
    words = ['-opt', short, '--auto_resume', '--force_yml', 'val:save_img=true', 'train:total_iter=7']
    run(TRAIN, *words, cwd=place)
    lines = map(json.loads, (experiment(place) / 'log.jsonl').read_text().splitlines())
    assert [line['iter'] for line in lines if line['kind'] == 'validation'] == [6, 7]
    assert (in_the_way / 'coffeex2_6.png').is_file()


OWN_METRIC = """
import sys
import cv2
import nlsn_plugin
from basicsr.utils.registry import METRIC_REGISTRY
from nlsn_plugin.cli import main

@METRIC_REGISTRY.register()
def alone(img):
    return img.mean()

@METRIC_REGISTRY.register()
def own(img, border, img2):
    cv2.cvtColor(img[:0], cv2.COLOR_BGR2GRAY)

main(sys.argv[1:])
"""


def test_what_is_due_to_be_saved_is_saved_before_validation(place: Path, short: Path) -> None:
    """Which may take longer than a scheduler waits."""
    kills = OWN_METRIC.replace('return img.mean()', 'import os; os.kill(os.getpid(), 9)')
    words = ['-opt', short, '--force_yml', 'logger:save_checkpoint_freq=6']
    killed = run('-c', kills, 'train', *words, 'val:metrics:alone:type=alone', cwd=place, check=False)
    assert killed.returncode == -9
    assert newest(experiment(place)) == '6.state'
    run(TRAIN, *words, 'train:total_iter=7', '--auto_resume', cwd=place)
    lines = map(json.loads, (experiment(place) / 'log.jsonl').read_text().splitlines())
    assert [line['iter'] for line in lines if line['kind'] == 'validation'] == [6, 7]


OWN_VALIDATION = """
import sys
import nlsn_plugin
from basicsr.utils.registry import MODEL_REGISTRY
from nlsn_plugin.cli import main
from nlsn_plugin.models.nlsn_model import NLSNModel

@MODEL_REGISTRY.register()
class Own(NLSNModel):
    def nondist_validation(self, dataloader, current_iter, tb_logger, save_img):
        name = dataloader.dataset.opt['name']
        self._initialize_best_metric_results(name)
        self.metric_results = {'psnr': -float(current_iter)}
        self._update_best_metric_result(name, 'psnr', -float(current_iter), current_iter)

main(sys.argv[1:])
"""


def test_the_best_by_a_models_own_validation_is_kept(place: Path, short: Path) -> None:
    words = ['train', '-opt', short, '--force_yml', 'model_type=Own']
    run('-c', OWN_VALIDATION, *words, cwd=place)
    assert load_safely(experiment(place) / 'models' / 'net_g_best.pth')['iter'] == 6


def test_a_metric_that_fails_ends_the_run_saved(place: Path, short: Path) -> None:
    words = ['train', '-opt', short, '--force_yml', 'val:metrics:alone:type=alone', 'logger:save_checkpoint_freq=100']
    words += ['val:metrics:own:type=own', 'val:metrics:own:border=2']
    ended = run('-c', OWN_METRIC, *words, cwd=place, check=False)
    assert ended.returncode == 1
    said = r'nlsn: .*\.png: own fails: OpenCV.*; saved at iteration 6, --auto_resume goes on from there$'
    assert re.match(said, ended.stderr.splitlines()[-1])
    assert newest(experiment(place)) == '6.state'


@pytest.mark.parametrize('values', [[0.25], [0.1, 0.2, 0.3]])
def test_what_is_measured_is_not_normalised(values: list[float]) -> None:
    images = torch.rand(1, 3, 5, 6)
    dataset = SimpleNamespace(opt={'mean': values, 'std': values[::-1]})
    assert undone(dataset)(normalize(images, values, values[::-1])).allclose(images, atol=1e-6)
    assert undone(SimpleNamespace(opt={}))(images) is images


def test_a_lack_of_memory_in_validation_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted() -> None:
        raise RuntimeError('DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes')

    sample = {'lq': torch.empty(1, 3, 20, 30), 'lq_path': ['a.png']}
    for kind, tile, advice in (
        (NLSNModel, None, 'try val: tile: 10'),
        (NLSNModel, 16, 'try val: tile: 8'),
        (SRModel, None, 'NLSNModel takes val: tile'),
    ):
        model = kind.__new__(kind)
        model.opt, model.feed_data, model.test = {'val': {'tile': tile}}, lambda data: None, exhausted
        with pytest.raises(DataError, match=rf'^a\.png: too little memory for 30x20 pixels; {advice}$'):
            measure(model, sample, lambda images: images, {}, 1, 'a')

    def broken() -> None:
        raise RuntimeError('a defect')

    model.test = broken
    with pytest.raises(RuntimeError, match=r'^a defect$'):
        measure(model, sample, lambda images: images, {}, 1, 'a')


def test_images_without_a_truth_are_named_where_a_metric_needs_one(tmp_path: Path, photographs: Path) -> None:
    def change(options: dict) -> None:
        dataset = {'name': 'alone', 'type': 'SingleImageDataset', 'dataroot_lq': str(photographs)}
        options['datasets'] = {'test_1': {**dataset, 'io_backend': {'type': 'disk'}}}
        options['path']['pretrain_network_g'] = 'weights.pth'

    options = write_options(tmp_path / 'test.yml', 'test_NLSN_x2', change)
    torch.save(NLSN(num_feat=8, num_block=8, n_hashes=2, chunk_size=64).state_dict(), tmp_path / 'weights.pth')
    ended = run('-m', 'nlsn_plugin', 'test', '-opt', options, cwd=tmp_path, check=False)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].endswith('.png has no ground truth, with which calculate_psnr compares')
