"""Files and folders that commands write: what cannot be written is said before the work."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import GOLDEN, error_of, write_options

WEIGHTS = str(GOLDEN / 'nlsn_x2_small_official_state_dict.pt')
NETWORK = ['--net', 'NLSN', WEIGHTS, 'num_feat=16', 'num_block=8']
BUCKETS = ['show-buckets', 'photographs/coffee.png', '--at', '1', '1', *NETWORK, '--output']
NO_FOLDER = 'there is no folder none'
NO_FOLDER_EITHER = 'cannot be written to: Not a directory'


@pytest.mark.parametrize(
    ('words', 'said'),
    [
        (['benchmark-attention', '--json', 'none/a.json'], NO_FOLDER),
        (['benchmark-attention', '--network', '8', '8', '--json', 'none/a.json'], NO_FOLDER),
        (['benchmark-attention', '--suite', 'n', '--plot', 'none/a.png'], NO_FOLDER),
        (['benchmark-attention', '--suite', 'n', '--plot', 'a.foo'], 'a.foo: the ending of a drawing is expected: '),
        (['benchmark-training', '-opt', 'a.yml', '--json', 'none/a.json'], NO_FOLDER),
        (['benchmark-loading', '--input', 'photographs', '--json', 'none/a.json'], NO_FOLDER),
        ([*BUCKETS, 'none/a.png'], NO_FOLDER),
        ([*BUCKETS, 'photographs'], 'photographs: the ending of a drawing is expected: '),
        (['options', '--json-schema', 'none/a.json'], NO_FOLDER),
        (['options', '--json-schema', 'a.yml'], 'a.yml: a name that ends in .json is expected'),
        (['benchmark-attention', '--json', 'a.yml'], 'a.yml: a name that ends in .json is expected'),
        (['benchmark-attention', '--suite', 'n', '--plot', 'a.pgf'], 'a.pgf: the ending of a drawing is expected: '),
        (['benchmark-attention', '--budget', '-1'], '--budget -1: a finite number of seconds above 0'),
        (['benchmark-attention', '--budget', 'inf'], '--budget inf: a finite number of seconds above 0'),
        ([*BUCKETS, 'photographs/coffee.png'], 'photographs/coffee.png is there already: --force overwrites it'),
        ([*BUCKETS, 'photographs/coffee.png', '--force'], '--output photographs/coffee.png is the image itself'),
        (
            ['prepare', '--input', 'photographs', '--output', 'b', '--step', '0'],
            '--step=0 is not allowed: a whole number',
        ),
        (['prepare', '--input', 'photographs', '--output', 'b', '--name', 'a/b'], '--name a/b: a name without folders'),
        (['gallery', 'pairs', '-o', 'none/a.html'], NO_FOLDER),
        (['gallery', 'pairs', '-o', 'folder.html', '--force'], 'folder.html is a folder: name the file in it'),
        (['convert', WEIGHTS, '/proc/a.pth'], '/proc/a.pth cannot be written: '),
        (['benchmark', '--sets', 'photographs', '--output', 'a.yml'], f'the folder a.yml {NO_FOLDER_EITHER}'),
        (['benchmark', '--sets', 'photographs', '--output', 'a.yml/b'], f'the folder a.yml/b {NO_FOLDER_EITHER}'),
        (['paper', 'table2', '--budget', 'smoke', '--output', 'a.yml'], f'the folder a.yml {NO_FOLDER_EITHER}'),
    ],
    ids=lambda value: ' '.join(value).replace(WEIGHTS, 'WEIGHTS') if isinstance(value, list) else '',
)
def test_places_that_cannot_be_written_are_told_before_any_work(
    place: Path,
    photographs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(place)
    write_options(place / 'a.yml', 'train_NLSN_x2', lambda options: options['train'].update(ema_decay=0.9))
    Path('photographs').symlink_to(photographs)
    Path('folder.html').mkdir()
    for name in ('pairs/a.png', 'pairs/a_x2.png'):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(b'nothing that could be shown')
    before = sorted(place.iterdir())
    assert error_of(words, capsys).startswith(f'nlsn: {said}')
    assert sorted(place.iterdir()) == before
