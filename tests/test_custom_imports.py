"""Classes of a user's own, by option files and on the command line: the example of docs/own_classes.md."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import pytest
import torch
from conftest import TRAIN, error_of, experiment, last_line, of_pairs, run, write_pairs
from pages import option_files

from nlsn_plugin import custom_imports

PAGE = 'docs/own_classes.md'


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Option files and module of the page, in a folder that is not the working directory; there are images in this."""
    folder = tmp_path / 'own'
    folder.mkdir()
    option_files(PAGE, folder)
    write_pairs(tmp_path, 4)
    return folder


SHORT = [
    *of_pairs('train'), *of_pairs('val'), 'compare_with_bicubic=false', 'sample_data=~', 'datasets:train:gt_size=32',
    'datasets:train:batch_size_per_gpu=2', 'train:total_iter=2', 'val:val_freq=2', 'logger:print_freq=1',
    'logger:save_checkpoint_freq=1',
]  # fmt: skip


def test_a_network_and_a_model_of_ones_own_are_trained_measured_and_converted(own: Path, tmp_path: Path) -> None:
    options = own / 'train_SmallSR_x2.yml'
    trained = run(TRAIN, '-opt', options, '--force_yml', *SHORT, cwd=tmp_path)
    assert 'Model [NoisyModel] is created.' in trained.stderr
    assert 'Network [SmallSRWithNLSA] is created.' in trained.stderr
    resumed = run(TRAIN, '-opt', options, '--auto_resume', '--force_yml', *SHORT, 'train:noise=0.05', cwd=tmp_path)
    assert 'train: noise was 0.02 until 2.state, and is 0.05 from now on' in resumed.stdout

    nlsn = ('-m', 'nlsn_plugin')
    benchmark = (*nlsn, 'benchmark', '-opt', options, '--sets', f'own={tmp_path / "HR"}', '--output', 'measured')
    measured = run(*benchmark, '--cost-size', 16, 16, cwd=tmp_path)
    assert 'SmallSR' in measured.stdout
    assert 'memory could not be measured' not in measured.stderr  # in a process that has to import the module too
    assert 'were measured before' in run(*benchmark, '--no-cost', cwd=tmp_path).stdout
    module = own / 'small_sr.py'
    module.write_text(module.read_text().replace("mode='bicubic'", "mode='nearest'"))
    assert '4 of 8 were measured before' in run(*benchmark, '--no-cost', cwd=tmp_path).stdout  # bicubic alone
    weights = experiment(tmp_path, 'SmallSR_x2') / 'models' / 'net_g_latest.pth'
    run(*nlsn, 'convert', weights, own / 'mine.safetensors', '-opt', options, cwd=tmp_path)

    enlarge = [*nlsn, 'upscale', tmp_path / 'HR' / '0.png', '--weights', own / 'mine.safetensors', '-o', own]
    refused = run(*enlarge, cwd=own, check=False)
    assert 'no network SmallSR' in refused.stderr  # a file of weights imports nothing, whatever it says
    run(*enlarge, '--import', 'small_sr', cwd=own)
    assert cv2.imread(str(own / '0_x2.png')).shape == (128, 128, 3)


def test_a_key_that_a_model_asks_for_and_the_file_lacks_is_one_line(own: Path, tmp_path: Path) -> None:
    options = own / 'train_SmallSR_x2.yml'
    options.write_text(options.read_text().replace('  noise:', '  warmup_iter: 1 #'))
    failed = run(TRAIN, '-opt', options, '--force_yml', *SHORT, cwd=tmp_path, check=False)
    assert failed.returncode == 1
    assert last_line(failed.stderr) == f'nlsn: {options}: train: lacks the key noise, which NoisyModel reads'
    assert 'Traceback' not in failed.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_a_model_that_needs_a_gpu_says_so(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = own / 'train_RealNLSN_x2.yml'
    data = ['io_backend:type=disk', 'dataroot_gt=HR', 'meta_info=order.txt', 'num_worker_per_gpu=0']
    words = [f'datasets:train:{entry}' for entry in data]
    failed = run(
        TRAIN, '-opt', options, '--force_yml', *words, 'datasets:train:batch_size_per_gpu=2', cwd=tmp_path, check=False
    )
    assert last_line(failed.stderr).startswith('nlsn: RealESRNetModel needs a GPU: ')


MISTAKES = {
    'nothing': 'there is no module nothing, installed or in ',
    'small_sr.py': "'small_sr.py' is no name of a module: for my/nets.py write my.nets",
    './small_sr': "'./small_sr' is no name of a module: ",
    'broken': 'importing broken fails: ',
    'lacking': "importing lacking fails: No module named 'absent'",
    'package.nothing': 'there is no module package.nothing, ',
}


@pytest.mark.parametrize(('name', 'message'), MISTAKES.items())
def test_a_module_that_cannot_be_imported_is_one_line(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / 'broken.py').write_text('import = 1')
    (tmp_path / 'lacking.py').write_text('import absent')
    (tmp_path / 'package').mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', list(sys.path))
    assert error_of(['modules', 'EDSR', '--import', name], capsys).startswith(f'nlsn: --import: {message}')


def test_what_is_installed_goes_before_what_a_folder_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ('installed', 'own'):
        (tmp_path / place).mkdir()
        (tmp_path / place / 'both_have_it.py').write_text(f'place = {place!r}')
    monkeypatch.setattr(sys, 'path', [*sys.path, str(tmp_path / 'installed')])
    monkeypatch.setattr(custom_imports, 'imported', [])
    custom_imports.import_modules(['both_have_it'], 'custom_imports', [tmp_path / 'own'])
    assert sys.modules.pop('both_have_it').place == 'installed'
