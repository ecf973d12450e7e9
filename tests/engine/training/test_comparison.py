from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import TRAIN, experiment, make_short, run, write_options

from nlsn_plugin import NLSN
from nlsn_plugin.engine.training import comparison
from nlsn_plugin.engine.training.comparison import DETAIL, most_improved, table


def test_the_detail_is_where_the_second_image_gains_most() -> None:
    truth = np.zeros((150, 200, 3), np.uint8)
    first, second = truth + 3, truth + 3
    first[70 : 70 + DETAIL, 110 : 110 + DETAIL] = 40
    assert most_improved(first, second, truth) == (70, 110)


def test_an_image_smaller_than_the_detail_is_shown_from_its_corner() -> None:
    image = np.zeros((20, 30, 3), np.uint8)
    assert most_improved(image, image, image) == (0, 0)


def test_the_table_ends_with_the_gain() -> None:
    text = table('chelsea, x2', {'bicubic': {'psnr': 35.26, 'ssim': 0.916}, 'NLSN': {'psnr': 36.5, 'ssim': 0.938}})
    assert text.split('\n') == [
        '',
        'chelsea, x2       PSNR     SSIM',
        'bicubic          35.26   0.9160',
        'NLSN             36.50   0.9380',
        'NLSN - bicubic   +1.24  +0.0220',
    ]


def test_the_validation_images_may_lie_in_an_lmdb(place: Path, short: Path) -> None:
    of_training = write_options(place / 'read.yml', 'train_NLSN_x2', make_short)
    roots = yaml.safe_load(of_training.read_text())['datasets']['train']
    words = [f'datasets:val:{key}={roots[key]}' for key in ('dataroot_gt', 'dataroot_lq')]
    words += ['datasets:val:io_backend:type=lmdb', 'compare_with_bicubic=true', 'train:total_iter=1']
    done = run(TRAIN, '-opt', short, '--force_yml', *words, cwd=place)
    assert done.stdout.splitlines()[-1].startswith(f'Side by side: {experiment(place)}/comparison_')


def test_the_average_is_compared_with_bicubic(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    opt = yaml.safe_load(write_options(tmp_path / 'a.yml', 'train_NLSN_x2', make_short).read_text())
    models = tmp_path / 'models'
    models.mkdir()
    arguments = {key: value for key, value in opt['network_g'].items() if key != 'type'}
    net = NLSN(**arguments)
    params = net.state_dict()
    names = dict(net.named_parameters())
    average = {name: torch.zeros_like(w) if name in names else w for name, w in params.items()}
    torch.save({'params': params, 'params_ema': average}, models / 'net_g_latest.pth')
    for phase, dataset in opt['datasets'].items():
        dataset |= {'phase': phase, 'scale': 2}
    opt['path'] = {'models': str(models), 'experiments_root': str(tmp_path)}
    drawn = {}
    monkeypatch.setattr(comparison, 'draw', lambda images, figures, path: drawn.update(images))
    comparison.compare_with_bicubic(opt)
    assert np.ptp(drawn['NLSN'], axis=(0, 1)).max() == 0  # the average's weights are zero
