"""Options: read, checked against the schema and against each other, and completed as BasicSR does."""

from __future__ import annotations

import argparse
import itertools
import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ValidationError

from nlsn_plugin.archs.bases import innermost
from nlsn_plugin.checks import nearest
from nlsn_plugin.custom_imports import import_modules
from nlsn_plugin.engine.options.documents import OVERRIDES, Document
from nlsn_plugin.engine.options.misfits import enlargement, misfits, misfits_of_own
from nlsn_plugin.engine.options.model_keys import own_keys, parted, together
from nlsn_plugin.engine.options.schema import TestOptions, TrainingOptions, kind_of_dataset
from nlsn_plugin.errors import BackendError, CheckpointError, OptionError, UserError
from nlsn_plugin.files import exists, is_dir
from nlsn_plugin.models.checkpoint import check_readable
from nlsn_plugin.ops.cpu_matmul import use_onednn_matmul

Options = dict[str, Any]
EXPECTED = {
    'model_type': 'a section is expected',
    'dict_type': 'a section is expected',
    'list_type': 'a list is expected',
    'string_type': 'text is expected',
    'bool_type': 'true or false is expected',
    'float_type': 'a number is expected',
    'int_type': 'a whole number is expected',
    'int_from_float': 'a whole number is expected',
    'greater_than': 'more than {gt} is expected',
    'greater_than_equal': 'at least {ge} is expected',
    'less_than': 'less than {lt} is expected',
}
"""Messages for pydantic's types of errors; the types not listed keep pydantic's own."""


def read_options(option_file: Path, args: argparse.Namespace, root: Path, is_train: bool) -> Options:
    """Read an option file, refuse what is wrong with it, and complete it.

    Args:
        option_file: the file.
        args: the rest of the command line, as `nlsn train` or `nlsn test` parses it.
        root: folder of experiments/ or results/, unless --auto_resume finds the run elsewhere: see `home`.
        is_train: whether the options are to be those of a training run; otherwise of a test.

    Returns:
        The options as BasicSR's own parser would return them, with the schema's defaults, but without what several
        processes agree upon (`run.join`, `run.seed`).

    Raises:
        OptionError: the file has mistakes, with a line for each.
    """
    if args.auto_resume and getattr(args, 'archive', False):
        raise OptionError('--auto_resume goes on with a run, --archive begins anew: give one of them')
    document = Document(option_file)
    try:
        of_environment = shlex.split(os.environ.get(OVERRIDES, ''))
    except ValueError as error:
        raise OptionError(f'{OVERRIDES} {os.environ[OVERRIDES]}: {error}') from error
    for override in of_environment:
        document.override(override, OVERRIDES)
    for override in args.force_yml or []:
        document.override(override)
    opt = checked(document, is_train)
    if opt.get('network_d') is None:  # otherwise BasicSR looks for its weights when a run goes on
        opt.pop('network_d', None)
    if args.auto_resume:
        root = home(opt, option_file, root)
    opt['auto_resume'], opt['is_train'], opt['root_path'] = args.auto_resume, is_train, str(root)
    opt['archive'] = getattr(args, 'archive', False)
    if args.debug and not opt['name'].startswith('debug'):
        opt['name'] = f'debug_{opt["name"]}'
    fit_to_machine(opt)
    complete_datasets(opt)
    complete_paths(opt, root)
    if is_train and opt['name'].startswith('debug'):
        opt['logger'] |= {'print_freq': 1, 'save_checkpoint_freq': 8}
        if opt.get('val'):
            opt['val']['val_freq'] = 8
    return opt


def checked(document: Document, is_train: bool) -> Options:
    """The options of a document, checked, with the schema's defaults.

    If they ask for oneDNN's products of matrices, these are turned on for the process.

    Raises:
        OptionError: the file has mistakes, with a line for each key that is unknown, missing or of another type, each
            class that does not exist or takes other arguments, and each combination that is impossible.
    """
    refuse_other_kind(document, is_train)
    take_in_modules(document)
    model = TrainingOptions if is_train else TestOptions
    common, own = parted(document.options)
    try:
        opt = together(model.model_validate(common).model_dump(), own)
    except ValidationError as error:
        mistakes = [said(document, model, dict(mistake)) for mistake in error.errors()]
    else:
        found = itertools.chain(misfits(opt, is_train), misfits_of_own(opt['model_type'], own))
        mistakes = [': '.join((document.where(keys), *keys, text)) for keys, text in found]
    if len(mistakes) > 1:
        raise OptionError(f'{document.path} has {len(mistakes)} mistakes:\n  ' + '\n  '.join(mistakes))
    if mistakes:
        raise OptionError(mistakes[0])
    if opt['onednn_matmul']:
        try:
            use_onednn_matmul()
        except BackendError as error:
            raise OptionError(f'{document.where(("onednn_matmul",))}: onednn_matmul: {error}') from error
    return opt


def take_in_modules(document: Document) -> None:
    """Import what `custom_imports` names, from the working directory or beside the option file."""
    names = document.options.get('custom_imports')
    if isinstance(names, list):  # otherwise the schema says so
        said = f'{document.where(("custom_imports",))}: custom_imports'
        import_modules([str(name) for name in names], said, [Path.cwd(), document.path.parent])


def refuse_other_kind(document: Document, is_train: bool) -> None:
    """Refuse an option file for testing where one for training is expected, or the reverse: they differ throughout."""
    datasets = document.options.get('datasets')
    if not isinstance(datasets, dict):
        return
    is_for_training = 'train' in document.options and 'train' in datasets
    is_for_testing = not {'train', 'logger'} & document.options.keys() and 'train' not in datasets
    if is_train and is_for_testing:
        raise OptionError(f'{document.path} is an option file for testing: nlsn test -opt {document.path}')
    if not is_train and is_for_training:
        raise OptionError(f'{document.path} is an option file for training: nlsn train -opt {document.path}')


def said(document: Document, model: type[BaseModel], mistake: dict[str, Any]) -> str:
    """Describe one of pydantic's errors in a line."""
    keys = tuple(str(key) for key in mistake['loc'] if key not in ('paired', 'other') or key in document.options)
    *above, name = keys or ('',)
    section = ''.join(f'{key}: ' for key in above)
    where = document.where(keys)
    if mistake['type'] == 'extra_forbidden':
        others = [key for place, key in own_keys(document.options.get('model_type')) if place == ''.join(above)]
        return f'{where}: {section}{name} is unknown{nearest(name, [*known_keys(model, mistake["loc"][:-1]), *others])}'
    if mistake['type'] == 'missing':
        return f'{where}: {section}lacks the key {name}'
    value = mistake['input']
    reason = EXPECTED.get(mistake['type'], '').format(**mistake.get('ctx', {}))
    reason = reason or mistake['msg'].removeprefix('Value error, ')
    if isinstance(value, str) and mistake['type'] == 'float_type':
        reason += ' (in YAML write 0.0001, or !!float 1e-4)'
    if isinstance(value, dict) and mistake['type'] == 'value_error':  # it is about the keys in the section
        return f'{where}: {section}{name}: {reason}'
    return f'{where}: {section}{name} is {value!r}: {reason}'


def known_keys(model: type[BaseModel], keys: Iterable[Any]) -> list[str]:
    """The keys that a section may have; `keys` is the section's place, as in the `loc` of pydantic's errors."""
    schema = model.model_json_schema()
    part = schema

    def resolved(part: dict[str, Any]) -> dict[str, Any]:
        while '$ref' in part or 'allOf' in part:  # pydantic before 2.9 wraps a reference that has a description
            reference = part.get('$ref') or part['allOf'][0]['$ref']
            part = schema['$defs'][reference.rsplit('/', 1)[1]]
        return part

    for key in keys:
        part = resolved(part)
        if key in ('paired', 'other') and ('oneOf' in part or 'anyOf' in part):
            choices = [resolved(choice) for choice in part.get('oneOf', part.get('anyOf', []))]
            part = choices[0] if key == 'paired' else choices[-1]
            continue
        part = part.get('properties', {}).get(str(key)) or part.get('additionalProperties') or {}
        part = resolved(part)
        if 'anyOf' in part and not part.get('properties'):
            options = [resolved(choice) for choice in part['anyOf']]
            part = next((choice for choice in options if 'properties' in choice), part)
    return list(resolved(part).get('properties', {}))


def fit_to_machine(opt: Options) -> None:
    """Let an option file written for GPUs run without one, where BasicSR would fail with a driver error."""
    if torch.cuda.is_available() and opt['num_gpu'] != 0:
        if opt['num_gpu'] == 'auto':
            opt['num_gpu'] = torch.cuda.device_count()
        return
    opt['num_gpu'] = 0
    for dataset in opt['datasets'].values():
        dataset['pin_memory'] = False
        if dataset.get('prefetch_mode') == 'cuda':
            dataset['prefetch_mode'] = None


def complete_datasets(opt: Options) -> None:
    for phase, dataset in opt['datasets'].items():
        dataset['phase'], dataset['scale'] = phase.split('_')[0], opt['scale']
        for key in ('dataroot_gt', 'dataroot_lq'):
            if dataset.get(key) is not None:
                dataset[key] = str(Path(dataset[key]).expanduser())


def home(opt: Options, option_file: Path, root: Path) -> Path:
    """The folder whose experiments/ holds the run to go on: `root`, the option file's or its parent; else `root`."""
    for folder in (root, option_file.parent, option_file.parent.parent):
        if is_dir(Path(folder, opt['path']['experiments_root'] or 'experiments', opt['name'])):
            return folder
    return root


def complete_paths(opt: Options, root: Path) -> None:
    """Set the paths of experiments and results as BasicSR does."""
    paths = opt['path']
    for key, path in paths.items():
        if path is not None and ('resume_state' in key or 'pretrain_network' in key):
            paths[key] = str(Path(path).expanduser())
    if opt['is_train']:
        experiment = root / Path(paths['experiments_root'] or 'experiments').expanduser() / opt['name']
        paths['experiments_root'] = paths['log'] = str(experiment)
        for key in ('models', 'training_states', 'visualization'):
            paths[key] = str(experiment / key)
    else:
        results = root / Path(paths['results_root'] or 'results').expanduser() / opt['name']
        paths['results_root'] = paths['log'] = str(results)
        paths['visualization'] = str(results / 'visualization')


def check_paths(opt: Options, option_file: Path, resumed: Sequence[str] = ()) -> None:
    """Refuse missing data and weights before anything is made, with one line that says what to do.

    Args:
        opt: the options, as `read_options` returns them.
        option_file: the file that they are from, for messages.
        resumed: networks that go on with the run's own weights instead of those that the file names.
    """
    if not opt['is_train']:
        if opt['path'].get('pretrain_network_g') is None:
            raise OptionError(f'{option_file}: path: names no weights: pretrain_network_g is expected')
        if not opt['datasets']:
            raise OptionError(f'{option_file}: datasets: names no data set: test_1 is expected')
    for phase, dataset in opt['datasets'].items():
        for key in ('dataroot_gt', 'dataroot_lq'):
            path = dataset.get(key)
            if path is not None and not exists(Path(path)):
                made_by = 'nlsn prepare --input HR_IMAGES' + (' --test' if not phase.startswith('train') else '')
                raise UserError(
                    f'{option_file}: there is no {path} (datasets: {phase}: {key}); make it by `{made_by} ...` '
                    '(see `nlsn prepare --help`), or see NLSN train on sample data by '
                    '`nlsn train -opt quickstart_NLSN_x2.yml`'
                )
    for key, weights in opt['path'].items():
        is_read = key.startswith('pretrain_network_') and key.removeprefix('pretrain_') not in resumed
        if is_read and weights is not None:
            try:
                check_readable(weights)
            except CheckpointError as error:
                raise CheckpointError(f'{option_file}: path: {key}: {error}') from error


def check_scale(opt: Options, option_file: Path) -> None:
    """Refuse a network that does not enlarge by the scale of the image pairs, as that of BasicSR's train_RCAN_x2.yml.

    This is checked apart from the other mistakes, for BasicSR itself published that file.
    """
    if not any(kind_of_dataset(dataset) == 'paired' for dataset in opt['datasets'].values()):
        return
    upscale = innermost(opt['network_g']).get('upscale')
    if upscale not in (None, opt['scale']):
        raise OptionError(f'{option_file}: network_g: upscale {upscale} is not scale {opt["scale"]}')
    if upscale is None and (made := enlargement(opt)) not in (None, opt['scale']):
        raise OptionError(f'{option_file}: network_g: it enlarges by {made:g}, and scale is {opt["scale"]}')
