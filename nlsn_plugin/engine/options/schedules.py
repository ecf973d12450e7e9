"""Mistakes in the optimisers and learning-rate schedulers of an option file."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from basicsr.models import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from nlsn_plugin import checks
from nlsn_plugin.engine.options.classes import (
    Misfits,
    Options,
    misfits_of_call,
    misfits_of_values,
    without_type,
)
from nlsn_plugin.engine.options.documents import Keys
from nlsn_plugin.errors import FAILURES, first_line
from nlsn_plugin.models.mended_model import OWN_SCHEDULERS


def misfits_of_schedule(train: Options) -> Misfits:
    """Yield mistakes in optimisers and scheduler: they do not exist or, tried on one number, refuse their arguments."""
    mistakes = list(misfits_of_optimiser(('train', 'optim_g'), train['optim_g']))
    if not mistakes:
        mistakes += misfits_of_scheduler(train)
    if train.get('optim_d'):
        mistakes += misfits_of_optimiser(('train', 'optim_d'), train['optim_d'])
    yield from mistakes


def misfits_of_optimiser(keys: Keys, options: Options) -> Misfits:
    known = {name for name, cls in vars(torch.optim).items() if inspect.isclass(cls) and name != 'Optimizer'}
    name, arguments = options['type'], without_type(options)
    if name not in known:
        yield (*keys, 'type'), f'no {name}{checks.nearest(name, known)}'
        return
    mistakes = [
        *misfits_of_call(keys, getattr(torch.optim, name), arguments, given=1),
        *misfits_of_values(keys, arguments),
    ]
    if 'lr' not in arguments:
        mistakes.append((keys, 'lacks the key lr'))
    yield from mistakes
    if mistakes:
        return
    try:
        optimiser_of_a_number(options).step()  # some optimisers need more than gradients
    except FAILURES as error:
        yield keys, f'{name}: {first_line(error)}'


def optimiser_of_a_number(options: Options) -> torch.optim.Optimizer:
    number = torch.zeros(1, requires_grad=True)
    number.grad = torch.zeros(1)
    optimiser: torch.optim.Optimizer = getattr(torch.optim, options['type'])([number], **without_type(options))
    return optimiser


def each(check: Callable[[str, Any], object], is_list: bool = False) -> Callable[[str, Any], object]:
    """Return a check that applies `check` to each entry of a list, or to a single value unless `is_list` forbids it."""

    def check_all(name: str, value: Any) -> None:
        if is_list:
            checks.sequence(name, value)
        for part in value if isinstance(value, (list, tuple)) else [value]:
            check(name, part)

    return check_all


PLACES = ('milestones', 'restarts')
SPANS = ('periods', 'step_size', 'step_size_up', 'total_iters', 'total_steps', 'T_0', 'T_max', 'T_mult')
REALS = ('base_lr', 'end_factor', 'eta_min', 'factor', 'gamma', 'max_lr', 'power', 'restart_weights', 'start_factor')
ALLOWED = {
    **dict.fromkeys(PLACES, each(functools.partial(checks.count, least=0), is_list=True)),
    **dict.fromkeys(SPANS, each(functools.partial(checks.count, least=1))),
    **dict.fromkeys(REALS, each(checks.real)),
}
"""Checks of arguments that schedulers take unchecked and would only fail on in the middle of a run."""

OTHERS = ('LRScheduler', 'ReduceLROnPlateau', 'ChainedScheduler', 'SequentialLR')
"""PyTorch's schedulers that cannot be used: a base class, and those that need more than an optimiser and values."""


def misfits_of_scheduler(train: Options) -> Misfits:
    keys = ('train', 'scheduler')
    name, arguments = train['scheduler']['type'], without_type(train['scheduler'])
    own = {'MultiStepLR': lr_scheduler.MultiStepRestartLR, **vars(lr_scheduler)}
    known = {
        key
        for key, cls in vars(torch.optim.lr_scheduler).items()
        if inspect.isclass(cls) and issubclass(cls, LRScheduler) and key not in OTHERS and key[0] != '_'
    }
    known |= set(OWN_SCHEDULERS)
    if name not in known:
        yield (*keys, 'type'), f'no {name}{checks.nearest(name, known)}'
        return
    cls = own.get(name) or getattr(torch.optim.lr_scheduler, name)
    mistakes = [*misfits_of_call(keys, cls, arguments, given=1), *misfits_of_values(keys, arguments, ALLOWED)]
    yield from mistakes
    if mistakes:
        return
    try:
        optimiser = optimiser_of_a_number(train['optim_g'])
        scheduler = cls(optimiser, **arguments)
        for _ in range(min(3, train['total_iter'] - 1)):
            optimiser.step()
            scheduler.step()
    except FAILURES as error:
        yield keys, f'{name}: {first_line(error)}'
        return
    warmup = train.get('warmup_iter', -1)
    for key in PLACES:
        places = arguments.get(key, ())
        if any(0 < place < warmup for place in places):
            yield (*keys, key), f'{places}: one is before warmup_iter {warmup}, while the rate still warms up'
    periods, steps, total = arguments.get('periods'), arguments.get('total_steps'), train['total_iter']
    if periods is not None and sum(periods) < total:
        yield keys, f'periods {periods} end before total_iter {total}'
    if steps is not None and steps < total:
        yield (*keys, 'total_steps'), f'{steps} end before total_iter {total}'
