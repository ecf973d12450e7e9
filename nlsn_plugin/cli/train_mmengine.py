"""`nlsn train-mmengine`: the command line of OpenMMLab's tools/train.py."""

from __future__ import annotations

import argparse
import os
from typing import Any

from nlsn_plugin.cli.parser import sentence
from nlsn_plugin.compat import load_toolbox
from nlsn_plugin.errors import UserError

TEXT = "train by a config of mmengine's or mmagic's"


def add(commands: Any) -> None:
    """Add the command to the subparsers `commands`."""
    parser = commands.add_parser(
        'train-mmengine', help=TEXT, description=f'{sentence(TEXT)}. A config is a Python program, which is run.'
    )
    parser.add_argument('config', help='config file, or the name of a shipped one')
    parser.add_argument('--work-dir', help='for checkpoints and logs (default: work_dirs/<name of the config>)')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help="go on from this checkpoint (default: the newest in the run's folder)",
    )
    parser.add_argument('--amp', action='store_true', help='mixed precision (bfloat16 where there is no GPU)')
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='set keys, train_cfg.max_iters=9'
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help="scale the learning rate by the batch size, as the config's says"
    )
    parser.add_argument('--local_rank', '--local-rank', type=int, help=argparse.SUPPRESS)
    parser.set_defaults(run=train)


def train(args: argparse.Namespace) -> None:
    for toolbox in ('basicsr', 'mmengine'):
        load_toolbox(toolbox)
    from nlsn_plugin.engine.training.mmengine_run import train

    if args.local_rank is not None:  # passed by torch.distributed.launch; torchrun sets the variable
        os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    options = values_of(args.cfg_options)
    train(args.config, args.work_dir, args.resume, args.amp, options, args.launcher, args.auto_scale_lr)


def values_of(entries: list[str]) -> dict[str, Any]:
    """Parse KEY=VALUE words by mmengine's rules.

    Raises:
        UserError: a word is malformed.
    """
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    values: dict[str, Any] = {}
    for entry in entries:
        if not all(entry.partition('=')[:2]):
            raise UserError(f'--cfg-options {entry}: KEY=VALUE is expected, such as train_cfg.max_iters=1000')
        try:
            values |= parser.parse_args([f'--cfg-options={entry}']).cfg_options
        except AssertionError as error:
            raise UserError(f'--cfg-options {entry}: {error}') from error
    return values
