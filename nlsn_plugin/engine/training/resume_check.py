"""Proof that a run resumes exactly: killed at random moments and resumed, it has to end as one that was not killed."""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import IO, Any

import torch

from nlsn_plugin.engine.training.interruption import handled_by
from nlsn_plugin.errors import UserError
from nlsn_plugin.models.checkpoint import load_safely


def run(option_file: str, kills: int, seed: int, overrides: list[str]) -> None:
    """Train once undisturbed, then train with kills and resumptions until there were `kills` of them, and compare.

    Both runs lie in the working directory, as experiments/resume_check_undisturbed and experiments/resume_check_killed,
    and are removed if all is well.

    Args:
        option_file: option file of a short run, or of one that `overrides` make short.
        kills: number of kills by SIGKILL, each at a moment drawn from the time that the undisturbed run took.
        seed: seed for drawing the moments.
        overrides: more options, KEY=VALUE, as for --force_yml.

    Raises:
        UserError: the weights, their average or the state differ in one bit, or a run failed by itself.
    """
    with tempfile.TemporaryFile('w+') as said, handled_by(end):
        check(option_file, kills, random.Random(seed), overrides, said)


def end(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt on any signal, so that the run that was started is ended too."""
    raise KeyboardInterrupt


def check(option_file: str, kills: int, drawn: random.Random, overrides: list[str], said: IO[str]) -> None:
    """Do what `run` says. Runs write stderr to the file `said`: a pipe that nobody reads would block them once full."""
    undisturbed, killed = (Path('experiments', f'resume_check_{kind}') for kind in ('undisturbed', 'killed'))
    for folder in (undisturbed, killed):
        if folder.exists():
            raise UserError(f'{folder} exists already: remove it first')
    began = time.monotonic()
    with started(option_file, undisturbed.name, overrides, said) as process:
        finish(process, said)
    duration = time.monotonic() - began
    expected = result(undisturbed)
    overrides = [*overrides, f'manual_seed={expected["state"]["run"]["seed"]}']  # it may have been drawn
    print(f'undisturbed: {duration:.1f} s', flush=True)
    done = 0
    while done < kills:
        while True:
            with started(option_file, killed.name, overrides, said) as process:
                if done == kills:
                    finish(process, said)
                    break
                try:
                    process.wait(drawn.uniform(0, duration))
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                    done += 1
                    print(f'killed {done} times, the last state is {newest(killed)}', flush=True)
                else:
                    finish(process, said)
                    break
        compare(result(killed), expected)
        print('the same to the last bit', flush=True)
        shutil.rmtree(killed)
    shutil.rmtree(undisturbed)


@contextlib.contextmanager
def started(option_file: str, name: str, overrides: list[str], said: IO[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Train in the working directory's experiments/, whatever the option file says, and no longer than the block."""
    words = ['-m', 'nlsn_plugin', 'train', '-opt', option_file, '--auto_resume', '--force_yml', *overrides]
    words += [f'name={name}', 'path:experiments_root=none', 'compare_with_bicubic=false']
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL, stderr=said)
    try:
        yield process
    finally:
        process.kill()  # does nothing to one that has ended
        process.wait()


def finish(process: subprocess.Popen[bytes], said: IO[str]) -> None:
    if process.wait():
        said.seek(0)
        raise UserError(f'the run failed by itself: {(said.read().strip().splitlines() or ["without a word"])[-1]}')


def newest(folder: Path) -> str:
    states = sorted((folder / 'training_states').glob('*.state'), key=lambda path: int(path.stem))
    return states[-1].name if states else 'none'


def result(folder: Path) -> dict[str, Any]:
    """The last networks and the last state of a run."""
    state = folder / 'training_states' / newest(folder)
    networks = {path.stem: load_safely(path) for path in (folder / 'models').glob('net_*_latest.pth')}
    return {**networks, 'state': load_safely(state)}


def compare(found: Any, expected: Any, where: str = '') -> None:
    """Refuse any difference, however small."""
    differ = UserError(f'the run that was killed ends otherwise than the one that was not:{where} differs')
    if type(found) is not type(expected):
        raise differ
    if isinstance(expected, dict) and found.keys() == expected.keys():
        for key, value in expected.items():
            compare(found[key], value, f'{where} {key}')
    elif isinstance(expected, (list, tuple)) and len(found) == len(expected):
        for number, value in enumerate(expected):
            compare(found[number], value, f'{where} {number}')
    elif not (found.equal(expected) if isinstance(expected, torch.Tensor) else found == expected):
        raise differ
