"""Several processes, on GPUs as BasicSR does it and on CPUs, where it fails."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed
from basicsr.utils import dist_util

from nlsn_plugin.errors import UserError

STARTED_BY = {'pytorch': ('RANK', 'torchrun --nproc_per_node N'), 'slurm': ('SLURM_PROCID', 'srun')}


def check_launcher(launcher: str) -> None:
    """Refuse a --launcher that did not launch this process."""
    variable, command = STARTED_BY.get(launcher, (None, None))
    if variable and variable not in os.environ:
        raise UserError(f'--launcher {launcher}: this process was not started by `{command}` ({variable} is not set)')


def init_dist(launcher: str, backend: str = 'nccl', **kwargs: Any) -> None:
    """Stands in for basicsr/utils/dist_util.py:11, which divides by the number of GPUs: without one, gloo."""
    if torch.cuda.is_available() or launcher != 'pytorch':
        dist_util.init_dist(launcher, backend, **kwargs)
    else:
        torch.distributed.init_process_group('gloo')
