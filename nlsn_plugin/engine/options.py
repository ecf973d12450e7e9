"""Option files: found, read as BasicSR reads them, fitted to the machine, and checked for what they name."""

from __future__ import annotations

import argparse
import difflib
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from basicsr.utils import options as basicsr_options

import nlsn_plugin
from nlsn_plugin.compat import substituted
from nlsn_plugin.errors import UserError

Options = dict[str, Any]


def shipped_options() -> Path:
    """The folder of the option files that come with the plugin: inside an installed package, beside it in a clone."""
    package = Path(nlsn_plugin.__file__).parent
    inside = package / 'options'
    return inside if inside.is_dir() else package.parent / 'options'


def find_option_file(name: str) -> Path:
    """The option file of this path, or else the shipped one of this name (its folders and `.yml` may be left out)."""
    if Path(name).is_file():
        return Path(name)
    shipped = {path.name: path for path in sorted(shipped_options().glob('*.yml'))}
    wanted = Path(name).name.removesuffix('.yml') + '.yml'
    if wanted in shipped:
        return shipped[wanted]
    close = difflib.get_close_matches(wanted, shipped, n=1)
    hint = f'did you mean {close[0]}?' if close else f'shipped are {", ".join(shipped)}'
    raise UserError(f'there is no option file {name}: {hint}')


def parse_options(
    option_file: Path, args: argparse.Namespace, root: Path, is_train: bool
) -> tuple[Options, argparse.Namespace]:
    """Read an option file by BasicSR's own parser, then fit it to the machine.

    Args:
        option_file: the file to read, whatever -opt says.
        args: the rest of the command line, as `nlsn train` parses it.
        root: where experiments/ or results/ lie.

    Returns:
        BasicSR's option dict and its parsed arguments.

    Raises:
        UserError: the file does not parse, or lacks a key.
    """
    with substituted(sys, argv=[sys.argv[0], '-opt', str(option_file), *basicsr_words(args)]):
        try:
            opt, basicsr_args = basicsr_options.parse_options(str(root), is_train)
        except yaml.YAMLError as error:
            place = getattr(error, 'problem_mark', None)
            line = f', line {place.line + 1}' if place else ''
            raise UserError(f'{option_file}{line}: {getattr(error, "problem", None) or error}') from error
        except KeyError as error:
            raise UserError(f'{option_file} lacks the key {error.args[0]!r}') from error
    fit_to_machine(opt)
    return opt, basicsr_args


def fit_to_machine(opt: Options) -> None:
    """Let an option file written for GPUs run without one: BasicSR fails with a driver error otherwise."""
    if torch.cuda.is_available():
        return
    opt['num_gpu'] = 0
    for dataset in opt['datasets'].values():
        dataset['pin_memory'] = False
        if dataset.get('prefetch_mode') == 'cuda':
            dataset['prefetch_mode'] = None


def check_paths(opt: Options, option_file: Path) -> None:
    """Refuse missing data and weights before anything is made, in one line with the ways on."""
    for phase, dataset in opt['datasets'].items():
        for key in ('dataroot_gt', 'dataroot_lq'):
            path = dataset.get(key)
            if path is not None and not Path(path).exists():
                raise UserError(
                    f'{option_file}: there is no {path} (datasets: {phase}: {key}); make it with `nlsn prepare` '
                    '(README: Training on DIV2K), or see NLSN train on sample data with '
                    '`nlsn train -opt quickstart_NLSN_x2.yml`'
                )
    weights = opt['path'].get('pretrain_network_g')
    if weights is not None and not Path(weights).is_file():
        raise UserError(f'{option_file}: there is no {weights} (path: pretrain_network_g)')


def basicsr_words(args: argparse.Namespace) -> list[str]:
    """The command line without -opt, as BasicSR's own parser reads it."""
    words = ['--launcher', args.launcher, '--local_rank', str(args.local_rank)]
    words += ['--auto_resume'] * args.auto_resume + ['--debug'] * args.debug
    return words + (['--force_yml', *args.force_yml] if args.force_yml else [])
