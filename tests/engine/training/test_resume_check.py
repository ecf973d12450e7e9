from __future__ import annotations

import signal
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
import torch

from nlsn_plugin.cli.main import parsed
from nlsn_plugin.engine.training import resume_check
from nlsn_plugin.engine.training.run import read
from nlsn_plugin.errors import UserError


def stand_in(path: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a shell script run in the place of Python."""
    path.write_text(f'#!/bin/sh\n{script}\n')
    path.chmod(0o755)
    monkeypatch.setattr(sys, 'executable', str(path))


def test_a_run_that_says_much_is_not_stopped_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path / 'python', 'yes much | head -c 500000 >&2; echo >&2; echo the end >&2; exit 3', monkeypatch)
    with tempfile.TemporaryFile('w+') as said, resume_check.started('a.yml', 'name', [], said) as process:
        assert process.wait(timeout=60) == 3
        with pytest.raises(UserError, match=r'the run failed by itself: the end$'):
            resume_check.finish(process, said)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_no_run_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    stand_in(
        tmp_path / 'python',
        f'echo $$ > {tmp_path}/pid; sleep 1; kill -{number.value} $PPID; exec sleep 60',
        monkeypatch,
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        resume_check.run('a.yml', 1, 0, [])
    assert not psutil.pid_exists(int((tmp_path / 'pid').read_text()))


def test_runs_lie_where_they_are_looked_for(place: Path, short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    stand_in(place / 'python', 'for word; do echo "$word"; done >&2', monkeypatch)
    with tempfile.TemporaryFile('w+') as said:
        elsewhere = ['path:experiments_root=elsewhere']
        with resume_check.started(str(short), 'resume_check_killed', elsewhere, said) as process:
            resume_check.finish(process, said)
        said.seek(0)
        words = said.read().splitlines()
    opt, _ = read(parsed(words[words.index('train') :]), is_train=True)
    assert opt['path']['experiments_root'] == str(place / 'experiments' / 'resume_check_killed')


@pytest.mark.parametrize(
    ('found', 'expected', 'where'),
    [
        ({'a': 1}, {'a': {'b': 1}}, ' a'),
        ({'a': None}, {'a': torch.zeros(1)}, ' a'),
        ([1.0, 2], [1.0, None], ' 1'),
        ({'a': 1}, {'b': 1}, ''),
        (torch.zeros(2), torch.tensor([0.0, 1.0]), ''),
    ],
)
def test_a_difference_of_any_kind_is_told_with_its_place(found: object, expected: object, where: str) -> None:
    resume_check.compare(expected, expected)
    with pytest.raises(UserError, match=rf'than the one that was not:{where} differs$'):
        resume_check.compare(found, expected)
