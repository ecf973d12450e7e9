"""Training with mmengine's Runner, as a config file says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import CheckpointLoader, Runner

from nlsn_plugin import checks
from nlsn_plugin.engine.distributed import STARTED_BY, refuse_unstarted
from nlsn_plugin.engine.training import mmengine_checks, mmengine_config
from nlsn_plugin.engine.training.mmengine_parts import WholeStateHook, load_from_local
from nlsn_plugin.errors import ArgumentError, DataError, OptionError, UserError, first_line
from nlsn_plugin.files import check_folder
from nlsn_plugin.models.checkpoint import check_readable


def train(
    config: str,
    work_dir: str | None,
    resume: str | None,
    amp: bool,
    options: dict[str, Any],
    launcher: str,
    auto_scale_lr: bool = False,
) -> None:
    """Train a model with mmengine's Runner.

    Args:
        config: path of a config, or name of a shipped one. A config is a program, which is executed.
        work_dir: folder for checkpoints and logs; by default the config's, or else work_dirs/<name>.
        resume: checkpoint to go on from, or 'auto' for the newest in `work_dir`.
        amp: whether to train in mixed precision: with mmengine's AmpOptimWrapper, or without a GPU in bfloat16.
        options: values to set in the config, by their keys with dots.
        launcher: 'none', 'pytorch', 'slurm' or 'mpi'; `options` may set another.
        auto_scale_lr: whether to scale the learning rate by the batch size over all processes, as the config's
            auto_scale_lr says.

    Raises:
        UserError: there is no such config, it or its data are faulty, or a checkpoint does not load.
    """
    launcher = checks.one_of('launcher', options.get('launcher', launcher), ('none', *STARTED_BY))
    check_launcher(launcher)
    cfg = mmengine_config.read(config, options)
    cfg.launcher = launcher
    cfg.work_dir = work_dir or cfg.get('work_dir') or str(Path('work_dirs', Path(config).stem))
    if resume:
        cfg.resume = True
        cfg.load_from = None if resume == 'auto' else resume
    mmengine_checks.check(cfg, config)
    if amp:
        use_amp(cfg)
    if auto_scale_lr:
        scale_learning_rate(cfg, config)
    check_checkpoint(cfg.get('load_from'))
    check_folder(Path(cfg.work_dir))
    CheckpointLoader.register_scheme('', load_from_local, force=True)
    state = WholeStateHook()
    try:
        runner = Runner.from_cfg(cfg)
        runner.register_hook(state)
        runner.train()
    except DataError as error:  # a loader's worker hides its message in a traceback
        raise DataError(str(error).splitlines()[-1].removeprefix(f'{DataError.__module__}.DataError: ')) from error
    except UserError:
        raise
    except (AssertionError, LookupError, TypeError, ValueError) as error:
        if state.is_built:
            raise
        raise OptionError(f'{config} cannot be built: {type(error).__name__}: {first_line(error)}') from error


def check_launcher(launcher: str) -> None:
    """Refuse a launcher whose processes mmengine (dist/utils.py:init_dist) could not connect."""
    refuse_unstarted(launcher)
    if launcher == 'mpi' and 'MASTER_ADDR' not in os.environ:
        raise UserError('--launcher mpi: MASTER_ADDR is not set: the address of the first process is expected in it')
    if launcher != 'none' and get_device() in ('cpu', 'mps'):
        raise UserError(f"--launcher {launcher}: mmengine's processes need a GPU each, and there is none")


def check_checkpoint(path: Any) -> None:
    """Refuse a `load_from` that does not exist, before anything is built; what is at a URL mmengine fetches.

    Raises:
        ArgumentError: it is no path.
        CheckpointError: there is no such file, or it cannot be read.
    """
    if path is None or (isinstance(path, str) and '://' in path):
        return
    if not isinstance(path, str):
        raise ArgumentError(f'load_from={path!r} is not allowed: the path of a file is expected')
    check_readable(Path(path).expanduser())


def scale_learning_rate(cfg: Config, path: str) -> None:
    """Let mmengine scale the learning rate by the batch size.

    Raises:
        UserError: the config does not say for which batch size its learning rate is.
    """
    scaling = cfg.get('auto_scale_lr')
    if not isinstance(scaling, dict) or 'base_batch_size' not in scaling:
        raise UserError(f'--auto-scale-lr: {path} has no auto_scale_lr=dict(base_batch_size=...)')
    scaling['enable'] = True


def use_amp(cfg: Config) -> None:
    """Replace the optimiser's plain wrapper by one for mixed precision.

    Raises:
        UserError: the config has a wrapper of another kind.
    """
    wrapper = cfg.optim_wrapper
    name = mmengine_checks.name_of(wrapper.get('type', 'OptimWrapper'))
    if name == 'OptimWrapper':
        wrapper.type = 'AmpOptimWrapper' if torch.cuda.is_available() else 'BFloat16OptimWrapper'
    elif 'Amp' not in name and name != 'BFloat16OptimWrapper':
        raise UserError(f'--amp: the config has optim_wrapper.type={name!r}: OptimWrapper is expected')
