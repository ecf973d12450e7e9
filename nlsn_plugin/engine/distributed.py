"""Several processes, on GPUs or on CPUs. BasicSR fails on CPUs: it divides by the number of GPUs (dist_util.py:24)."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import subprocess
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
import torch.distributed

from nlsn_plugin.errors import UserError

T = TypeVar('T')

STARTED_BY = {
    'pytorch': ('torchrun --nproc_per_node N', ['RANK']),
    'slurm': ('srun', ['SLURM_PROCID', 'SLURM_STEP_NUM_TASKS', 'SLURM_NTASKS', 'SLURM_LOCALID', 'SLURM_NODELIST']),
    'mpi': ('mpirun -n N', ['OMPI_COMM_WORLD_LOCAL_RANK']),
}
"""The command of each launcher, and the environment variables that it sets.

In a script for sbatch all of SLURM's may be set without srun, but not SLURM_STEP_NUM_TASKS.
"""

LONGEST_SILENCE = datetime.timedelta(hours=1)
"""How long processes wait for each other: one may have larger validation images. One that dies ends all at once."""

LOST = re.compile('(closed|reset) by (remote )?peer|remote process exit|Broken pipe|likely closed')
"""Matches the messages of gloo and NCCL when another process is gone."""


def start(launcher: str, backend: str, port: int, on_gpus: bool) -> None:
    """Join the other processes that the launcher has started.

    Args:
        launcher: 'none', 'pytorch' (torchrun) or 'slurm' (srun).
        backend: 'nccl' or 'gloo'; without GPUs always gloo.
        port: port of the first node at which processes of SLURM meet, unless MASTER_PORT is set.
        on_gpus: whether each process computes on a GPU.

    Raises:
        UserError: this process was not started by that launcher.
    """
    if launcher == 'none':
        return
    refuse_unstarted(launcher)
    if launcher == 'slurm':
        take_over_from_slurm(port)
    if on_gpus:
        torch.cuda.set_device(int(os.environ.get('LOCAL_RANK', os.environ['RANK'])) % torch.cuda.device_count())
    torch.distributed.init_process_group(backend if on_gpus else 'gloo', timeout=LONGEST_SILENCE)


def refuse_unstarted(launcher: str) -> None:
    """Refuse a launcher ('none', or one of STARTED_BY) that has not started this process."""
    if launcher == 'none':
        return
    command, variables = STARTED_BY[launcher]
    for variable in variables:
        if variable not in os.environ:
            raise UserError(
                f'--launcher {launcher}: this process was not started by `{command}` ({variable} is not set)'
            )


def take_over_from_slurm(port: int) -> None:
    """Set the variables that torch.distributed reads from those that srun sets.

    Raises:
        UserError: SLURM does not say which host is the first.
    """
    for ours, theirs in (('RANK', 'SLURM_PROCID'), ('WORLD_SIZE', 'SLURM_NTASKS'), ('LOCAL_RANK', 'SLURM_LOCALID')):
        os.environ[ours] = os.environ[theirs]
    os.environ.setdefault('MASTER_PORT', str(port))
    if 'MASTER_ADDR' not in os.environ:
        words = ['scontrol', 'show', 'hostnames', os.environ['SLURM_NODELIST']]
        try:
            hosts = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
        except (OSError, subprocess.CalledProcessError) as error:
            raise UserError(
                f'--launcher slurm: `{" ".join(words)}` does not name the first host ({error}): set MASTER_ADDR to it'
            ) from error
        os.environ['MASTER_ADDR'] = hosts[0]


def first_error(error: UserError | None) -> UserError | None:
    """The first error among all processes, in order of rank, so that all end with the same; None if there is none."""
    return next((found for found in gathered(error) if found), None)


@contextlib.contextmanager
def lost_ones_named() -> Iterator[None]:
    """Turn the error that follows from another process's end into one line; that process has said why it ended."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, UserError) or not LOST.search(str(error)):
            raise
        raise UserError(
            'another process of this run has ended, killed by a signal or for the reason that it gave: so this one ends'
        ) from error


def gathered(value: T) -> list[T]:
    """The values of all processes, in order of rank."""
    if not torch.distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def wait_for_all() -> None:
    """Wait until all processes have reached this call."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def agreed(value: Any) -> Any:
    """The value that rank 0 has."""
    if not torch.distributed.is_initialized():
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values)
    return values[0]
