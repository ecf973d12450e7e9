"""Runs that go on in spite of what happened to them: killed early, fed with damaged data, files gone or changed."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TRAIN, experiment, last_line, make_short, of_pairs, run, write_options, write_pairs

from nlsn_plugin.engine.training import loop
from nlsn_plugin.engine.training.resume_check import compare, newest, result
from nlsn_plugin.models.checkpoint import load_safely
from nlsn_plugin.models.mended_model import AS_IT_BEGAN


def test_a_run_that_was_stopped_before_its_first_state_begins_anew_and_keeps_what_is_there(
    ran: Path, short: Path
) -> None:
    expected = result(experiment(ran))
    models = experiment(ran) / 'models'
    shutil.rmtree(experiment(ran) / 'training_states')
    refused = run(TRAIN, '-opt', short, '--auto_resume', cwd=ran, check=False)
    assert refused.returncode == 1
    assert 'holds networks of a run and none of its states: --archive moves it aside' in last_line(refused.stderr)
    (models / 'net_g_latest.pth').unlink()  # which is written at the end alone
    begun = run(TRAIN, '-opt', short, '--auto_resume', cwd=ran)
    assert 'networks of a run that was stopped before its first state are in ' in begun.stdout
    compare(result(experiment(ran)), expected)
    [aside] = [path for path in models.iterdir() if path.is_dir()]
    assert {path.name for path in aside.iterdir()} >= {'net_g_best.pth', 'net_g_12.pth'}


def spoil(path: Path) -> None:
    """Zero some numbers of a file that torch.save wrote."""
    with zipfile.ZipFile(path) as archive:
        numbers = [info for info in archive.infolist() if '/data/' in info.filename]
        largest = max(numbers, key=lambda info: info.file_size)
    content = bytearray(path.read_bytes())
    middle = largest.header_offset + largest.file_size // 2
    content[middle : middle + 64] = bytes(64)
    path.write_bytes(content)


def test_states_and_networks_of_other_numbers_than_were_written_are_passed_over(ran: Path, short: Path) -> None:
    expected = result(experiment(ran))
    spoil(experiment(ran) / 'training_states' / '12.state')
    spoil(experiment(ran) / 'models' / 'net_g_8.pth')
    left = [experiment(ran) / 'models' / '.net_g_12.pth.7.7.tmp', experiment(ran) / '.log.jsonl.7.7.tmp']
    for path in left:  # by a process that was killed
        path.touch()
    resumed = run(TRAIN, '-opt', short, '--auto_resume', cwd=ran)
    assert '12.state is damaged: ' in resumed.stdout
    assert 'net_g_8.pth is damaged: ' in resumed.stdout
    assert 'iter: 4.' in resumed.stderr
    compare(result(experiment(ran)), expected)
    assert not any(path.exists() for path in left)


def test_a_state_whose_second_network_is_not_there_is_passed_over(place: Path) -> None:
    def adversarial(options: dict[str, Any]) -> None:
        make_short(options)
        options.update(
            model_type='SRGANModel', network_d={'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 4}
        )
        options['train'].update(
            optim_d={'type': 'Adam', 'lr': 1e-4},
            gan_opt={'type': 'GANLoss', 'gan_type': 'vanilla', 'real_label_val': 1.0, 'fake_label_val': 0.0},
        )
        options['train']['gan_opt']['loss_weight'] = 0.1

    options = write_options(place / 'short.yml', 'train_NLSN_x2', adversarial)
    run(TRAIN, '-opt', options, '--force_yml', 'train:total_iter=8', cwd=place)
    models, expected = experiment(place) / 'models', result(experiment(place))
    assert {'net_g_latest', 'net_d_latest', 'state'} == expected.keys()
    for later in ('net_d_8.pth', 'net_g_latest.pth', 'net_d_latest.pth'):
        (models / later).unlink()
    resumed = run(TRAIN, '-opt', options, '--auto_resume', '--force_yml', 'train:total_iter=8', cwd=place)
    assert f'8.state: there is no file {models / "net_d_8.pth"}' in resumed.stdout
    assert 'iter: 4.' in resumed.stderr
    compare(result(experiment(place)), expected)


@pytest.mark.parametrize('phase', ['train', 'val'])
def test_a_run_that_a_damaged_image_ended_is_saved_and_goes_on_exactly_once_it_is_mended(
    place: Path, short: Path, phase: str
) -> None:
    """The image stands in the second batch, and in the first validation."""
    write_pairs(place, 4)
    second = torch.randperm(4, generator=torch.Generator().manual_seed(0))[2]
    damaged = place / 'HR' / f'{second}.png'
    whole = damaged.read_bytes()
    words = ['-opt', short, '--force_yml', *of_pairs(phase)]
    run(TRAIN, *words, 'name=undisturbed', cwd=place)
    damaged.write_bytes(b'')
    stopped = run(TRAIN, *words, 'name=stopped', 'logger:save_checkpoint_freq=100', cwd=place, check=False)
    assert stopped.returncode == 1
    reached = newest(experiment(place, 'stopped')).removesuffix('.state')
    assert last_line(stopped.stderr).endswith(
        f'is not an image, or a damaged one (0 bytes); saved at iteration {reached}, --auto_resume goes on from there'
    )
    damaged.write_bytes(whole)
    run(TRAIN, *words, 'name=stopped', '--auto_resume', cwd=place)
    logs = [(experiment(place, name) / 'log.jsonl').read_text() for name in ('undisturbed', 'stopped')]
    assert logs[0].count('validation') == logs[1].count('validation') == 2
    compare(result(experiment(place, 'stopped')), result(experiment(place, 'undisturbed')))


def test_a_metric_may_be_added_when_a_run_goes_on(ran: Path, short: Path) -> None:
    before = load_safely(experiment(ran) / 'training_states' / '8.state')['best_metric_results']['Set5']
    (experiment(ran) / 'training_states' / '12.state').unlink()
    added = 'val:metrics:rgb={type: calculate_psnr, crop_border: 2}'
    run(TRAIN, '-opt', short, '--auto_resume', '--force_yml', added, cwd=ran)
    after = load_safely(experiment(ran) / 'training_states' / '12.state')['best_metric_results']['Set5']
    assert after.keys() == {*before, 'rgb'}
    assert after['psnr']['val'] >= before['psnr']['val']
    assert after['rgb']['iter'] == 12


def test_a_border_larger_than_the_images_is_one_line(place: Path, short: Path) -> None:
    wide = 'val:metrics:psnr:crop_border=60'
    refused = run(TRAIN, '-opt', short, '--force_yml', wide, cwd=place, check=False)
    assert refused.returncode == 1
    assert 'crop_border 60 leaves nothing of its result, ' in last_line(refused.stderr)


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        ('network_g:num_feat=16', 'net_g_12.pth does not fit NLSN'),
        (
            'network_g={type: WithNLSA, after: [head], arch: {type: NLSN, num_feat: 8, num_block: 8, n_hashes: 2, '
            'chunk_size: 64, res_scale: 0.1}}',
            '12.state does not fit the optimisers: ',
        ),
    ],
)
def test_another_network_is_refused_whatever_was_loose_when_the_run_began(
    change: str, said: str, ran: Path, short: Path
) -> None:
    words = ['path:strict_load_g=false', change, 'train:total_iter=14']
    refused = run(TRAIN, '-opt', short, '--auto_resume', '--force_yml', *words, cwd=ran, check=False)
    assert refused.returncode == 1
    assert said in last_line(refused.stderr)
    assert last_line(refused.stderr).endswith(f'. {AS_IT_BEGAN}')


def test_a_seed_that_was_drawn_is_kept(place: Path, short: Path) -> None:
    words = ['-opt', short, '--force_yml', 'manual_seed=none']
    run(TRAIN, *words, 'train:total_iter=4', cwd=place)
    run(TRAIN, *words, '--auto_resume', cwd=place)
    states = experiment(place) / 'training_states'
    first, last = (load_safely(states / f'{number}.state')['run']['seed'] for number in (4, 12))
    assert first == last


@pytest.mark.parametrize('by_name', [False, True], ids=['auto_resume', 'resume_state'])
def test_weights_to_begin_with_need_not_be_there_any_more(ran: Path, short: Path, by_name: bool) -> None:
    gone = 'path:pretrain_network_g=gone.pth'
    named = f'path:resume_state={experiment(ran) / "training_states" / "12.state"}'
    words = ['--force_yml', gone, named] if by_name else ['--auto_resume', '--force_yml', gone]
    resumed = run(TRAIN, '-opt', short, *words, cwd=ran)
    assert 'iter: 12.' in resumed.stderr


def test_a_state_after_the_end_is_refused(ran: Path, short: Path) -> None:
    refused = run(TRAIN, '-opt', short, '--auto_resume', '--force_yml', 'train:total_iter=6', cwd=ran, check=False)
    assert last_line(refused.stderr).endswith('12.state is of iteration 12, after total_iter 6')


APPEARS = """
import pathlib, sys
from nlsn_plugin.cli import main
from nlsn_plugin.engine.training import loop
state = pathlib.Path('experiments/NLSN_x2/training_states/12.state')
content = state.read_bytes()
state.unlink()
prepared = loop.make_folders
def make_folders(*arguments):
    state.write_bytes(content)
    prepared(*arguments)
loop.make_folders = make_folders
main(['train', '-opt', sys.argv[1], '--auto_resume'])
"""


def test_a_state_of_another_of_basicsrs_models_is_gone_on_with(place: Path, short: Path) -> None:
    run(TRAIN, '-opt', short, '--force_yml', 'model_type=SRModel', 'train:total_iter=4', cwd=place)
    run(TRAIN, '-opt', short, '--auto_resume', '--force_yml', 'train:total_iter=6', cwd=place)
    assert newest(experiment(place)) == '6.state'


def test_processes_that_do_not_see_the_same_states_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, 'agreed', lambda start: 8)
    opt = {'rank': 1, 'path': {'training_states': 'states'}}
    assert loop.another_start(opt, 8) is None
    assert 'process 1 would go on from iteration 4, and the first one from 8: all of them' in str(
        loop.another_start(opt, 4)
    )


def test_a_state_that_another_process_writes_meanwhile_is_not_passed_over(ran: Path, short: Path) -> None:
    refused = run('-c', APPEARS, short, cwd=ran, check=False)
    assert refused.returncode == 1
    assert last_line(refused.stderr).endswith(
        'another process has just trained in ' + f'{experiment(ran)}: start again'
    )
    assert newest(experiment(ran)) == '12.state'


@pytest.mark.parametrize(('best', 'of_the_other_course'), [(6, False), (12, True)])
def test_the_best_network_of_a_course_that_is_left_is_set_aside(
    ran: Path, short: Path, best: int, of_the_other_course: bool
) -> None:
    models, states = experiment(ran) / 'models', experiment(ran) / 'training_states'
    state = load_safely(states / '8.state')
    state['best_metric_results']['Set5']['psnr'] = {'better': 'higher', 'val': 99.0, 'iter': 6}
    torch.save(state, states / '8.state')
    network = load_safely(models / 'net_g_best.pth')
    assert network['iter'] in (6, 12)
    torch.save({**network, 'iter': best}, models / 'net_g_best.pth')
    before = (models / 'net_g_best.pth').read_bytes()
    resumed = f'path:resume_state={states / "8.state"}'
    run(TRAIN, '-opt', short, '--force_yml', resumed, 'train:total_iter=9', cwd=ran)
    aside = list(models.glob('later_than_8_*/net_g_best.pth'))
    after = load_safely(states / '9.state')['best_metric_results']['Set5']
    if of_the_other_course:  # and of this one the first that is measured is kept
        assert [path.read_bytes() for path in aside] == [before]
        compare(load_safely(models / 'net_g_best.pth'), {**load_safely(models / 'net_g_9.pth'), 'iter': 9})
        assert after['psnr']['iter'] == 9
    else:
        assert aside == []
        assert (models / 'net_g_best.pth').read_bytes() == before
        assert after['psnr'] == {'better': 'higher', 'val': 99.0, 'iter': 6}
