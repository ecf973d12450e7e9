"""The commands that compare with BasicSR, on little: that they measure what they say, not how fast it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import error_of, run, write_options


def test_updates_and_the_moving_average_beside_basicsr(place: Path) -> None:
    options = write_options(place / 'a.yml', 'train_NLSN_x2', lambda options: options['train'].update(ema_decay=0.9))
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
    assert 'there is no moving average to measure' in error_of(['benchmark-training', '-opt', str(options)], capsys)
    words = ['benchmark-loading', '--input', str(place), '--crop-size', '48']
    assert '--crop-size 48 is less than --gt-size 96' in error_of(words, capsys)
