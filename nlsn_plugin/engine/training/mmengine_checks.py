"""Mistakes in a config of mmengine's, found before anything is built."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.registry import (
    DATA_SAMPLERS,
    DATASETS,
    HOOKS,
    LOOPS,
    METRICS,
    MODELS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    Registry,
)
from mmengine.runner import Runner
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.utils.data import DataLoader

from nlsn_plugin import checks
from nlsn_plugin.engine.options.classes import misfits_of_values
from nlsn_plugin.engine.options.schedules import ALLOWED
from nlsn_plugin.engine.training.mmengine_config import fault
from nlsn_plugin.errors import FAILURES, ArgumentError, OptionError, first_line
from nlsn_plugin.metrics.mmengine_metric import SuperResolutionMetric

NEEDED = ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper')
PHASES = (
    ('val_dataloader', 'val_cfg', 'val_evaluator'),
    ('test_dataloader', 'test_cfg', 'test_evaluator'),
)
"""Keys that Runner takes all together or not at all."""


class Kind(NamedTuple):
    """A kind of parts of a config, which one registry builds.

    Attributes:
        registry: the registry of their classes.
        supplied: arguments that mmengine supplies besides those of the config.
        default: name of the class if the config names none.
    """

    registry: Registry
    supplied: tuple[str, ...] = ()
    default: str | None = None


LOOP = ('runner', 'dataloader')
PARTS = {
    'model': Kind(MODELS, ('data_preprocessor',)),
    'model.generator': Kind(MODELS),
    'model.pixel_loss': Kind(MODELS),
    'train_cfg': Kind(LOOPS, LOOP),
    'val_cfg': Kind(LOOPS, (*LOOP, 'evaluator'), 'ValLoop'),
    'train_dataloader.dataset': Kind(DATASETS),
    'val_dataloader.dataset': Kind(DATASETS),
    'train_dataloader.sampler': Kind(DATA_SAMPLERS, ('dataset', 'seed')),
    'val_dataloader.sampler': Kind(DATA_SAMPLERS, ('dataset', 'seed')),
    'val_evaluator': Kind(METRICS),
    'optim_wrapper': Kind(OPTIM_WRAPPERS, ('optimizer', 'paramwise_cfg'), 'OptimWrapper'),
    'optim_wrapper.optimizer': Kind(OPTIMIZERS, ('params',)),
    'param_scheduler': Kind(PARAM_SCHEDULERS, ('optimizer', 'epoch_length', 'convert_to_iter_based')),
    'default_hooks.*': Kind(HOOKS, ('priority',)),
    'custom_hooks': Kind(HOOKS, ('priority',)),
}
"""The kinds of the parts, by their key in a config; if a part is a list, each of its entries is of that kind."""
READ_OF_LOADERS = ('batch_size', 'num_batch_per_epoch', 'sampler')
CALLS = (
    ('train_dataloader', DataLoader, READ_OF_LOADERS),
    ('val_dataloader', DataLoader, READ_OF_LOADERS),
    ('randomness', Runner.set_randomness, ('self',)),
)
"""Parts that hold the arguments of a call: key, what is called, and names that are supplied or read elsewhere."""
NUMBERS = (
    ('optim_wrapper', 'accumulative_counts', 1),
    ('train_cfg', 'val_begin', None),
    ('train_cfg', 'val_interval', 1),
    ('default_hooks.checkpoint', 'interval', None),
    ('default_hooks.checkpoint', 'max_keep_ckpts', None),
    ('default_hooks.logger', 'interval', None),
)
"""Whole numbers that are only read during the run: part, name, and the least value (None for any)."""
CLIPPING: dict[str, Callable[..., object]] = {'norm': clip_grad_norm_, 'value': clip_grad_value_}


def check(cfg: Config, path: str) -> None:
    """Refuse a config that Runner, or a part that it builds, would refuse.

    Raises:
        OptionError: the config has mistakes, with a line for each: what is missing or, if nothing is, unknown names and
            wrong arguments; or it imports a class that cannot be imported.
    """
    try:
        mistakes = [f'{path} {text}' for text in gaps(cfg)] or [f'{path}: {key}: {text}' for key, text in misfits(cfg)]
    except ImportError as error:  # raised by a class that the config imports, at its first use
        raise OptionError(fault(Path(path), error)) from error
    if mistakes:
        raise OptionError('\n'.join(mistakes))


def gaps(cfg: Config) -> Iterator[str]:
    """Yield messages about the keys that a config lacks."""
    absent = [name for name in NEEDED if cfg.get(name) is None]
    if absent:
        hint = ": it is an option file for `nlsn train`, not one of mmengine's" if 'network_g' in cfg else ''
        yield f'has no {", no ".join(absent)}{hint}'
    for phase in PHASES:
        absent = [name for name in phase if cfg.get(name) is None]
        if 0 < len(absent) < len(phase):
            yield f'has no {", no ".join(absent)}: {", ".join(phase)} go together'


def misfits(cfg: Config) -> Iterator[tuple[str, str]]:
    """Yield key and text of each mistake: classes that do not exist; arguments that are unknown, missing or wrong."""
    for pattern, kind in PARTS.items():
        for key, options in entries_of(cfg, pattern):
            if isinstance(options, (str, int, float)):
                yield key, f'{options!r} is not allowed: dict(...) is expected'
            if not isinstance(options, Mapping):
                continue  # an object that is built already; or None, for a hook to be left out
            if key == 'param_scheduler' and options and all(map(is_part, options.values())):
                continue  # schedules of several optimisers, by name
            if key == 'optim_wrapper' and ('constructor' in options or 'optimizer' not in options):
                continue  # for several optimisers, or only that constructor knows its form
            with kind.registry.switch_scope_and_registry(
                options.get('_scope_') or cfg.get('default_scope', 'mmengine')
            ) as registry:
                yield from misfits_of_part(key, options, kind, registry)
    for key, called, supplied in CALLS:
        if isinstance(cfg.get(key), Mapping):
            yield from misfits_of_call(key, called, list(cfg[key]), supplied)
    for part, name, least in NUMBERS:
        for key, options in entries_of(cfg, part):
            if isinstance(options, Mapping) and name in options:
                yield from misfits_of_number(key, name, options[name], least)
    for key, options in entries_of(cfg, 'optim_wrapper.clip_grad'):
        if options is not None:
            yield from misfits_of_clipping(key, options)
    for key, options in entries_of(cfg, 'param_scheduler'):
        if isinstance(options, Mapping):
            said = {name: value for name, value in options.items() if value is not None}
            yield from ((': '.join(place), text) for place, text in misfits_of_values((key,), said, ALLOWED))
    yield from misfits_of_best(cfg)


def name_of(kind: Any) -> str:
    """The name of a part's type, which in configs that import their classes is the class itself."""
    return str(getattr(kind, '__name__', kind))


def is_part(value: Any) -> bool:
    """Whether a value describes a part for a registry to build, or several of them."""
    return isinstance(value, (Mapping, list, tuple))


def entries_of(cfg: Config, pattern: str) -> Iterator[tuple[str, Any]]:
    """Yield the parts of a config that a key of PARTS stands for, each with its own key."""
    above, _, last = pattern.rpartition('.')
    holder = cfg.get(above) if above else cfg._cfg_dict
    if not isinstance(holder, Mapping):
        return
    for name in holder if last == '*' else [last]:
        part = holder.get(name)
        if name == 'val_evaluator' and isinstance(part, Mapping) and 'metrics' in part:
            name, part = 'val_evaluator.metrics', part['metrics']
        key = f'{above}.{name}' if above else name
        if isinstance(part, (list, tuple)):
            yield from ((f'{key}.{index}', entry) for index, entry in enumerate(part))
        else:
            yield key, part


def misfits_of_part(key: str, options: Mapping[str, Any], kind: Kind, registry: Registry) -> Iterator[tuple[str, str]]:
    arguments = [name for name in options if name not in ('type', '_scope_')]
    name = options.get('type', kind.default)
    if name is None and kind.registry is LOOPS and 'by_epoch' in options:
        name = 'EpochBasedTrainLoop' if options['by_epoch'] else 'IterBasedTrainLoop'
        arguments.remove('by_epoch')
    if name is None:
        yield key, 'has no type'
        return
    found = registry.get(name) if isinstance(name, str) else name
    if not callable(found):
        known = {*registry.module_dict, *kind.registry.module_dict}
        yield f'{key}.type', f'no {name}{checks.nearest(str(name), known)}'
        return
    yield from misfits_of_call(key, found, arguments, kind.supplied)


def misfits_of_call(
    key: str, called: Any, arguments: list[str], supplied: tuple[str, ...]
) -> Iterator[tuple[str, str]]:
    known = parameters_behind(called)
    for name in arguments:
        if known and name not in (*known, *supplied):
            yield f'{key}.{name}', f'{called.__name__} takes no {name}{checks.nearest(name, known)}'
    for argument, text in checks.misfits(called, [*arguments, *set(supplied).difference(arguments)]):
        if argument not in supplied:
            yield (key if argument is None else f'{key}.{argument}'), text


def misfits_of_number(key: str, name: str, value: Any, least: int | None) -> Iterator[tuple[str, str]]:
    try:
        checks.count(name, value, least)
    except ArgumentError as error:
        yield key, str(error)


def misfits_of_best(cfg: Config) -> Iterator[tuple[str, str]]:
    """Yield figures that are to choose the best checkpoint but that the plugin's metric does not compute."""
    evaluators = [options for _, options in entries_of(cfg, 'val_evaluator') if isinstance(options, Mapping)]
    if not evaluators or any(name_of(options.get('type')) != SuperResolutionMetric.__name__ for options in evaluators):
        return
    prefixes = [options.get('prefix') for options in evaluators]
    known = [f'{prefix}/{name}' if prefix else name for prefix in prefixes for name in SuperResolutionMetric.GIVEN]
    for key, options in entries_of(cfg, 'default_hooks.checkpoint'):
        asked = options.get('save_best') if isinstance(options, Mapping) else None
        for name in asked if isinstance(asked, (list, tuple)) else [asked]:
            if name not in (None, 'auto', *known):
                yield f'{key}.save_best', f'val_evaluator gives no {name}{checks.nearest(str(name), known)}'


def misfits_of_clipping(key: str, options: Any) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with the settings of PyTorch's gradient clipping, which is tried on a gradient of zero."""
    if not isinstance(options, Mapping):
        yield key, f'{options!r} is not allowed: dict(max_norm=...) is expected'
        return
    arguments = {name: value for name, value in options.items() if name != 'type'}
    try:
        kind = checks.one_of('type', options.get('type', 'norm'), tuple(CLIPPING))
    except ArgumentError as error:
        yield key, str(error)
        return
    mistakes = list(misfits_of_call(key, CLIPPING[kind], list(arguments), ('parameters',)))
    yield from mistakes
    weight = torch.zeros(1, requires_grad=True)
    weight.grad = torch.zeros(1)
    try:
        if not mistakes:
            CLIPPING[kind](weight, **arguments)
    except FAILURES as error:
        yield key, f'{CLIPPING[kind].__name__} does not take {arguments}: {first_line(error)}'


def parameters_behind(found: Any) -> list[str]:
    """The parameters of one of mmengine's schedulers or wrappers, and of the classes above that get its `**kwargs`.

    Empty for everything else, and if no class above ends the chain of `**kwargs`.
    """
    names: list[str] = []
    if not inspect.isclass(found) or not found.__module__.startswith('mmengine.optim.'):
        return names
    for cls in found.__mro__[:-1]:
        if '__init__' in vars(cls):
            parameters = inspect.signature(cls).parameters.values()
            names += [each.name for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
            if all(each.kind is not each.VAR_KEYWORD for each in parameters):
                return names
    return []
