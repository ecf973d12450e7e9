"""What mmengine's Runner lacks for super-resolution: weights of other layouts, random numbers kept, bfloat16 on a CPU.

Registered by `nlsn_plugin.registry`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import autocast
from torch import nn

from nlsn_plugin import checks
from nlsn_plugin.engine.training import randomness
from nlsn_plugin.errors import CheckpointError
from nlsn_plugin.models.checkpoint import FITTING, load_weights, read_weights

PREFIX = 'generator.'
"""Before the network's names in SuperResolutionModel and in mmagic's models."""
STATE = 'nlsn_random_state'
ADVICE = FITTING.replace('strict_load_g: false', 'strict=False in the config of AnyWeightsHook')


class AnyWeightsHook(Hook):
    """Let `load_from` take weights as BasicSR and the NLSN authors keep them, and refuse what does not fit.

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

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        path = runner._load_from or runner.work_dir
        net = bare(runner.model).generator
        if 'state_dict' in checkpoint:
            weights = checkpoint['state_dict']
        elif runner._resume:
            raise CheckpointError(f'{path} holds weights alone: begin a new run from them, load_from without resume')
        else:
            weights = read_weights(path, self.param_key)
        own = {name.removeprefix(PREFIX): w for name, w in weights.items() if name.startswith(PREFIX)} or weights
        load_weights(net, own, path, self.strict, ADVICE)  # says what does not fit; mmengine loads them again
        others = {name: w for name, w in weights.items() if own is not weights and not name.startswith(PREFIX)}
        checkpoint['state_dict'] = {**others, **{PREFIX + name: w for name, w in own.items()}}


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


def bare(model: nn.Module) -> Any:
    """A model without the wrapper for distributed training."""
    return model.module if is_model_wrapper(model) else model


def on_cpu(state: dict[str, Any]) -> dict[str, Any]:
    """A state of generators, whose tensors mmengine has loaded onto its device."""
    kind, keys, *rest = state['numpy']
    tensors = {name: value.cpu() for name, value in state.items() if isinstance(value, torch.Tensor)}
    return {**state, **tensors, 'numpy': [kind, keys.cpu(), *rest]}
