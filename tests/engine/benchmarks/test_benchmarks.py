"""The commands that compare with BasicSR, on little: that they measure what they say, not how fast it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import error_of, run, write_options

from nlsn_plugin import NLSN


def test_updates_and_the_moving_average_beside_basicsr(place: Path) -> None:
    def begin_with_weights(options: dict[str, Any]) -> None:
        options['train'].update(ema_decay=0.9)
        options['path']['pretrain_network_g'] = str(place / 'a.pth')
        torch.save(
            NLSN(**{name: value for name, value in options['network_g'].items() if name != 'type'}).state_dict(),
            place / 'a.pth',
        )

    options = write_options(place / 'a.yml', 'train_NLSN_x2', begin_with_weights)
    words = ['benchmark-training', '-opt', options, '--budget', 0.1, '--json', 'a.json']
    said = run('-m', 'nlsn_plugin', *words, cwd=place).stdout
    records = json.loads((place / 'a.json').read_text())['records']
    assert [(record['what'], record['form']) for record in records] == [
        (what, form)
        for what in ('update, NLSN_x2', 'moving average, NLSN_x2', "moving average, the paper's x2")
        for form in ('BasicSR', 'nlsn_plugin')
    ]
    assert all(record['runs'] >= 3 and record['milliseconds'] > 0 for record in records)
    assert records[1]['speedup'] == pytest.approx(records[0]['milliseconds'] / records[1]['milliseconds'])
    assert f'{records[1]["milliseconds"]:.4g}' in said
    assert not (place / 'experiments').exists()


def test_every_way_to_store_images_is_read(photographs: Path, tmp_path: Path) -> None:
    words = ['benchmark-loading', '--input', photographs, '--gt-size', 32, '--crop-size', 48, '--budget', 0.1]
    run('-m', 'nlsn_plugin', *words, '--json', 'a.json', cwd=tmp_path)
    records = {record['what']: record for record in json.loads((tmp_path / 'a.json').read_text())['records']}
    assert list(records) == [
        'png, whole images',
        'raw, whole images',
        'png, sub-images of 48 pixels',
        'raw, sub-images of 48 pixels',
    ]
    assert records['raw, whole images']['megabytes'] > records['png, whole images']['megabytes']
    assert [path.name for path in tmp_path.iterdir()] == ['a.json']


def test_what_cannot_be_measured(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.chdir(place)
    options = write_options(place / 'a.yml', 'train_NLSN_x2')
    words = ['benchmark-training', '-opt', str(options)]
    assert 'there is no moving average to measure' in error_of(words, capsys)
    words += ['--budget', '0.1', '--force_yml', 'train:ema_decay=0.9']
    said = error_of([*words, 'train:optim_g:type=AdamW'], capsys)
    assert "BasicSR's own model, to compare with, cannot take these options: optimizer AdamW" in said
    said = error_of([*words, 'datasets:train:num_worker_per_gpu=0'], capsys)
    assert "BasicSR's own loader takes no num_worker_per_gpu 0" in said
    assert ', more than the ' in error_of([*words, 'datasets:train:batch_size_per_gpu=100000'], capsys)


def test_an_image_at_which_basicsr_fails_is_named(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_from_folders(options: dict[str, Any]) -> None:
        train = {'dataroot_gt': 'hr', 'dataroot_lq': 'lr', 'io_backend': {'type': 'disk'}, 'batch_size_per_gpu': 1}
        options['datasets']['train'].update(train, num_worker_per_gpu=1)
        options['train'].update(ema_decay=0.9)

    monkeypatch.chdir(place)
    for folder, edge in (('hr', 97), ('lr', 49)):
        (place / folder).mkdir()
        cv2.imwrite(f'{folder}/a.png', np.zeros((edge, edge, 3), np.uint8))
    options = write_options(place / 'a.yml', 'train_NLSN_x2', read_from_folders)
    said = error_of(['benchmark-training', '-opt', str(options), '--budget', '0.1'], capsys)
    assert 'a.png is 97x97, and lr/a.png 49x49: the former should be 2 times as large' in said


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--crop-size', '192', '48'], '--crop-size 48 is less than --gt-size 96'),
        (['--gt-size', '0'], '--gt-size=0 is not allowed: a whole number of at least 1 is expected'),
        (['--gt-size', '25'], '--gt-size 25 is not divisible by --scale 2'),
        (['--crop-size', '100', '--scale', '4'], '--crop-size 100 is no multiple of 8, twice the scale'),
        (['--gt-size', '100', '--crop-size', '100'], 'camera.png has 102x96 pixels at scale 2: a patch has 100x100'),
    ],
)
def test_what_cannot_be_loaded_is_said_before_the_work(
    words: list[str], message: str, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in error_of(['benchmark-loading', '--input', str(photographs), *words], capsys)
