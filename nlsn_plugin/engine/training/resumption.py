"""Where a run goes on from: the state, and what of the option file has to be as it was."""

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
"""Sections of `train` that a run keeps to its end."""
OF_BATCHES = (
    *('dataroot_gt', 'dataroot_lq', 'meta_info_file'),
    *('gt_size', 'use_hflip', 'use_rot', 'dataset_enlarge_ratio', 'mean', 'std'),
)
"""What decides what is in them."""


def resume_state(opt: Options) -> dict[str, Any] | None:
    """The state to go on from: the one named, or with --auto_resume the newest that is intact; None for a new run."""
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
        if opt['seed_is_drawn']:  # the run's own was, when it began
            opt['manual_seed'] = state.get('run', {}).get('seed', opt['manual_seed'])
        check_resume(opt, state['iter'])
        for name in resumed_networks(opt):  # whatever the weights were called that they began with
            opt['path'][name.replace('network_', 'param_key_')] = 'params'
            opt['path'][name.replace('network_', 'strict_load_')] = True
    return state


def check_same_course(opt: Options, state: dict[str, Any], path: Path | str) -> None:
    """Refuse what a run that goes on could not follow: its state holds the optimisers and the schedulers. Say what
    else is otherwise, such as arguments of the network that no weight shows."""
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
    """What a run is made of from its first update to its last. Not for a model's options, which lack some of it."""
    data = opt['datasets']['train']
    return {
        **{section: opt['train'].get(section) for section in FIXED},
        'network_g': lasting(opt['network_g']),
        'train': {key: value for key, value in opt['train'].items() if key not in (*FIXED, 'total_iter')},
        'model': {key: opt[key] for section, key in own_keys(opt['model_type']) if not section and key in opt},
        'datasets: train': {**{key: data.get(key) for key in OF_BATCHES}, 'batch size': patches_of_an_update(opt)},
    }


def lasting(network: Options) -> Options:
    """Arguments that change what a network computes, its class's simple defaults among them."""
    parameters = inspect.signature(base_class(network['type'])).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    plain = {name: value for name, value in defaults.items() if isinstance(value, (bool, int, float, str))}
    return without_costs({**plain, **network})


def without_costs(arguments: Options) -> Options:
    """Arguments but those of OF_THE_RUN, in sections of them too."""
    kept = {name: value for name, value in arguments.items() if name not in OF_THE_RUN}
    return {name: without_costs(value) if isinstance(value, dict) else value for name, value in kept.items()}


def changes(before: Options, now: Options) -> Iterator[tuple[str, Any, Any]]:
    """What differs: names, and both values; of what is not set 'not set'."""
    for name in dict.fromkeys([*before, *now]):
        was, value = ('not set' if options.get(name) is None else options[name] for options in (before, now))
        if was != value:
            yield name, was, value
