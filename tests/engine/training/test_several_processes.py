"""Runs shared out among processes and hosts, over gloo."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ASKING, TRAIN, experiment, make_short, of_pairs, run, write_options, write_pairs
from warm import start

from nlsn_plugin.engine import distributed
from nlsn_plugin.engine.training.resume_check import compare, newest, result
from nlsn_plugin.errors import UserError

PORTS = itertools.count(20_000 + os.getpid() % 10_000)
"""Below those that systems give out."""
TORCHRUN = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node']


@pytest.fixture
def hosts() -> Iterator[dict[str, str]]:
    """Two network namespaces joined by a cable: their names, and what the cable is called in each."""
    if not shutil.which('ip'):
        pytest.skip('two hosts need network namespaces: there is no command `ip`')
    names = [f'nlsn_{os.getpid()}_{number}' for number in (1, 2)]
    cable = [f'nlsn{os.getpid() % 10**6}{end}' for end in 'ab']

    def ip(*words: str) -> None:
        subprocess.run(['ip', *words], check=True, capture_output=True, text=True)

    try:
        try:
            for name in names:
                ip('netns', 'add', name)
        except subprocess.CalledProcessError as error:
            pytest.skip(f'two hosts need network namespaces: {error.stderr.strip()}')
        ip('link', 'add', cable[0], 'type', 'veth', 'peer', 'name', cable[1])
        for number, (name, end) in enumerate(zip(names, cable), start=1):
            ip('link', 'set', end, 'netns', name)
            ip('-n', name, 'addr', 'add', f'10.77.0.{number}/24', 'dev', end)
            ip('-n', name, 'link', 'set', end, 'up')
            ip('-n', name, 'link', 'set', 'lo', 'up')
        yield dict(zip(names, cable))
    finally:
        for name in names:
            subprocess.run(['ip', 'netns', 'delete', name], check=False, capture_output=True)


@pytest.fixture(scope='session')
def of_two(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory in which NLSN_x2 ran its 12 updates in two processes."""
    folder = tmp_path_factory.mktemp('of_two')
    (folder / 'datasets').symlink_to(workplace / 'datasets')
    options = write_options(folder / 'short.yml', 'train_NLSN_x2', make_short)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv('OMP_NUM_THREADS', '1')  # as torchrun sets it for several
        run(*TORCHRUN, 2, TRAIN, '-opt', options, '--launcher', 'pytorch', cwd=folder)
    return folder


@dataclasses.dataclass
class Ended:
    """What processes that trained together ended with, in the order of their ranks."""

    statuses: list[int]
    stderr: list[str]


def together(variables: Sequence[dict[str, str]], *words: object, cwd: Path, others: Path | None = None) -> Ended:
    """Train in as many processes as there are sets of variables, which say who they are; all but the first in `others`,
    if that is given."""
    with contextlib.ExitStack() as open_here:
        said = [open_here.enter_context(tempfile.TemporaryFile('w+')) for _ in variables]
        processes = [
            open_here.enter_context(
                start([TRAIN, *words], place, stderr=file, env={**os.environ, 'OMP_NUM_THREADS': '1', **its_own})
            )
            for its_own, file, place in zip(variables, said, [cwd] + len(said) * [others or cwd])
        ]
        statuses = [process.wait(timeout=300) for process in processes]
        for file in said:
            file.seek(0)
        return Ended(statuses, [file.read() for file in said])


def by_torchrun(count: int) -> list[dict[str, str]]:
    """What torchrun sets."""
    meeting = {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(next(PORTS)), 'WORLD_SIZE': str(count)}
    return [{**meeting, 'RANK': str(rank), 'LOCAL_RANK': str(rank)} for rank in range(count)]


def going_on(finished: Path, place: Path) -> Path:
    """Copy an experiment as if it had been killed after its eighth update."""
    shutil.copytree(finished / 'experiments', place / 'experiments')
    for later in ('training_states/12.state', 'models/net_g_12.pth', 'models/net_g_latest.pth'):
        (experiment(place) / later).unlink()
    return experiment(place)


def validations(folder: Path) -> list[dict[str, Any]]:
    """What an experiment's log has of them."""
    lines = map(json.loads, (folder / 'log.jsonl').read_text().splitlines())
    return [line for line in lines if line['kind'] == 'validation']


BY_SRUN = {
    'SLURM_PROCID': '0',
    'SLURM_STEP_NUM_TASKS': '2',
    'SLURM_NTASKS': '2',
    'SLURM_LOCALID': '0',
    'SLURM_NODELIST': 'node[1-2]',
}


@pytest.mark.parametrize('absent', ['SLURM_STEP_NUM_TASKS', 'SLURM_NTASKS'])
def test_a_script_of_sbatch_that_does_not_use_srun_is_named(absent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in BY_SRUN.items():
        monkeypatch.setenv(variable, value)
    distributed.refuse_unstarted('slurm')
    monkeypatch.delenv(absent)
    with pytest.raises(UserError, match=rf'slurm: this process was not started by `srun` \({absent} is not set\)'):
        distributed.start('slurm', 'gloo', 29500, on_gpus=False)


def test_a_machine_without_scontrol_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, 'environ', {**BY_SRUN, 'PATH': str(tmp_path)})
    with pytest.raises(UserError, match=r'`scontrol show hostnames .*set MASTER_ADDR to it') as raised:
        distributed.start('slurm', 'gloo', 29500, on_gpus=False)
    assert '\n' not in str(raised.value)


def test_without_gpus_of_their_own_they_talk_over_gloo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a machine that has some."""
    chosen: list[Any] = []
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(torch.cuda, 'set_device', chosen.append)
    monkeypatch.setattr(torch.distributed, 'init_process_group', lambda backend, timeout: chosen.append(backend))
    monkeypatch.setenv('RANK', '3')
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    distributed.start('pytorch', 'nccl', 29500, on_gpus=False)
    distributed.start('pytorch', 'nccl', 29500, on_gpus=True)
    assert chosen == ['gloo', 1, 'nccl']


class TestSeveralProcesses:
    def test_validation_gives_exactly_what_one_process_finds(
        self, of_two: Path, place: Path, short: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv('OMP_NUM_THREADS', '1')
        weights = experiment(of_two) / 'models' / 'net_g_12.pth'
        words = ['--force_yml', f'path:pretrain_network_g={weights}', 'path:param_key_g=params_ema']
        words += ['train:total_iter=1', 'train:optim_g:lr=0.0']
        run(TRAIN, '-opt', short, *words, 'name=of_1', cwd=place)
        of_3 = together(by_torchrun(3), '-opt', short, '--launcher', 'pytorch', *words, 'name=of_3', cwd=place)
        assert of_3.statuses == [0, 0, 0], of_3.stderr
        alone, of_three = (validations(experiment(place, name))[0] for name in ('of_1', 'of_3'))
        assert alone == of_three
        assert alone == {**validations(experiment(of_two))[-1], 'iter': 1}
        assert alone['psnr'] > 0

    def test_a_run_of_two_goes_on_exactly(self, of_two: Path, place: Path, short: Path) -> None:
        going_on(of_two, place)
        again = together(by_torchrun(2), '-opt', short, '--launcher', 'pytorch', '--auto_resume', cwd=place)
        assert again.statuses == [0, 0], again.stderr
        assert 'iter: 8.' in again.stderr[0]
        assert ', 2 processes' in again.stderr[0]
        assert [len(re.findall(r'iter: +\d+, .*l_pix', said)) for said in again.stderr] == [4, 0]
        compare(result(experiment(place)), result(experiment(of_two)))

    def test_one_that_does_not_see_the_newest_state_ends_both(
        self, of_two: Path, place: Path, short: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        going_on(of_two, place)
        elsewhere = tmp_path_factory.mktemp('elsewhere')
        (elsewhere / 'datasets').symlink_to(place / 'datasets')
        shutil.copytree(experiment(place), experiment(elsewhere))
        (experiment(elsewhere) / 'training_states' / '8.state').unlink()
        words = ['-opt', short, '--launcher', 'pytorch', '--auto_resume']
        ended = together(by_torchrun(2), *words, cwd=place, others=elsewhere)
        assert ended.statuses == [1, 1]
        assert all(
            'process 1 would go on from iteration 4, and the first one from 8: ' in said for said in ended.stderr
        )
        assert newest(experiment(place)) == '8.state'

    def test_two_started_by_slurm_do_the_same(self, of_two: Path, place: Path, short: Path) -> None:
        """With the variables that srun sets, and a stand-in for the command that lists the nodes."""
        scontrol = place / 'scontrol'
        scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames node[1-2]" ] && printf "127.0.0.1\\n127.0.0.2\\n"\n')
        scontrol.chmod(0o755)
        path = f'{place}:{os.environ["PATH"]}'
        variables = [{**BY_SRUN, 'PATH': path, 'SLURM_PROCID': str(rank)} for rank in range(2)]
        ended = together(variables, '-opt', short, '--launcher', 'slurm', cwd=place)
        assert ended.statuses == [0, 0], ended.stderr
        compare(result(experiment(place)), result(experiment(of_two)))

    def test_two_hosts_do_the_same(self, of_two: Path, place: Path, short: Path, hosts: dict[str, str]) -> None:
        processes = [
            subprocess.Popen(
                [
                    *('ip', 'netns', 'exec', host, sys.executable, '-m', 'torch.distributed.run'),
                    *('--nnodes', '2', '--node_rank', str(rank), '--nproc_per_node', '1'),
                    *('--master_addr', '10.77.0.1', '--master_port', '29500'),
                    *(str(TRAIN), '-opt', str(short), '--launcher', 'pytorch'),
                ],
                cwd=place,
                env={**os.environ, 'OMP_NUM_THREADS': '1', 'GLOO_SOCKET_IFNAME': interface},
            )
            for rank, (host, interface) in enumerate(hosts.items())
        ]
        assert [process.wait(timeout=300) for process in processes] == [0, 0]
        compare(result(experiment(place)), result(experiment(of_two)))

    def test_a_signal_to_one_ends_a_validation_of_both_saved(self, place: Path, short: Path) -> None:
        write_pairs(place, 4)
        (place / 'asking.py').write_text(ASKING)
        words = ['-opt', short, '--launcher', 'pytorch', '--import', 'asking', '--force_yml', *of_pairs('val')]
        words += ['logger:save_checkpoint_freq=100', 'val:metrics:asks:type=asks']
        ended = together(by_torchrun(2), *words, cwd=place)
        assert ended.statuses == [75, 75], ended.stderr
        assert 'nlsn: ended by SIGTERM and saved at iteration 6; the same command with ' in ended.stderr[0]
        assert newest(experiment(place)) == '6.state'

    @pytest.mark.parametrize(('phase', 'reached'), [('train', 4), ('val', 6)])
    def test_what_one_cannot_read_ends_all_saved(self, place: Path, short: Path, phase: str, reached: int) -> None:
        """The image stands in the fifth batch, and in the first validation."""
        write_pairs(place, 24)
        in_fifth = torch.randperm(24, generator=torch.Generator().manual_seed(0))[8 + 1]  # of the second process
        damaged = place / 'HR' / f'{in_fifth if phase == "train" else 1}.png'
        damaged.write_bytes(b'')
        words = ['--launcher', 'pytorch', '--force_yml', *of_pairs(phase), 'datasets:train:batch_size_per_gpu=1']
        words += ['logger:save_checkpoint_freq=100']
        ended = together(by_torchrun(2), '-opt', short, *words, cwd=place)
        assert ended.statuses == [1, 1]
        assert newest(experiment(place)) == f'{reached}.state'
        assert [said.splitlines()[-1] for said in ended.stderr] == 2 * [
            f'nlsn: HR/{damaged.name} is not an image, or a damaged one (0 bytes); '
            f'saved at iteration {reached}, --auto_resume goes on from there'
        ]

    def test_what_the_first_cannot_save_ends_all_in_a_line_each(self, of_two: Path, place: Path, short: Path) -> None:
        best = going_on(of_two, place) / 'models' / 'net_g_best.pth'
        best.unlink()
        (best / 'in its place').mkdir(parents=True)
        ended = together(by_torchrun(2), '-opt', short, '--launcher', 'pytorch', '--auto_resume', cwd=place)
        assert ended.statuses == [1, 1]
        assert 'Traceback' not in ''.join(ended.stderr)
        assert [said.splitlines()[-1] for said in ended.stderr] == [
            f'nlsn: {best} could not be saved: Is a directory; what was saved before is intact',
            'nlsn: another process of this run has ended, killed by a signal or for the reason that it gave: '
            'so this one ends',
        ]
        assert newest(experiment(place)) == '12.state'

    def test_one_that_dies_ends_all_within_a_minute(self, place: Path, short: Path) -> None:
        words = [sys.executable, *map(str, TORCHRUN), '2', str(TRAIN), '-opt', str(short), '--launcher', 'pytorch']
        words += ['--force_yml', 'train:total_iter=100000']
        process = subprocess.Popen(words, cwd=place, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        log = experiment(place) / 'log.jsonl'
        while process.poll() is None and not (log.exists() and log.read_text().count('\n') >= 2):
            time.sleep(0.05)
        children = Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        began = time.monotonic()
        stderr = process.communicate(timeout=60)[1]
        assert process.returncode != 0
        assert time.monotonic() - began < 60
        assert 'SIGKILL' in stderr or 'exitcode  : -9' in stderr


def test_a_port_of_the_environment_goes_before_that_of_the_option_file(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'):
        monkeypatch.setenv(name, '')  # put back afterwards
    said = {'SLURM_PROCID': '1', 'SLURM_NTASKS': '2', 'SLURM_LOCALID': '0', 'MASTER_ADDR': 'a', 'MASTER_PORT': '7'}
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    distributed.take_over_from_slurm(29500)
    assert os.environ['MASTER_PORT'] == '7'
