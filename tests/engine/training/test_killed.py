"""Runs that are killed, or asked to end: gone on with, they end as those that nothing disturbed."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ASKING, TRAIN, experiment, last_line, make_short, of_pairs, run, write_options, write_pairs
from warm import start

from nlsn_plugin.engine.training.resume_check import compare, newest, result

LONGER = ['train:total_iter=100', 'val:val_freq=50', 'logger:save_checkpoint_freq=10']
"""Updates for some seconds, rather than a fraction of one."""


def test_a_run_killed_at_random_moments_ends_as_one_that_was_not(place: Path, short: Path) -> None:
    words = ['check-resume', '-opt', short, '--kills', 2, '--seed', 1, '--force_yml', *LONGER, 'manual_seed=none']
    checked = run('-m', 'nlsn_plugin', *words, cwd=place)
    assert 'killed 2 times' in checked.stdout
    assert checked.stdout.strip().splitlines()[-1] == 'the same to the last bit'
    assert list((place / 'experiments').iterdir()) == []


@pytest.fixture(scope='session')
def longer(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run of LONGER ends with that nothing disturbed."""
    folder = tmp_path_factory.mktemp('longer')
    (folder / 'datasets').symlink_to(workplace / 'datasets')
    options = write_options(folder / 'short.yml', 'train_NLSN_x2', make_short)
    run(TRAIN, '-opt', options, '--force_yml', *LONGER, cwd=folder)
    return result(experiment(folder))


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_saves_and_the_run_goes_on_exactly(
    place: Path, short: Path, longer: dict[str, Any], number: signal.Signals
) -> None:
    words = [TRAIN, '-opt', short, '--force_yml', *LONGER]
    log = experiment(place) / 'log.jsonl'
    with start(words, place, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        while process.poll() is None and not (log.exists() and log.read_text().count('\n') >= 2):
            time.sleep(0.02)
        process.send_signal(number)
        last = next(line for line in process.stderr if line.startswith('nlsn: ')).rstrip()
        process.terminate()  # as it ends, being saved
        assert process.wait(timeout=60) == 75
    iteration = int(newest(experiment(place)).removesuffix('.state'))
    assert last == (
        f'nlsn: ended by {number.name} and saved at iteration {iteration}; the same command with --auto_resume goes on'
    )
    assert iteration < 100
    run(TRAIN, '-opt', short, '--auto_resume', '--force_yml', *LONGER, cwd=place)
    compare(result(experiment(place)), longer)


@pytest.mark.parametrize('saved_every', [6, 100])
def test_a_signal_ends_a_validation_before_its_next_image(place: Path, short: Path, saved_every: int) -> None:
    """Where its iteration has been saved, and where it has not."""
    write_pairs(place, 3)
    (place / 'asking.py').write_text(ASKING)
    words = ['-opt', short, '--import', 'asking', '--force_yml', *of_pairs('val')]
    words += [f'logger:save_checkpoint_freq={saved_every}', 'val:metrics:asks:type=asks', 'train:total_iter=7']
    stopped = run(TRAIN, *words, cwd=place, check=False)
    assert stopped.returncode == 75
    assert last_line(stopped.stderr) == (
        'nlsn: ended by SIGTERM and saved at iteration 6; the same command with --auto_resume goes on'
    )
    assert stopped.stdout.count('measured') == 1
    assert newest(experiment(place)) == '6.state'
    (place / 'asking.py').write_text(ASKING.replace('os.kill', 'print'))
    run(TRAIN, *words, '--auto_resume', cwd=place)
    run(TRAIN, *words, 'name=undisturbed', cwd=place)
    logs = [(experiment(place, name) / 'log.jsonl').read_text() for name in ('NLSN_x2', 'undisturbed')]
    assert logs[0].count('validation') == logs[1].count('validation') == 2
    compare(result(experiment(place)), result(experiment(place, 'undisturbed')))
