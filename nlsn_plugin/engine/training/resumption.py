"""Resuming of a run: the state to go on from, and the options that have to be as they were."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from basicsr.utils import check_resume

from nlsn_plugin.archs.bases import base_class
from nlsn_plugin.engine.options.classes import resumed_networks
from nlsn_plugin.engine.options.model_keys import own_keys
from nlsn_plugin.engine.training import checkpoints
from nlsn_plugin.engine.training.batches import patches_of_an_update
from nlsn_plugin.errors import UserError
from nlsn_plugin.models.description import OF_THE_RUN

Options = dict[str, Any]

FIXED = ('optim_g', 'optim_d', 'scheduler')
"""Sections of `train` that cannot be changed until the end of a run."""
OF_BATCHES = (
    *('dataroot_gt', 'dataroot_lq', 'meta_info_file'),
    *('gt_size', 'use_hflip', 'use_rot', 'dataset_enlarge_ratio', 'mean', 'std'),
)
"""Options of the training set that decide what its batches contain."""


def resume_state(opt: Options) -> dict[str, Any] | None:
    """The state to go on from: the one named, or with --auto_resume the newest that is intact; None for a new run.

    `opt` is completed by what follows from it: the path, a seed that was drawn, and the keys of the weights.
    """
    path = opt['path'].get('resume_state')
    state = None
    if opt['auto_resume']:
        found = checkpoints.newest_intact(opt, print if opt['rank'] == 0 else lambda message: None)
        path, state = found or (None, None)
        opt['path']['resume_state'] = str(path) if path else None
        if not found and opt['rank'] == 0:
            print(f'there is no state in {opt["path"]["training_states"]}: the run begins at 0')
    elif path is not None:
        state = checkpoints.load_state(opt, Path(path))
    if state:
        check_same_course(opt, state, path)
        if opt['seed_is_drawn']:  # the run's own seed was drawn when it began
            opt['manual_seed'] = state.get('run', {}).get('seed', opt['manual_seed'])
        check_resume(opt, state['iter'])
        for name in resumed_networks(opt):  # the run's own files have these, whatever the initial weights had
            opt['path'][name.replace('network_', 'param_key_')] = 'params'
            opt['path'][name.replace('network_', 'strict_load_')] = True
    return state


def check_same_course(opt: Options, state: dict[str, Any], path: Path | str) -> None:
    """Refuse changes that a resumed run could not follow, for its state holds the optimisers and the schedulers.

    Print what else has changed, such as arguments of the network that no weight shows.
    """
    if state['iter'] > opt['train']['total_iter']:
        raise UserError(f'{path} is of iteration {state["iter"]}, after total_iter {opt["train"]["total_iter"]}')
    now = course_of(opt)
    course = state.get('run', {}).get('course', now)
    for section, before in course.items():
        if section in FIXED and now[section] != before:
            raise UserError(
                f'train: {section} is {now[section]}, and {path} cannot go on with that: its run has {before}; '
                'to change it, begin a new run from its weights (pretrain_network_g)'
            )
    if opt['rank'] == 0:
        for section in [name for name in course if name not in FIXED]:
            for name, before, value in changes(course[section], now[section] or {}):
                print(f'{section}: {name} was {before} until {Path(path).name}, and is {value} from now on')
        seed = state.get('run', {}).get('seed')
        if seed not in (None, opt['manual_seed']) and not opt['seed_is_drawn']:
            print(f'manual_seed was {seed} until {Path(path).name}, and is {opt["manual_seed"]} from now on')


def course_of(opt: Options) -> dict[str, Options | None]:
    """The options that shape a run from its first update to its last. A model's `opt` will not do: it lacks some."""
    data = opt['datasets']['train']
    return {
        **{section: opt['train'].get(section) for section in FIXED},
        'network_g': lasting(opt['network_g']),
        'train': {key: value for key, value in opt['train'].items() if key not in (*FIXED, 'total_iter')},
        'model': {key: opt[key] for section, key in own_keys(opt['model_type']) if not section and key in opt},
        'datasets: train': {**{key: data.get(key) for key in OF_BATCHES}, 'batch size': patches_of_an_update(opt)},
    }


def lasting(network: Options) -> Options:
    """The arguments that change what a network computes, including its class's defaults of simple types."""
    parameters = inspect.signature(base_class(network['type'])).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    plain = {name: value for name, value in defaults.items() if isinstance(value, (bool, int, float, str))}
    return without_costs({**plain, **network})


def without_costs(arguments: Options) -> Options:
    """The arguments without those in OF_THE_RUN, which are also removed from nested sections."""
    kept = {name: value for name, value in arguments.items() if name not in OF_THE_RUN}
    return {name: without_costs(value) if isinstance(value, dict) else value for name, value in kept.items()}


def changes(before: Options, now: Options) -> Iterator[tuple[str, Any, Any]]:
    """Yield name and both values of each option that differs; the value of one that is not set is 'not set'."""
    for name in dict.fromkeys([*before, *now]):
        was, value = ('not set' if options.get(name) is None else options[name] for options in (before, now))
        if was != value:
            yield name, was, value
