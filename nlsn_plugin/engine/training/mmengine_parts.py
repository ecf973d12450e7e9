"""What mmengine's Runner lacks for super-resolution: other layouts of weights, random states, bfloat16 on a CPU.

Hooks and wrapper are registered by `nlsn_plugin.registry`.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import CheckpointLoader, autocast
from torch import nn

from nlsn_plugin import checks
from nlsn_plugin.engine.training import randomness
from nlsn_plugin.errors import CheckpointError
from nlsn_plugin.models.checkpoint import (
    AS_BEGUN,
    DAMAGES,
    GENERATOR,
    WHAT_FITS,
    check_readable,
    fitting,
    is_safetensors,
    load_weights,
    read_weights,
    refusal,
)

STATE = 'nlsn_random_state'
ADVICE = WHAT_FITS + 'strict=False in the config of AnyWeightsHook'
RESUMED = AS_BEGUN + '(load_from)'


class AnyWeightsHook(Hook):
    """Let `load_from` take the layouts of BasicSR and of the NLSN authors, and safetensors; refuse what does not fit.

    Without this hook mmengine (runner/checkpoint.py:_load_checkpoint_to_model) only warns of such a file, loads nothing
    of it, and trains from scratch. The hook is for any model whose network is its `generator`.

    Args:
        param_key: which weights to take from BasicSR's layout: 'params' or 'params_ema'.
        strict: whether the file has to hold every weight of the network and no others.

    Raises:
        CheckpointError: the file holds no weights, or they do not fit.
    """

    priority = 'VERY_HIGH'  # before EMAHook, which copies what is loaded

    def __init__(self, param_key: str = 'params', strict: bool = True) -> None:
        self.param_key = checks.one_of('param_key', param_key, ('params', 'params_ema'))
        self.strict = checks.boolean('strict', strict)

    def before_run(self, runner: Any) -> None:
        CheckpointLoader.register_scheme('', load_from_local, force=True)

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        refuse_weights_alone(runner, checkpoint)
        path = runner._load_from or runner.work_dir
        net = bare(runner.model).generator
        weights = checkpoint['state_dict'] if 'state_dict' in checkpoint else read_weights(path, self.param_key)
        own = {name.removeprefix(GENERATOR): w for name, w in weights.items() if name.startswith(GENERATOR)} or weights
        load_weights(net, own, path, self.strict, ADVICE)  # refuses what does not fit; mmengine loads them again
        others = {name: w for name, w in weights.items() if own is not weights and not name.startswith(GENERATOR)}
        checkpoint['state_dict'] = {**others, **{GENERATOR + name: w for name, w in own.items()}}


class WholeStateHook(Hook):
    """Refuse to go on from anything but a state of this run; record whether all parts of the config have been built."""

    priority = 'VERY_HIGH'
    is_built = False

    def before_run(self, runner: Any) -> None:
        self.is_built = True

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        refuse_weights_alone(runner, checkpoint)
        if runner._resume:
            checkpoint['meta'].pop('config', None)  # from an older mmengine: a program, which Runner.resume would run
            fitting(bare(runner.model), checkpoint['state_dict'], runner._load_from or runner.work_dir, advice=RESUMED)
            refuse_another_course(runner, checkpoint)


class RandomStateHook(Hook):
    """Keep the random generators' states in checkpoints, so that a resumed run draws what it would have drawn.

    mmengine seeds the generators anew, and NLSA's rotations are drawn from them at each update. Validation leaves them
    as they were. Samples are drawn by the loader's workers, whose seeds and positions mmengine itself restores; with
    num_workers=0 there are no workers, and samples differ after a stop. With several processes, no states are kept.
    """

    def __init__(self) -> None:
        self.to_restore: dict[str, Any] | None = None
        self.before_validation: dict[str, Any] | None = None

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        if get_world_size() == 1:
            checkpoint[STATE] = randomness.current()

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        if runner._resume and get_world_size() == 1:
            self.to_restore = checkpoint.get(STATE)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if self.to_restore is not None:
            randomness.restore(on_cpu(self.to_restore))
            self.to_restore = None

    def before_val(self, runner: Any) -> None:
        self.before_validation = randomness.current()

    def after_val(self, runner: Any) -> None:
        if self.before_validation is not None:
            randomness.restore(self.before_validation)


class BFloat16OptimWrapper(OptimWrapper):
    """OptimWrapper under bfloat16 autocast, on any device.

    mmengine's AmpOptimWrapper (optim/optimizer/amp_optimizer_wrapper.py:76) refuses to be built without a GPU, for its
    loss scaling, which bfloat16 does not need.
    """

    @contextlib.contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        with super().optim_context(model), autocast(dtype=torch.bfloat16):
            yield


def load_from_local(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Load a local file for mmengine; safetensors, which are recognised by their content, are taken too.

    Raises:
        CheckpointError: there is no such file, it is damaged, it is not allowed to be read, or it holds no dict.
    """
    path = Path(filename).expanduser()
    check_readable(path)
    if is_safetensors(path):
        return read_weights(path)
    try:
        content = torch.load(path, map_location=map_location)
    except DAMAGES as error:
        raise CheckpointError(f'{path} does not load: {refusal(path, error)}') from error
    if not isinstance(content, dict):
        raise CheckpointError(f'{path} holds a {type(content).__name__}: a dict of tensors is expected')
    return content


def refuse_weights_alone(runner: Any, checkpoint: dict[str, Any]) -> None:
    """Refuse to go on from weights alone: a state also has the loop's position and the histories of losses."""
    if runner._resume and not {'iter', 'epoch'} <= checkpoint.get('meta', {}).keys():
        path = runner._load_from or runner.work_dir
        raise CheckpointError(f'{path} holds weights alone: begin a new run from them, load_from without resume')


def refuse_another_course(runner: Any, checkpoint: dict[str, Any]) -> None:
    """Refuse to go on with settings of the optimiser or of schedules that the checkpoint lacks or has otherwise.

    mmengine would take the checkpoint's, or go on with a mixture of both. Settings that only a newer PyTorch's
    optimisers have are not compared.
    """
    path, reached = runner._load_from or runner.work_dir, checkpoint['meta']['iter']
    if reached > runner.max_iters:
        raise CheckpointError(f'{path} is of iteration {reached}: the config has max_iters={runner.max_iters}')
    kept, own = settings_of(checkpoint.get('optimizer')), settings_of(runner.optim_wrapper.state_dict())
    optimisers = kept, {place: value for place, value in own.items() if kept and (place in kept or place[-1] == 'lr')}
    schedules = schedules_of(checkpoint.get('param_schedulers')), schedules_of(runner.param_schedulers)
    for part, (before, now) in (('optim_wrapper.optimizer', optimisers), ('param_scheduler', schedules)):
        for place in {**before, **now}:
            value, held = now.get(place, 'not set'), before.get(place, 'not set')
            is_newer = place not in now and (held is None or held is False)
            if value != held and not is_newer:
                raise CheckpointError(
                    f'{part}: {place[-1]} is {value}, with which {path} cannot go on: its run has {held}; to change it '
                    'begin a new run with load_from'
                )


def settings_of(state: Mapping[str, Any] | None) -> dict[tuple[Any, ...], Any]:
    """The settings of one or several optimisers, by name of optimiser, number of group, and key.

    Of settings that schedules change, these are the initial values.
    """
    found = {}
    for name, part in ({'': state} if 'param_groups' in (state or {}) else state or {}).items():
        for number, group in enumerate(part['param_groups']) if isinstance(part, Mapping) else ():
            begun = {key.removeprefix('initial_'): value for key, value in group.items() if key.startswith('initial_')}
            if 'momentum' in begun and 'betas' in group:  # schedules of momentum change the first
                begun['betas'] = begun.pop('momentum'), *group['betas'][1:]
            for key, value in {**group, **begun}.items():
                if key not in OF_THE_MACHINE and not key.startswith('initial_'):
                    found[name, number, key] = list(value) if isinstance(value, tuple) else value
    return found


OF_THE_MACHINE = ('params', 'fused', 'foreach', 'capturable', 'differentiable')
"""Entries of a group of parameters that are no settings of the run."""


def schedules_of(schedules: Any) -> dict[tuple[Any, ...], Any]:
    """The settings of schedules or of their states, by name of optimiser, number and key; positions are left out."""
    found = {}
    for name, part in (schedules if isinstance(schedules, Mapping) else {'': schedules or ()}).items():
        for number, schedule in enumerate(part):
            state = schedule if isinstance(schedule, Mapping) else schedule.state_dict()
            for key in OF_SCHEDULES & state.keys():
                value = state[key]
                found[name, number, key] = sorted(value.elements()) if isinstance(value, Counter) else value
    return found


OF_SCHEDULES = {'begin', 'by_epoch', 'eta_min', 'factor', 'gamma', 'milestones', 'power', 'start_factor', 'step_size'}
"""Arguments that mmengine's schedules keep in their states and that are compared."""


def bare(model: nn.Module) -> Any:
    """A model without the wrapper for distributed training."""
    return model.module if is_model_wrapper(model) else model


def on_cpu(state: dict[str, Any]) -> dict[str, Any]:
    """A state of the generators with its tensors on the CPU; mmengine loads them onto its device."""
    kind, keys, *rest = state['numpy']
    tensors = {name: value.cpu() for name, value in state.items() if isinstance(value, torch.Tensor)}
    return {**state, **tensors, 'numpy': [kind, keys.cpu(), *rest]}
