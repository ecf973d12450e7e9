"""Option files: found, checked, read as BasicSR reads them, fitted to the machine, and tried for what they name."""

from __future__ import annotations

import argparse
import difflib
import inspect
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import yaml
from basicsr.utils import options as basicsr_options
from basicsr.utils.registry import ARCH_REGISTRY, MODEL_REGISTRY

import nlsn_plugin
from nlsn_plugin.compat import substituted
from nlsn_plugin.engine import distributed
from nlsn_plugin.errors import UserError
from nlsn_plugin.models.checkpoint import check_file

Options = dict[str, Any]

KINDS = {dict: 'a section', str: 'text', int: 'a whole number'}
ALWAYS_NEEDED = {'name': str, 'model_type': str, 'scale': int, 'datasets': dict, 'network_g': dict, 'path': dict}
NEEDED_TO_TRAIN = {'train': dict, 'logger': dict}
NEEDED_TO_TEST = {'val': dict}


def shipped_options() -> Path:
    """The folder of the option files that come with the plugin: inside an installed package, beside it in a clone."""
    package = Path(nlsn_plugin.__file__).parent
    inside = package / 'options'
    return inside if inside.is_dir() else package.parent / 'options'


def find_option_file(name: str) -> Path:
    """The option file of this path, or else the shipped one of this name (`options/` and `.yml` may be left out)."""
    path = Path(name)
    if path.is_file():
        return path
    if path.is_dir():
        raise UserError(f'{name} is a folder: name the option file in it')
    shipped = {path.name: path for path in sorted(shipped_options().glob('*.yml'))}
    wanted = path.name.removesuffix('.yml') + '.yml'
    if wanted in shipped and str(path.parent) in ('.', 'options'):
        return shipped[wanted]
    raise UserError(f'there is no option file {name}{nearest(wanted, shipped)}')


def nearest(name: str, among: Iterable[str]) -> str:
    """A hint at the name that may have been meant."""
    known = sorted(among)
    close = difflib.get_close_matches(name, known, n=1)
    return f': did you mean {close[0]}?' if close else f': there are {", ".join(known)}'


def parse_options(
    option_file: Path, args: argparse.Namespace, root: Path, is_train: bool
) -> tuple[Options, argparse.Namespace]:
    """Read an option file by BasicSR's own parser, once its shape is known to be right; fit it to the machine.

    Args:
        option_file: the file to read, whatever -opt says.
        args: the rest of the command line, as `nlsn train` parses it.
        root: where experiments/ or results/ lie.

    Returns:
        BasicSR's option dict and its parsed arguments.

    Raises:
        UserError: the file does not parse, lacks a key, or has another kind of value there; an override is malformed.
    """
    check_shape(option_file, is_train)
    for override in args.force_yml or []:
        check_override(override)
    distributed.check_launcher(args.launcher)
    with (
        substituted(sys, argv=[sys.argv[0], '-opt', str(option_file), *basicsr_words(args)]),
        substituted(basicsr_options, init_dist=distributed.init_dist),
    ):
        try:
            opt, basicsr_args = basicsr_options.parse_options(str(root), is_train)
        except (KeyError, TypeError) as error:
            if args.force_yml:  # BasicSR assigns each by exec, and fails on a section that is not there
                raise UserError(f'--force_yml {" ".join(args.force_yml)}: {option_file} has no such section') from error
            raise
    fit_to_machine(opt)
    return opt, basicsr_args


def check_shape(option_file: Path, is_train: bool) -> None:
    """Refuse a file in which BasicSR would stumble over a missing key or another kind of value."""
    try:
        options = yaml.safe_load(option_file.read_text(encoding='utf-8'))
    except UnicodeDecodeError as error:
        raise UserError(f'{option_file} is not UTF-8 text: {error.reason} at byte {error.start}') from error
    except yaml.YAMLError as error:
        mark = getattr(error, 'problem_mark', None)
        line = f', line {mark.line + 1}' if mark else ''
        reason = getattr(error, 'problem', None) or ' '.join(str(error).split())
        raise UserError(f'{option_file}{line}: {reason}') from error
    if not isinstance(options, dict):
        raise UserError(f'{option_file} holds {type(options).__name__}: keys and values are expected')
    if 'num_gpu' not in options:
        raise UserError(f"{option_file} lacks the key 'num_gpu': a whole number, or auto")
    for key, kind in {**ALWAYS_NEEDED, **(NEEDED_TO_TRAIN if is_train else NEEDED_TO_TEST)}.items():
        check_kind(option_file, options, key, kind)
    for phase, dataset in options['datasets'].items():
        check_kind(option_file, options['datasets'], phase, dict, f'datasets: {phase}')
        for key in ('dataroot_gt', 'dataroot_lq'):
            if dataset.get(key) is not None:
                check_kind(option_file, dataset, key, str, f'datasets: {phase}: {key}')
    check_kind(option_file, options['network_g'], 'type', str, 'network_g: type')


def check_kind(option_file: Path, options: Options, key: str, kind: type, name: str | None = None) -> None:
    if key not in options:
        raise UserError(f'{option_file} lacks the key {name or key!r}: {KINDS[kind]} is expected')
    if not isinstance(options[key], kind):
        raise UserError(f'{option_file}: {name or key} is {options[key]!r}: {KINDS[kind]} is expected')


def check_override(override: str) -> None:
    """Refuse a --force_yml that BasicSR cannot split or evaluate."""
    key, _, value = override.partition('=')
    if not key or not value or '=' in value:
        raise UserError(f'--force_yml {override}: KEY=VALUE is expected, such as train:total_iter=100')
    try:
        yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f'--force_yml {override}: {value} is no value') from error


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
                made_by = 'nlsn prepare --input HR_IMAGES' + (' --test' if not phase.startswith('train') else '')
                raise UserError(
                    f'{option_file}: there is no {path} (datasets: {phase}: {key}); make it by `{made_by} ...` '
                    '(see `nlsn prepare --help`), or see NLSN train on sample data by '
                    '`nlsn train -opt quickstart_NLSN_x2.yml`'
                )
    weights = opt['path'].get('pretrain_network_g')
    if weights is not None:
        check_file(weights)


def check_names(opt: Options, option_file: Path) -> None:
    """Refuse unknown networks, models and network arguments before BasicSR makes folders and moves an old run aside."""
    if opt['model_type'] not in MODEL_REGISTRY:
        raise UserError(
            f'{option_file}: no model_type {opt["model_type"]}{nearest(opt["model_type"], names(MODEL_REGISTRY))}'
        )
    arguments = dict(opt['network_g'])
    network_type = arguments.pop('type')
    if network_type not in ARCH_REGISTRY:
        hint = nearest(network_type, names(ARCH_REGISTRY))
        raise UserError(f'{option_file}: no network_g of type {network_type}{hint}')
    network = ARCH_REGISTRY.get(network_type)
    try:
        inspect.signature(network).bind(**arguments)
    except TypeError as error:
        known = ', '.join(inspect.signature(network).parameters)
        raise UserError(f'{option_file}: network_g: {network_type}: {error}; it takes {known}') from error
    if network.__module__.startswith('nlsn_plugin.'):
        with torch.device('meta'):  # costs nothing, and refuses arguments out of range
            network(**arguments)


def names(registry: Any) -> list[str]:
    return list(registry.keys())


def basicsr_words(args: argparse.Namespace) -> list[str]:
    """The command line without -opt, as BasicSR's own parser reads it."""
    words = ['--launcher', args.launcher, '--local_rank', str(args.local_rank)]
    words += ['--auto_resume'] * args.auto_resume + ['--debug'] * args.debug
    return words + (['--force_yml', *args.force_yml] if args.force_yml else [])
