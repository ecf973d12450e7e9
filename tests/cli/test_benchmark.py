"""`nlsn benchmark` as it is typed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import GOLDEN, ROOT, error_of, run

from nlsn_plugin.cli import main
from nlsn_plugin.engine.evaluation.contestants import from_option_file, last_saved

WEIGHTS = GOLDEN / 'nlsn_x2_small_official_state_dict.pt'
NETWORK = ['--net', 'NLSN', str(WEIGHTS), 'num_feat=16', 'num_block=8']


def test_an_option_file_and_a_network_by_its_words_side_by_side(
    place: Path, small_options: Callable[..., Path]
) -> None:
    def change(options: dict) -> None:
        options['network_g'].update(num_feat=16, n_hashes=4, chunk_size=144)
        options['path'] = {'pretrain_network_g': str(WEIGHTS)}

    options = small_options('test_NLSN_x2', change)
    words = ['-opt', options, *NETWORK, 'label=again', '--protocol', 'matlab', '--no-cost', '--compare-with-paper']
    result = run(ROOT / 'tools' / 'benchmark.py', *words, '--n-hashes', 2, '--visuals', 1, cwd=place)
    assert 'not there, and left out: Set14, B100, Urban100, Manga109' in result.stdout
    assert '| scale   | network   | Set5' in result.stdout
    assert 'NLSN - NLSN (paper)' in result.stdout
    assert 'Set5 x2' in result.stderr  # the bar
    output = place / 'results' / 'benchmark'
    made = sorted(path.name for path in output.iterdir())
    assert made == [
        'images',
        'index.html',
        'records.jsonl',
        'results.json',
        'table.csv',
        'table.md',
        'table.tex',
        'visuals',
    ]
    results = json.loads((output / 'results.json').read_text())
    assert results['command'].startswith('nlsn benchmark -opt')
    assert results['protocol']['name'] == 'matlab'
    assert results['sets'][0]['lr'] == 'datasets/benchmark/Set5/LR_bicubic/X2'
    bicubic, by_file, by_words = results['figures']
    assert [figure['network'] for figure in (bicubic, by_file, by_words)] == ['bicubic', 'NLSN', 'again']
    assert by_file['psnr_y'] == by_words['psnr_y']
    assert {network['n_hashes'] for network in results['networks']} == {2}


def test_an_option_file_for_training_gives_what_came_of_it(
    place: Path, small_options: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    models = place / 'experiments' / 'mine_x2' / 'models'
    models.mkdir(parents=True)
    recipe = from_option_file(small_options('train_NLSN_x2', lambda options: options.update(name='mine_x2')))
    assert recipe.label == 'mine'
    assert recipe.weights == str(models / 'net_g_latest.pth')
    assert recipe.param_key == 'params_ema'
    assert recipe.arguments['num_feat'] == 8


def test_what_a_training_saved_last_is_taken(tmp_path: Path) -> None:
    assert last_saved(tmp_path).name == 'net_g_latest.pth'
    for time, label in enumerate(['latest', '8', '12', 'best', 'ema_14']):  # a run that had ended, and went on
        path = tmp_path / f'net_g_{label}.pth'
        path.touch()
        os.utime(path, (time, time))
    assert last_saved(tmp_path).name == 'net_g_12.pth'
    os.utime(tmp_path / 'net_g_latest.pth', (2, 2))  # as old as that of 12: it ended again
    assert last_saved(tmp_path).name == 'net_g_latest.pth'


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--tile-overlap', '8', *NETWORK], '--tile-overlap is for tiles: add --tile, or leave it out'),
        (['--tile', '16', *NETWORK], '--tile 16 is not more than --tile-overlap 16'),
        (['--seeds', '3'], '--seeds is for networks: add -opt FILE or --net TYPE WEIGHTS'),
        (['--self-ensemble'], '--self-ensemble is for networks'),
        (['--no-cost', '--cost-size', '32', '32', *NETWORK], '--cost-size and --no-cost: leave one out'),
        (['--scale', '2', '3', *NETWORK], '--net takes one scale'),
        (['--scale', '3', *NETWORK, 'upscale=2'], 'none of the networks has --scale 3: leave it out'),
        ([*NETWORK, *NETWORK], 'two networks are called NLSN at x2: name one otherwise, by label=...'),
        ([*NETWORK, 'label=bicubic'], 'a network cannot be called bicubic'),
        (['--seeds', '0', *NETWORK], '--seeds=0 is not allowed'),
        (
            ['--protocol', 'vdsr', '--lr', 'noisy'],
            '--protocol vdsr computes bicubic from the HR images, not from --lr',
        ),
        (['--protocol', 'vdrs'], 'there is no protocol vdrs: did you mean vdsr?'),
        (['--compare-with-paper', 'RCAM', '--sets', 'Set5'], 'Table 1 has no RCAM: did you mean RCAN?'),
        (['--sets', 'Set55'], 'there is no set Set55: did you mean Set5?'),
        (['-opt', 'train_NLSN_x2'], 'experiments/NLSN_x2/models/net_g_latest.pth'),
        (['-opt', 'test_NLSN_x2', '--scale', '3'], '--scale comes from the option files'),
        (['-opt', 'train_NLSN_x2', '-opt', 'train_NLSN_x2'], 'two networks are called NLSN at x2'),
    ],
    ids=lambda value: ' '.join(value).replace(str(WEIGHTS), 'WEIGHTS') if isinstance(value, list) else '',
)
def test_mistakes_are_one_line(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    monkeypatch.chdir(place)
    assert message in error_of(['benchmark', *words], capsys)
    assert not (place / 'results').exists()


def test_names_that_are_no_utf_8_are_shown_with_marks(
    tmp_path: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, output = (tmp_path / os.fsdecode(name) for name in (b's\xe9t', b'o\xe9t'))
    try:
        folder.mkdir()
    except OSError:
        pytest.skip('file names are UTF-8 here')
    shutil.copy(photographs / 'coffee.png', folder / os.fsdecode(b'caf\xe9.png'))
    options = ['--no-cost', '--sets', str(folder), '--output', str(output)]
    monkeypatch.setenv('PYTHONIOENCODING', 'utf-8:strict')
    for _ in range(2):  # the second time of what was kept
        done = run('-m', 'nlsn_plugin', 'benchmark', *NETWORK, *options, cwd=tmp_path)
        assert done.stdout.endswith(f'Side by side: {tmp_path}/o\ufffdt/index.html\n')
    assert 's\ufffdt, caf\ufffd, x2</h2>' in (output / 'index.html').read_text(encoding='utf-8')
    for name in ('table.md', 'table.tex', 'table.csv'):
        assert 's\ufffdt' in (output / name).read_text(encoding='utf-8')
    results = json.loads((output / 'results.json').read_text(encoding='utf-8'))
    assert all((output / image['file']).is_file() for image in results['images'])
    main(['gallery', str(output)])
    assert (output / 'before_after.html').is_file()
