"""Runs gone on with, refused, starved of disk, fed with damaged data: in processes of their own."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch
from conftest import TRAIN, experiment, limited, run
from warm import start

from nlsn_plugin.engine.training.folders import archive
from nlsn_plugin.engine.training.journal import Journal
from nlsn_plugin.engine.training.resume_check import compare, newest, result
from nlsn_plugin.models.checkpoint import load_safely


def said(process: subprocess.CompletedProcess[str]) -> str:
    """The last line on stderr."""
    return process.stderr.strip().splitlines()[-1]


def test_a_damaged_state_is_passed_over_and_said(ran: Path, short: Path) -> None:
    place = ran
    expected = result(experiment(place))
    states, models = experiment(place) / 'training_states', experiment(place) / 'models'
    whole = (states / '12.state').read_bytes()
    (states / '12.state').write_bytes(whole[: len(whole) // 2])
    (models / 'net_g_8.pth').write_bytes(b'')
    resumed = run(TRAIN, '-opt', short, '--auto_resume', cwd=place)
    assert 'passed over' in resumed.stdout
    assert '12.state does not load' in resumed.stdout
    assert 'net_g_8.pth does not load' in resumed.stdout
    assert 'iter: 4.' in resumed.stderr
    compare(result(experiment(place)), expected)


@pytest.mark.parametrize('how', ['from an older state', 'past a damaged one'])
def test_what_a_run_leaves_behind_is_neither_kept_for_the_newest_nor_gone_on_with(
    ran: Path, short: Path, how: str
) -> None:
    states, models = experiment(ran) / 'training_states', experiment(ran) / 'models'
    if how == 'past a damaged one':
        (states / '12.state').write_bytes(b'damaged')
        words = ['--auto_resume', '--force_yml', 'logger:save_checkpoint_freq=5', 'train:total_iter=11']
    else:
        resumed = f'path:resume_state={states / "8.state"}'
        words = ['--force_yml', resumed, 'logger:save_checkpoint_freq=5', 'train:total_iter=11']
    before = (states / '12.state').read_bytes()
    gone_on = run(TRAIN, '-opt', short, *words, 'logger:keep_last=1', cwd=ran)
    assert [path.name for path in states.glob('*.state')] == ['11.state']
    assert {path.name for path in models.glob('net_g_*.pth')} >= {'net_g_11.pth', 'net_g_latest.pth'}
    [aside] = [path for path in states.iterdir() if path.is_dir()]
    assert f'the run goes on from 8: {states / "12.state"} is in {aside.name}/ now' in gone_on.stderr
    assert (aside / '12.state').read_bytes() == before
    assert (models / aside.name / 'net_g_12.pth').exists()
    again = run(TRAIN, '-opt', short, '--auto_resume', '--force_yml', 'train:total_iter=11', cwd=ran)
    assert 'iter: 11.' in again.stderr


def test_a_run_that_began_with_weights_of_another_name_goes_on(place: Path, short: Path) -> None:
    run(TRAIN, '-opt', short, '--force_yml', 'train:total_iter=4', cwd=place)
    weights = load_safely(experiment(place) / 'models' / 'net_g_4.pth')['params']
    torch.save({'model': weights}, place / 'foreign.pth')
    words = ['--force_yml', 'path:pretrain_network_g=foreign.pth', 'path:param_key_g=model']
    run(TRAIN, '-opt', short, '--archive', *words, 'train:total_iter=4', cwd=place)
    resumed = run(TRAIN, '-opt', short, '--auto_resume', *words, cwd=place)
    assert 'iter: 4.' in resumed.stderr
    assert newest(experiment(place)) == '12.state'


@pytest.mark.parametrize(
    'change',
    ['train:optim_g:lr=0.5', 'train:optim_g:type=AdamW', 'train:scheduler:gamma=0.1'],
    ids=['lr', 'class', 'gamma'],
)
def test_what_a_run_that_goes_on_cannot_follow_is_refused(ran: Path, short: Path, change: str) -> None:
    refused = run(TRAIN, '-opt', short, '--auto_resume', '--force_yml', change, cwd=ran, check=False)
    assert refused.returncode == 1
    assert 'Traceback' not in refused.stderr
    section = change.split(':')[1]
    assert said(refused).startswith(f'nlsn: train: {section} is {{')
    assert 'cannot go on with that: its run has {' in said(refused)


def test_arguments_of_the_network_that_no_weight_shows_are_said_when_they_change(ran: Path, short: Path) -> None:
    words = ['network_g:res_scale=0.5', 'network_g:chunk_size=144', 'network_g:backend=reference']
    again = run(TRAIN, '-opt', short, '--auto_resume', '--force_yml', *words, 'train:total_iter=13', cwd=ran)
    assert [line for line in again.stdout.splitlines() if line.startswith('network_g: ')] == [
        'network_g: chunk_size was 64 until 12.state, and is 144 from now on',
        'network_g: res_scale was 0.1 until 12.state, and is 0.5 from now on',
    ]
    words += ['network_g:reduction=4', 'train:clip_grad_norm=1.0', 'manual_seed=3']
    other = run(TRAIN, '-opt', short, '--auto_resume', '--force_yml', *words, 'train:total_iter=14', cwd=ran)
    assert [line for line in other.stdout.splitlines() if ' from now on' in line] == [
        'train: clip_grad_norm was not set until 13.state, and is 1.0 from now on',
        'manual_seed was 1 until 13.state, and is 3 from now on',
    ]


def test_the_precision_may_be_another_when_a_run_goes_on(place: Path, short: Path) -> None:
    run(TRAIN, '-opt', short, '--force_yml', 'train:total_iter=4', cwd=place)
    run(TRAIN, '-opt', short, '--auto_resume', '--force_yml', 'train:total_iter=6', 'train:amp=fp16', cwd=place)
    run(TRAIN, '-opt', short, '--auto_resume', '--force_yml', 'train:total_iter=8', cwd=place)
    assert newest(experiment(place)) == '8.state'


def test_the_copy_of_an_option_file_is_one_to_go_on_with(ran: Path, short: Path) -> None:
    run(TRAIN, '-opt', short, '--auto_resume', cwd=ran)
    copy = experiment(ran) / short.name
    before = copy.read_text()
    again = run(TRAIN, '-opt', copy, '--auto_resume', cwd=ran)
    assert 'iter: 12.' in again.stderr
    assert copy.read_text() == before


@pytest.mark.parametrize('print_freq', [1, 5, 100])
def test_updates_that_are_skipped_are_counted_whenever_the_log_is_written(
    place: Path, short: Path, print_freq: int
) -> None:
    words = ['-opt', short, '--force_yml', 'train:pixel_opt:loss_weight=1.0e+300', f'logger:print_freq={print_freq}']
    run(TRAIN, *words, 'train:nonfinite_limit=12', 'train:total_iter=7', cwd=place)
    run(TRAIN, *words[:2], '--auto_resume', *words[2:], 'train:nonfinite_limit=12', cwd=place)
    state = load_safely(experiment(place) / 'training_states' / '12.state')
    assert state['model']['nonfinite'] == 12
    refused = run(TRAIN, *words[:2], '--archive', *words[2:], 'train:nonfinite_limit=3', cwd=place, check=False)
    assert refused.returncode == 1
    assert 'nonfinite_limit is 3' in said(refused)


def test_auto_resume_of_a_finished_run_begins_nothing_anew_from_any_folder(
    ran: Path, short: Path, tmp_path: Path
) -> None:
    (ran / 'options').mkdir()
    option_file = shutil.copy(short, ran / 'options')
    elsewhere = tmp_path / 'elsewhere'
    elsewhere.mkdir()
    again = run(TRAIN, '-opt', option_file, '--auto_resume', cwd=elsewhere)
    assert 'iter: 12.' in again.stderr
    assert [path.name for path in (ran / 'experiments').iterdir()] == ['NLSN_x2']
    assert list(elsewhere.iterdir()) == []


def test_a_run_that_is_there_is_never_moved_unasked(ran: Path, short: Path) -> None:
    place = ran
    before = {path: path.stat().st_mtime_ns for path in experiment(place).rglob('*') if path.is_file()}
    refused = run(TRAIN, '-opt', short, cwd=place, check=False)
    assert refused.returncode == 1
    assert said(refused).endswith(
        'holds a run already: --auto_resume goes on with it, --archive moves it aside and begins anew, or choose '
        'another name in the option file'
    )
    assert before == {path: path.stat().st_mtime_ns for path in experiment(place).rglob('*') if path.is_file()}
    run(TRAIN, '-opt', short, '--archive', '--force_yml', 'train:total_iter=4', cwd=place)
    names = sorted(path.name for path in (place / 'experiments').iterdir())
    assert names[0] == 'NLSN_x2'
    assert names[1].startswith('NLSN_x2_archived_')


def test_two_runs_in_one_folder_are_refused(place: Path, short: Path) -> None:
    endless = ['train:total_iter=1000000', 'val:val_freq=1000000', 'logger:save_checkpoint_freq=100']
    words = [TRAIN, '-opt', short, '--force_yml', *endless]
    with start(words, place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and newest(experiment(place)) == 'none':
            time.sleep(0.02)
        for word in ('--auto_resume', '--archive'):
            refused = run(TRAIN, '-opt', short, word, '--force_yml', *endless, cwd=place, check=False)
            assert said(refused).startswith(f'nlsn: another process trains in {experiment(place)}: ')
            assert process.poll() is None
        process.kill()
    assert [path.name for path in (place / 'experiments').iterdir()] == ['NLSN_x2']
    reached = int(newest(experiment(place)).removesuffix('.state'))
    run(TRAIN, '-opt', short, '--auto_resume', '--force_yml', f'train:total_iter={reached + 1}', cwd=place)  # at once


def test_weights_that_do_not_fit_are_refused_before_a_run_is_moved_aside(ran: Path, short: Path) -> None:
    weights = experiment(ran) / 'models' / 'net_g_12.pth'
    words = ['--archive', '--force_yml', 'network_g:num_feat=16', f'path:pretrain_network_g={weights}']
    refused = run(TRAIN, '-opt', short, *words, cwd=ran, check=False)
    assert said(refused).startswith(f'nlsn: {weights} does not fit NLSN of ')
    assert [path.name for path in (ran / 'experiments').iterdir()] == ['NLSN_x2']


def test_weights_that_a_run_began_with_are_not_looked_at_when_it_goes_on(ran: Path, short: Path) -> None:
    torch.save({'head.0.weight': torch.zeros(1)}, ran / 'other.pth')
    state = experiment(ran) / 'training_states' / '12.state'
    words = [f'path:resume_state={state}', 'path:pretrain_network_g=other.pth', 'train:total_iter=13']
    run(TRAIN, '-opt', short, '--force_yml', *words, cwd=ran)
    assert newest(experiment(ran)) == '13.state'


def test_runs_that_are_moved_aside_in_one_second_have_names_of_their_own(tmp_path: Path) -> None:
    for _ in range(3):
        (tmp_path / 'run' / 'models').mkdir(parents=True)
        archive(tmp_path / 'run')
    assert len(list(tmp_path.iterdir())) == 3


def test_a_full_disk_ends_the_run_with_the_last_state_intact(ran: Path, short: Path) -> None:
    place = ran
    for iteration in (8, 12):
        (experiment(place) / 'training_states' / f'{iteration}.state').unlink()
    size = (experiment(place) / 'models' / 'net_g_4.pth').stat().st_size
    full = run('-c', limited(size // 2), TRAIN, '-opt', short, '--auto_resume', cwd=place, check=False)
    assert full.returncode == 1
    assert 'could not be saved: ' in said(full)
    assert said(full).endswith('what was saved before is intact')
    assert newest(experiment(place)) == '4.state'
    assert not list(experiment(place).rglob('.*.tmp'))
    run(TRAIN, '-opt', short, '--auto_resume', cwd=place)
    assert newest(experiment(place)) == '12.state'


def test_a_place_that_cannot_be_made_is_one_line(place: Path, short: Path) -> None:
    (place / 'experiments').touch()
    refused = run(TRAIN, '-opt', short, cwd=place, check=False)
    assert refused.returncode == 1
    assert said(refused).endswith(f'the folder {experiment(place)} cannot be written to: Not a directory')


def test_a_log_that_cannot_be_written_ends_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal.__new__(Journal)
    journal.path = tmp_path / 'gone' / 'log.jsonl'
    logger = logging.getLogger('basicsr')
    logger.addHandler(caplog.handler)
    try:
        journal.write({'iter': 1})
    finally:
        logger.removeHandler(caplog.handler)
    assert caplog.messages == [f'{journal.path} could not be written: No such file or directory']


def test_what_a_run_leaves(place: Path, short: Path) -> None:
    overrides = ['logger:keep_last=2', 'logger:use_tb_logger=true']
    done = run(TRAIN, '-opt', short, '--force_yml', *overrides, cwd=place)
    assert done.stderr.count('Validation Set5') == 2  # at 6 and 12; the last is not logged twice
    names = sorted(path.name for path in (experiment(place) / 'models').iterdir())
    assert names == ['net_g_12.pth', 'net_g_8.pth', 'net_g_best.pth', 'net_g_latest.pth']
    lines = [json.loads(line) for line in (experiment(place) / 'log.jsonl').read_text().splitlines()]
    assert [line['iter'] for line in lines if line['kind'] == 'train'] == list(range(1, 13))
    assert [line['iter'] for line in lines if line['kind'] == 'validation'] == [6, 12]
    assert all(line['l_pix'] > 0 and line['memory_gb'] > 0 for line in lines if line['kind'] == 'train')
    state = load_safely(experiment(place) / 'training_states' / '12.state')
    psnr = {line['iter']: line['psnr'] for line in lines if line['kind'] == 'validation'}
    assert state['best_metric_results']['Set5']['psnr'] == {
        'better': 'higher', 'val': max(psnr.values()), 'iter': max(psnr, key=lambda iteration: psnr[iteration]),
    }  # fmt: skip
    assert (experiment(place) / 'curves.png').stat().st_size > 10_000
    assert list((place / 'tb_logger' / 'NLSN_x2').glob('events*'))


@pytest.mark.parametrize('mode', ['~', 'cpu'])
def test_a_damaged_image_ends_the_run_with_its_name(place: Path, short: Path, mode: str) -> None:
    folder = place / 'own'
    for name in ('HR', 'LR'):
        (folder / name).mkdir(parents=True)
        for index in range(4):
            (folder / name / f'{index}.png').write_bytes(b'')
    overrides = [f'datasets:train:dataroot_gt={folder}/HR', f'datasets:train:dataroot_lq={folder}/LR']
    overrides += ['datasets:train:io_backend:type=disk', f'datasets:train:prefetch_mode={mode}']
    failed = run(TRAIN, '-opt', short, '--force_yml', *overrides, cwd=place, check=False)
    assert failed.returncode == 1
    assert said(failed).startswith(f'nlsn: {folder}/HR/')
    assert said(failed).endswith('.png is not an image, or a damaged one (0 bytes)')


def test_a_batch_larger_than_the_data_is_refused_before_anything_is_made(place: Path, short: Path) -> None:
    refused = run(TRAIN, '-opt', short, '--force_yml', 'datasets:train:batch_size_per_gpu=1000', cwd=place, check=False)
    assert refused.returncode == 1
    assert 'an update takes 1000 patches (1 x batch_size_per_gpu 1000), more than the ' in said(refused)
    assert not (place / 'experiments').exists()


def test_what_is_saved_loads_without_executing_anything(ran: Path) -> None:
    saved = [path for path in experiment(ran).rglob('*.*') if path.suffix in ('.pth', '.state')]
    assert {path.suffix for path in saved} == {'.pth', '.state'}
    for path in saved:
        torch.load(path, weights_only=True)
