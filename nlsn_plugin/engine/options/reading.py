"""Options: compared with the schema and with each other, completed as by BasicSR."""

from __future__ import annotations

import argparse
import inspect
import os
import random
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from basicsr.utils import set_random_seed
from basicsr.utils.dist_util import get_dist_info
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY
from pydantic import BaseModel, ValidationError

from nlsn_plugin.archs import bases
from nlsn_plugin.archs.bases import innermost
from nlsn_plugin.checks import misfits as misfits_of_arguments
from nlsn_plugin.checks import nearest
from nlsn_plugin.engine import distributed
from nlsn_plugin.engine.options.documents import OVERRIDES, Document, Keys
from nlsn_plugin.engine.options.schema import TestOptions, Train, TrainingOptions, Validation
from nlsn_plugin.errors import OptionError, UserError
from nlsn_plugin.models.checkpoint import check_file

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
}
"""Words for pydantic's kinds of mistakes; the others have its own."""


def read_options(option_file: Path, args: argparse.Namespace, root: Path, is_train: bool) -> Options:
    """Read an option file, refuse what is wrong with it, and complete it.

    Args:
        option_file: the file.
        args: the rest of the command line, as `nlsn train` parses it.
        root: where experiments/ or results/ lie, unless --auto_resume finds the run elsewhere: see `home`.

    Returns:
        The options as BasicSR's own parser would give them, and defaults of the schema.

    Raises:
        OptionError: with a line for each mistake.
    """
    document = Document(option_file)
    for override in shlex.split(os.environ.get(OVERRIDES, '')):
        document.override(override, OVERRIDES)
    for override in args.force_yml or []:
        document.override(override)
    opt = checked(document, is_train)
    distributed.start(args.launcher, **opt['dist_params'])
    opt['dist'] = args.launcher != 'none'
    opt['rank'], opt['world_size'] = get_dist_info()
    if args.auto_resume:
        root = home(opt, option_file, root)
    opt['auto_resume'], opt['is_train'], opt['root_path'] = args.auto_resume, is_train, str(root)
    opt['archive'] = getattr(args, 'archive', False)
    if opt['manual_seed'] is None:
        opt['manual_seed'] = distributed.agreed(random.randint(1, 10000))
    set_random_seed(opt['manual_seed'] + opt['rank'])
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
    """The options with the schema's defaults.

    Raises:
        OptionError: a line for each key that is unknown, missing or of another type, each class that is not there or
            takes other arguments, each combination that cannot be.
    """
    model = TrainingOptions if is_train else TestOptions
    try:
        opt = model.model_validate(document.options).model_dump()
    except ValidationError as error:
        mistakes = [said(document, model, dict(mistake)) for mistake in error.errors()]
    else:
        mistakes = [f'{document.where(keys)}: {": ".join(keys)}: {text}' for keys, text in misfits(opt, is_train)]
    if len(mistakes) > 1:
        raise OptionError(f'{document.path} has {len(mistakes)} mistakes:\n  ' + '\n  '.join(mistakes))
    if mistakes:
        raise OptionError(mistakes[0])
    return opt


def said(document: Document, model: type[BaseModel], mistake: dict[str, Any]) -> str:
    """One line for one of pydantic's errors."""
    keys = tuple(str(key) for key in mistake['loc'] if key not in ('paired', 'other') or key in document.options)
    *above, name = keys or ('',)
    section = ''.join(f'{key}: ' for key in above)
    where = document.where(keys)
    if mistake['type'] == 'extra_forbidden':
        return f'{where}: {section}{name} is unknown{nearest(name, known_keys(model, mistake["loc"][:-1]))}'
    if mistake['type'] == 'missing':
        return f'{where}: {section}lacks the key {name}'
    value = mistake['input']
    reason = EXPECTED.get(mistake['type']) or mistake['msg'].removeprefix('Value error, ')
    if isinstance(value, str) and mistake['type'] == 'float_type':
        reason += ' (in YAML write 0.0001, or !!float 1e-4)'
    if isinstance(value, dict) and mistake['type'] == 'value_error':  # of the keys in it
        return f'{where}: {section}{name}: {reason}'
    return f'{where}: {section}{name} is {value!r}: {reason}'


def known_keys(model: type[BaseModel], keys: Iterable[Any]) -> list[str]:
    """The keys that a section may have; where it lies is told as pydantic tells it."""
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


def misfits(opt: Options, is_train: bool) -> Iterator[tuple[Keys, str]]:
    """What types alone do not show: unknown classes, arguments that they do not take, what cannot be together."""
    yield from misfit_of_class(('model_type',), opt['model_type'], None, MODEL_REGISTRY)
    network = list(misfit_of_class(('network_g',), opt['network_g']['type'], opt['network_g'], ARCH_REGISTRY))
    yield from network or misfits_of_network(('network_g',), opt['network_g'])
    yield from ignored_by_model(opt)
    for name, metric in ((opt.get('val') or {}).get('metrics') or {}).items():
        arguments = {key: value for key, value in metric.items() if key != 'better'}
        yield from misfit_of_class(('val', 'metrics', name), metric['type'], arguments, METRIC_REGISTRY, given=2)
    if not is_train:
        return
    train, data = opt['train'], opt['datasets']['train']
    for key in ('pixel_opt', 'perceptual_opt', 'gan_opt'):
        if train.get(key):
            yield from misfit_of_class(('train', key), train[key]['type'], train[key], LOSS_REGISTRY)
    yield from misfits_of_schedule(train)
    if 'gt_size' in data:
        if data['gt_size'] % opt['scale']:
            fitting = data['gt_size'] // opt['scale'] * opt['scale'] or opt['scale']
            text = f'{data["gt_size"]} is not divisible by scale {opt["scale"]}: {fitting} is'
            yield ('datasets', 'train', 'gt_size'), text
        if data['batch_size_per_gpu'] % train['accumulate']:
            text = f'{train["accumulate"]} does not divide batch_size_per_gpu {data["batch_size_per_gpu"]}'
            yield ('train', 'accumulate'), text
        if data['prefetch_mode'] == 'cuda' and not data['pin_memory']:
            yield ('datasets', 'train', 'prefetch_mode'), 'cuda needs pin_memory: true'
    val = opt.get('val')
    if val and len(opt['datasets']) == 1:
        yield ('val',), 'there is nothing to validate on: datasets has no val'
    if val and not val['metrics'] and not val['save_img']:
        yield ('val',), 'has no metrics and writes no images: there is nothing to do'
    if opt['compare_with_bicubic'] and not val:
        yield ('compare_with_bicubic',), 'needs val'


def ignored_by_model(opt: Options) -> Iterator[tuple[Keys, str]]:
    """What was set and the model would pass over in silence."""
    if opt['model_type'] not in MODEL_REGISTRY:
        return
    classes = {cls.__name__ for cls in MODEL_REGISTRY.get(opt['model_type']).__mro__}
    for section, model in (('train', Train), ('val', Validation)):
        for key, field in model.model_fields.items():
            needed = next((name for name in ('NLSNModel', 'GAN') if f'({name}' in (field.description or '')), None)
            value = (opt.get(section) or {}).get(key, field.default)
            if needed and value != field.default and not any(needed in name for name in classes):
                reader = 'NLSNModel' if needed == 'NLSNModel' else 'GAN models'
                yield (section, key), f'is read by {reader} alone, not by {opt["model_type"]}'


def misfit_of_class(
    keys: Keys, name: str, arguments: Options | None, registry: Any, given: int = 0
) -> Iterator[tuple[Keys, str]]:
    """A class that a registry has not, or arguments (besides `given` others) that it does not take."""
    if name not in registry:
        place = keys if arguments is None else (*keys, 'type')
        yield place, f'no {name}{nearest(name, registry.keys())}'
    elif arguments is not None:
        named = {key: value for key, value in arguments.items() if key != 'type'}
        yield from misfit_of_call(keys, registry.get(name), named, given)


def misfit_of_call(keys: Keys, cls: Any, arguments: Options, given: int) -> Iterator[tuple[Keys, str]]:
    for key, text in misfits_of_arguments(cls, arguments, given):
        yield (keys if key is None else (*keys, key)), text


def misfits_of_network(keys: Keys, options: Options) -> Iterator[tuple[Keys, str]]:
    """Values that the plugin's own networks refuse; found by building one, at no cost where the meta device will do."""
    network = ARCH_REGISTRY.get(options['type'])
    if not network.__module__.startswith('nlsn_plugin.'):
        return
    arguments = {key: value for key, value in options.items() if key != 'type'}
    if isinstance(arguments.get('arch'), dict):
        mistakes = [((*keys, 'arch', *below), text) for below, text in bases.misfits(arguments['arch'])]
        if mistakes:
            yield from mistakes
            return
    for device in ('meta', 'cpu'):
        try:
            with torch.device(device):
                network(**arguments)
        except UserError as error:
            said = str(error)
        else:
            return
    name, _, text = said.partition(': ')
    yield ((*keys, name), text) if name in arguments else (keys, said)


def misfits_of_schedule(train: Options) -> Iterator[tuple[Keys, str]]:
    """An optimiser or a scheduler that is not there, or refuses its arguments; found by making one of a number."""
    from basicsr.models import lr_scheduler

    keys: Keys = ('train', 'optim_g')
    optimisers = {name for name, cls in vars(torch.optim).items() if inspect.isclass(cls) and name != 'Optimizer'}
    arguments = dict(train['optim_g'])
    name = arguments.pop('type')
    if name not in optimisers:
        yield (*keys, 'type'), f'no {name}{nearest(name, optimisers)}'
        return
    cls = getattr(torch.optim, name)
    if mistakes := list(misfit_of_call(keys, cls, arguments, given=1)):
        yield from mistakes
        return
    try:
        optimiser = cls([torch.zeros(1, requires_grad=True)], **arguments)
    except (TypeError, ValueError) as error:
        yield keys, f'{name}: {error}'
        return
    keys, arguments = ('train', 'scheduler'), dict(train['scheduler'])
    name = arguments.pop('type')
    own = {'MultiStepLR': lr_scheduler.MultiStepRestartLR, **vars(lr_scheduler)}
    known = {key for key, cls in vars(torch.optim.lr_scheduler).items() if inspect.isclass(cls) and key.endswith('LR')}
    known |= {'MultiStepRestartLR', 'CosineAnnealingRestartLR'}
    if name not in known:
        yield (*keys, 'type'), f'no {name}{nearest(name, known)}'
        return
    cls = own.get(name) or getattr(torch.optim.lr_scheduler, name)
    if mistakes := list(misfit_of_call(keys, cls, arguments, given=1)):
        yield from mistakes
        return
    try:
        cls(optimiser, **arguments)
    except (TypeError, ValueError, AssertionError) as error:
        yield keys, f'{name}: {error}'
    total, periods = train['total_iter'], arguments.get('periods')
    if periods is not None and sum(periods) < total:
        yield keys, f'periods {periods} end before total_iter {total}'


def fit_to_machine(opt: Options) -> None:
    """Let an option file written for GPUs run without one: BasicSR fails with a driver error otherwise."""
    if torch.cuda.is_available():
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
    """Where the run lies that is to go on: in the working directory, or beside the option file or its folder."""
    for folder in (root, option_file.parent, option_file.parent.parent):
        if Path(folder, opt['path']['experiments_root'] or 'experiments', opt['name']).is_dir():
            return folder
    return root


def complete_paths(opt: Options, root: Path) -> None:
    """Where BasicSR puts experiments and results."""
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


def check_scale(opt: Options, option_file: Path) -> None:
    """Refuse a network that does not enlarge as the pairs of images ask for, as BasicSR's train_RCAN_x2.yml does.

    Apart from the other mistakes in an option file: the file is one that BasicSR published.
    """
    upscale = innermost(opt['network_g']).get('upscale')
    paired = any('PairedImageDataset' in dataset['type'] for dataset in opt['datasets'].values())
    if paired and upscale not in (None, opt['scale']):
        raise OptionError(f'{option_file}: network_g: upscale {upscale} is not scale {opt["scale"]}')
