"""A training run of mmengine's Runner by a config file."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import Runner

from nlsn_plugin.checks import nearest
from nlsn_plugin.engine.options.documents import shipped_options
from nlsn_plugin.errors import CheckpointError, DataError, UserError


def train(
    config: str, work_dir: str | None, resume: str | None, amp: bool, options: dict[str, Any], launcher: str
) -> None:
    """Train.

    Args:
        config: a file, or the name of a shipped one. It is a program, which runs.
        work_dir: where checkpoints and logs go; by default where the config says, or else work_dirs/<name>.
        resume: a checkpoint to go on from, or 'auto' for the newest of `work_dir`.
        amp: in mixed precision: mmengine's AmpOptimWrapper, or where there is no GPU bfloat16.
        options: keys with dots and what to set them to.
        launcher: 'none', 'pytorch', 'slurm' or 'mpi'.

    Raises:
        UserError: there is no such config, its data are faulty, or a checkpoint does not load.
    """
    path = find_config(config)
    cfg = Config.fromfile(path)
    cfg.launcher = launcher
    cfg.merge_from_dict(options)
    cfg.work_dir = work_dir or cfg.get('work_dir') or str(Path('work_dirs', path.stem))
    if resume:
        cfg.resume = True
        cfg.load_from = None if resume == 'auto' else resume
    if amp:
        use_amp(cfg)
    try:
        Runner.from_cfg(cfg).train()
    except DataError as error:  # a loader's worker hides its message in a traceback
        raise DataError(str(error).splitlines()[-1].removeprefix(f'{DataError.__module__}.DataError: ')) from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(f'{cfg.load_from or cfg.work_dir}: {reason_of(error)}') from error


def find_config(name: str) -> Path:
    """The config of this path, or else the shipped one of this name (`options/mmengine/` and `.py` may be left out)."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = {path.stem: path for path in sorted((shipped_options() / 'mmengine').glob('*.py'))}
    if path.stem in shipped:
        return shipped[path.stem]
    raise UserError(f'there is no config {name}{nearest(path.stem, shipped)}')


def use_amp(cfg: Config) -> None:
    """Take the optimiser's wrapper for mixed precision in the place of the plain one."""
    wrapper = cfg.optim_wrapper
    if wrapper.get('type', 'OptimWrapper') == 'OptimWrapper':
        wrapper.type = 'AmpOptimWrapper' if torch.cuda.is_available() else 'BFloat16OptimWrapper'
    elif 'Amp' not in wrapper.type and wrapper.type != 'BFloat16OptimWrapper':
        raise UserError(f'--amp: the config has optim_wrapper.type={wrapper.type!r}: OptimWrapper is expected')


def reason_of(error: pickle.UnpicklingError) -> str:
    """Why PyTorch refused a file, without its advice to load it all the same."""
    lines = [line.strip() for line in str(error).splitlines()]
    advice = ('Weights only load failed', '(1)', '(2)', 'Check the documentation')
    reasons = [line for line in lines if line and not line.startswith(advice)]
    reason = reasons[0].split(' Please use')[0] if reasons else lines[0]
    return f'a checkpoint that does not load (nothing in it was executed): {reason}'
