"""Runs that are killed, or asked to end: gone on with, they end as those that nothing disturbed."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import TRAIN, experiment, make_short, run, write_options
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
