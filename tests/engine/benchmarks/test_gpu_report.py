"""tools/gpu_report.sh where there is no GPU: that it asks for what there is, and that no step takes others along."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from nlsn_plugin.cli import measure

STEPS = ['float32', 'bfloat16', 'network', 'tiles', 'tests']


def report(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, 'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}', **environment}
    command = ['bash', str(ROOT / 'tools' / 'gpu_report.sh'), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def test_every_step_is_a_command_that_there_is(tmp_path: Path) -> None:
    result = report(tmp_path, DRY_RUN='1')
    assert result.returncode == 0, result.stderr
    commands = [shlex.split(line)[2:] for line in result.stdout.splitlines() if line.startswith('timeout')]
    assert len(commands) == len(STEPS)
    parser = argparse.ArgumentParser()
    measure.add(parser.add_subparsers())
    for step, command in zip(STEPS[:4], commands):
        assert command[:2] == ['python', 'tools/benchmark_nlsa.py']
        options = parser.parse_args(['benchmark-attention', *command[2:]])
        assert options.json == tmp_path / f'gpu_{step}.json'
    tests = [word.partition('::')[0] for word in commands[4] if word.startswith('tests/')]
    assert len(tests) == 5
    assert all((ROOT / path).exists() for path in tests)


def test_a_step_that_there_is_not_is_named(tmp_path: Path) -> None:
    result = report(tmp_path, 'tile', 'tiles', DRY_RUN='1')
    assert result.returncode == 1
    assert 'no step tile: float32, bfloat16' in result.stderr
    assert result.stderr.endswith('failed: tile\n')
    assert '--tune' in result.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_a_step_that_fails_leaves_the_others_their_turn(tmp_path: Path) -> None:
    result = report(tmp_path, 'tiles', 'network')
    assert result.returncode == 1
    assert result.stderr.count("device 'cuda' cannot be used") == 2
    assert result.stderr.endswith('failed: tiles network\n')
