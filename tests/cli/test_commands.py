"""The real command lines, in processes of their own, on real LMDBs: prepare, train, validate, save, resume, test."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import pytest
import torch
from conftest import GOLDEN, ROOT, run

TRAIN, TEST = ROOT / 'tools' / 'train.py', ROOT / 'tools' / 'test.py'


def test_train_validate_save_resume_and_test(place: Path, small_options) -> None:
    train = small_options('train_NLSN_x2', lambda options: options['train'].update(ema_decay=0.9))
    first = run(TRAIN, '-opt', train, cwd=place)

    experiment = place / 'experiments' / 'NLSN_x2'
    for iteration in ('10', '20', 'latest'):
        saved = torch.load(experiment / 'models' / f'net_g_{iteration}.pth', weights_only=True)
        assert set(saved) == {'params', 'params_ema'}
    assert sorted(path.name for path in (experiment / 'training_states').iterdir()) == ['10.state', '20.state']
    assert len(re.findall(r'# psnr: \d+\.\d+', first.stderr)) >= 2
    assert len(re.findall(r'eta: .* l_pix: ', first.stderr)) == 4
    assert 'dataroot_gt' not in first.stderr  # the listing of all options is in the log file alone
    (log,) = experiment.glob('train_*.log')
    assert 'dataroot_gt: datasets/DIV2K/DIV2K_train_HR_sub.lmdb' in log.read_text()

    more = run(TRAIN, '-opt', train, '--auto_resume', '--force_yml', 'train:total_iter=30', cwd=place)
    assert 'Resuming training from epoch' in more.stderr
    assert 'iter: 20.' in more.stderr
    assert re.search(r'iter: +25,', more.stderr)
    assert not re.search(r'iter: +15,', more.stderr)
    resumed = torch.load(experiment / 'training_states' / '30.state', weights_only=True)
    assert resumed['optimizers'][0]['state'][0]['step'] == 30
    assert list(place.glob('experiments/*')) == [experiment]

    weights = experiment / 'models' / 'net_g_30.pth'

    def only_set5(options):
        options['datasets'] = {'test_1': options['datasets']['test_1']}
        options['path']['pretrain_network_g'] = str(weights)

    tested = run(TEST, '-opt', small_options('test_NLSN_x2', only_set5), cwd=place)
    assert re.search(r'Validation Set5\n\t # psnr: \d+\.\d+.*\n\t # ssim: 0\.\d+', tested.stderr)
    results = place / 'results' / 'test_NLSN_x2' / 'visualization' / 'Set5'
    assert cv2.imread(str(results / 'coffeex2_test_NLSN_x2.png')).shape == (120, 96, 3)
    assert 'Best' not in tested.stderr  # of one there is no best

    again = run(TEST, '-opt', small_options('test_NLSN_x2', only_set5), cwd=place)
    assert 'images of an earlier test in ' in again.stdout
    assert [path.name for path in (place / 'results').iterdir()] == ['test_NLSN_x2']
    run(TEST, '-opt', small_options('test_NLSN_x2', only_set5), '--archive', cwd=place)
    kept = next((place / 'results').glob('test_NLSN_x2_archived_*'))
    assert (kept / 'visualization' / 'Set5' / 'coffeex2_test_NLSN_x2.png').exists()
    assert (results / 'coffeex2_test_NLSN_x2.png').exists()


def test_the_authors_weights_are_tested_with_no_other_key(place: Path, small_options) -> None:
    def change(options):
        options['datasets'] = {'test_1': options['datasets']['test_1']}
        options['network_g'].update(num_feat=16, n_hashes=4, chunk_size=144)
        options['path'] = {'pretrain_network_g': str(GOLDEN / 'nlsn_x2_small_official_state_dict.pt')}

    tested = run(TEST, '-opt', small_options('test_NLSN_x2', change), cwd=place)
    assert re.search(r'# psnr: \d+\.\d+', tested.stderr)


def test_many_weights_that_do_not_match_are_listed_on_the_console(place: Path, small_options) -> None:
    def change(options):
        options['datasets'] = {'test_1': options['datasets']['test_1']}
        options['network_g'].update(num_feat=16, num_block=16)
        options['path'] = {
            'pretrain_network_g': str(GOLDEN / 'nlsn_x2_small_official_state_dict.pt'),
            'strict_load_g': False,
        }

    tested = run(TEST, '-opt', small_options('test_NLSN_x2', change), cwd=place)
    count = re.search(r'(\d+) entries did not match and were left as they were:', tested.stderr)
    assert count
    assert int(count[1]) > 12
    assert len(
        re.findall(r'^  .*(?:the file has none|the network has none|in the network)$', tested.stderr, re.M)
    ) == int(count[1])


def test_preparing_test_data_takes_no_sub_image_options(tmp_path: Path) -> None:
    words = ['prepare', '--input', 'a', '--output', 'b', '--test', '--crop-size', '48']
    result = run('-m', 'nlsn_plugin', *words, cwd=tmp_path, check=False)
    assert result.returncode == 1
    assert result.stderr == 'nlsn: --crop-size is for training data: leave it or --test out\n'


def test_the_quickstart_ends_with_figures_and_a_picture(tmp_path: Path, small_options) -> None:
    options = small_options('quickstart_NLSN_x2', lambda options: options['train'].update(total_iter=4))
    result = run('-m', 'nlsn_plugin', 'train', '-opt', options, cwd=tmp_path)
    lines = result.stdout.splitlines()
    title = lines.index(next(line for line in lines if line.startswith('chelsea, x2')))
    assert lines[title].split() == ['chelsea,', 'x2', 'PSNR', 'SSIM']
    bicubic, network, gain = (line.split() for line in lines[title + 1 : title + 4])
    assert bicubic == ['bicubic', '35.26', '0.9160']
    assert network[0] == 'NLSN'
    assert float(gain[-2]) == pytest.approx(float(network[1]) - float(bicubic[1]), abs=0.011)
    picture = tmp_path / lines[-1].removeprefix('Side by side: ')
    assert picture == tmp_path / 'experiments' / 'quickstart_NLSN_x2' / 'comparison_chelsea.png'
    height, width = cv2.imread(str(picture)).shape[:2]
    assert height > 500
    assert width > 1000


def test_a_users_mistake_is_one_line_on_stderr_and_status_1(tmp_path: Path) -> None:
    result = run(TRAIN, '-opt', 'options/train_NLSN_x2.yml', cwd=tmp_path, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith('nlsn: ')
    assert result.stderr.count('\n') == 1
    assert 'there is no datasets/DIV2K/DIV2K_train_HR_sub.lmdb (datasets: train: dataroot_gt)' in result.stderr


def test_help_lists_the_commands(tmp_path: Path) -> None:
    text = run('-m', 'nlsn_plugin', '--help', cwd=tmp_path).stdout
    assert all(command in text for command in ('train', 'test', 'prepare', 'install-basicsr'))


def test_the_run_that_makes_the_sample_data_draws_as_those_that_find_them(tmp_path: Path) -> None:
    weights = []
    for name in ('makes', 'finds'):
        words = ['--force_yml', f'name={name}', 'train:total_iter=1', 'val=none', 'compare_with_bicubic=false']
        run(TRAIN, '-opt', 'quickstart_NLSN_x2', *words, cwd=tmp_path)
        path = tmp_path / 'experiments' / name / 'models' / 'net_g_latest.pth'
        weights.append(torch.load(path, weights_only=True)['params'])
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
