"""What mmengine's Runner lacks for super-resolution: weights of other layouts, random numbers kept, bfloat16 on a CPU.

Registered by `nlsn_plugin.registry`.
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator
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
from nlsn_plugin.errors import CheckpointError, first_line
from nlsn_plugin.models.checkpoint import (
    DAMAGES,
    WHAT_FITS,
    check_readable,
    is_safetensors,
    load_weights,
    read_weights,
)

PREFIX = 'generator.'
"""Before the network's names in SuperResolutionModel and in mmagic's models."""
STATE = 'nlsn_random_state'
ADVICE = WHAT_FITS + 'strict=False in the config of AnyWeightsHook'


class AnyWeightsHook(Hook):
    """Let `load_from` take weights as BasicSR and the NLSN authors keep them, or safetensors; refuse what does not fit.

    Without it mmengine (runner/checkpoint.py:_load_checkpoint_to_model) warns of such a file, loads nothing of it, and
    trains from scratch. For any model whose network is its `generator`.

    Args:
        param_key: which weights of BasicSR's layout: 'params', or 'params_ema'.
        strict: every weight has to be in the file, and none besides.

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
        own = {name.removeprefix(PREFIX): w for name, w in weights.items() if name.startswith(PREFIX)} or weights
        load_weights(net, own, path, self.strict, ADVICE)  # says what does not fit; mmengine loads them again
        others = {name: w for name, w in weights.items() if own is not weights and not name.startswith(PREFIX)}
        checkpoint['state_dict'] = {**others, **{PREFIX + name: w for name, w in own.items()}}


class WholeStateHook(Hook):
    """Refuse to go on from what is no state of a run; know whether all that a config describes has been built."""

    priority = 'VERY_HIGH'
    is_built = False

    def before_run(self, runner: Any) -> None:
        self.is_built = True

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        refuse_weights_alone(runner, checkpoint)


class RandomStateHook(Hook):
    """Keep random numbers in checkpoints, so that a run that goes on draws what it would have drawn.

    mmengine seeds them anew, and NLSA's rotations are drawn at each update. Validation leaves them as they were.
    Samples are drawn by the loader's workers, whose seeds and places mmengine itself restores: with num_workers=0
    there are none, and samples differ after a stop. In one process; of several, none is kept.
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
    """mmengine's loader of local files, for safetensors too, whatever torch.load makes of them.

    Raises:
        CheckpointError: there is no such file, it is damaged, it is not allowed to be read, or holds no dict.
    """
    path = Path(filename).expanduser()
    check_readable(path)
    if is_safetensors(path):
        return read_weights(path)
    try:
        content = torch.load(path, map_location=map_location)
    except DAMAGES as error:
        raise CheckpointError(f'{path}: a checkpoint that does not load{reason_of(error)}') from error
    if not isinstance(content, dict):
        raise CheckpointError(f'{path} holds a {type(content).__name__}: a dict of tensors is expected')
    return content


def reason_of(error: Exception) -> str:
    """Why PyTorch refused a file, without its advice to load it all the same."""
    if not isinstance(error, pickle.UnpicklingError) or 'Weights only' not in str(error):
        return f': it is damaged, or none ({type(error).__name__}: {first_line(error).split(". ")[0]})'
    lines = [line.strip() for line in str(error).splitlines()]
    advice = ('Weights only load failed', '(1)', '(2)', 'Check the documentation')
    reasons = [line for line in lines if line and not line.startswith(advice)]
    reason = reasons[0].split(' Please use')[0] if reasons else lines[0]
    return f' (nothing in it was executed): {reason}'


def refuse_weights_alone(runner: Any, checkpoint: dict[str, Any]) -> None:
    """Refuse to go on from weights: a state has the loop's place and the histories of losses."""
    if runner._resume and not {'iter', 'epoch'} <= checkpoint.get('meta', {}).keys():
        path = runner._load_from or runner.work_dir
        raise CheckpointError(f'{path} holds weights alone: begin a new run from them, load_from without resume')


def bare(model: nn.Module) -> Any:
    """A model without the wrapper for distributed training."""
    return model.module if is_model_wrapper(model) else model


def on_cpu(state: dict[str, Any]) -> dict[str, Any]:
    """A state of generators, whose tensors mmengine has loaded onto its device."""
    kind, keys, *rest = state['numpy']
    tensors = {name: value.cpu() for name, value in state.items() if isinstance(value, torch.Tensor)}
    return {**state, **tensors, 'numpy': [kind, keys.cpu(), *rest]}
