"""Mistakes in options that types do not show: unknown classes, arguments they do not take, what cannot be together."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Iterator
from typing import Any

import torch
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY

from nlsn_plugin.archs import bases
from nlsn_plugin.checks import misfits as misfits_of_arguments
from nlsn_plugin.checks import nearest
from nlsn_plugin.engine.options.documents import Keys
from nlsn_plugin.engine.options.schema import Train, Validation
from nlsn_plugin.errors import UserError

Options = dict[str, Any]


def misfits(opt: Options, is_train: bool) -> Iterator[tuple[Keys, str]]:
    """Where each mistake stands, and what it is."""
    yield from misfit_of_class(('model_type',), opt['model_type'], None, MODEL_REGISTRY)
    network = list(misfit_of_class(('network_g',), opt['network_g']['type'], opt['network_g'], ARCH_REGISTRY))
    yield from network or misfits_of_network(('network_g',), opt['network_g'])
    yield from ignored_by_model(opt)
    for name, metric in ((opt.get('val') or {}).get('metrics') or {}).items():
        arguments = {key: value for key, value in metric.items() if key != 'better'}
        place: Keys = ('val', 'metrics', name)
        yield from misfit_of_class(place, metric['type'], arguments, METRIC_REGISTRY, given=2)
        yield from misspelt_numbers(place, arguments)
        if not isinstance(metric.get('crop_border', 0), (int, str)):
            yield (*place, 'crop_border'), f'is {metric["crop_border"]}: a whole number is expected'
    yield from misfits_of_datasets(opt['datasets'])
    if not is_train:
        return
    train, data = opt['train'], opt['datasets']['train']
    for key in ('pixel_opt', 'perceptual_opt', 'gan_opt'):
        if train.get(key):
            yield from misfits_of_loss(('train', key), train[key])
    yield from misfits_of_schedule(train)
    if data.get('gt_size', 0) % opt['scale']:
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
    if opt['compare_with_bicubic']:
        if not (val and val['metrics']):
            yield ('compare_with_bicubic',), 'needs val with metrics'
        if not any(phase.startswith('val') for phase in opt['datasets']):
            yield ('compare_with_bicubic',), 'needs a data set val'


def misfits_of_datasets(datasets: Options) -> Iterator[tuple[Keys, str]]:
    """Names that stand twice, of which BasicSR would take the last alone; a mean without a deviation."""
    phases: dict[str, str] = {}
    for phase, dataset in datasets.items():
        if dataset['name'] in phases:
            yield ('datasets', phase, 'name'), f'{dataset["name"]} is the name of {phases[dataset["name"]]} already'
        elif phase != 'train':
            phases[dataset['name']] = phase
        for key, other in (('mean', 'std'), ('std', 'mean')):
            if dataset.get(key) is not None and dataset.get(other) is None:
                yield ('datasets', phase, key), f'needs {other}'


def misfits_of_loss(keys: Keys, options: Options) -> Iterator[tuple[Keys, str]]:
    """A loss that is not there, or refuses its arguments; one between pixels is made, others may read large files."""
    mistakes = [
        *misfit_of_class(keys, options['type'], options, LOSS_REGISTRY),
        *misspelt_numbers(keys, options),
    ]
    yield from mistakes
    if mistakes or keys[-1] != 'pixel_opt':
        return
    try:
        LOSS_REGISTRY.get(options['type'])(**{key: value for key, value in options.items() if key != 'type'})
    except (TypeError, ValueError) as error:
        yield keys, f'{options["type"]}: {error}'


def misspelt_numbers(keys: Keys, arguments: Options) -> Iterator[tuple[Keys, str]]:
    """Numbers that YAML takes for text."""
    for key, value in arguments.items():
        with contextlib.suppress(TypeError, ValueError):
            if isinstance(value, str) and math.isfinite(float(value)):
                yield (*keys, key), f'{value!r} is text (in YAML write 0.0001, or !!float 1e-4)'


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
    number = torch.zeros(1, requires_grad=True)
    try:
        optimiser = cls([number], **arguments)
        number.grad = torch.zeros(1)
        optimiser.step()  # some want more than gradients
    except (TypeError, ValueError, RuntimeError) as error:
        yield keys, f'{name}: {str(error).splitlines()[0]}'
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
