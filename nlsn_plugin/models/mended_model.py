"""What this plugin changes in all of BasicSR's models."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from basicsr.archs.vgg_arch import VGG_PRETRAIN_PATH
from basicsr.models.base_model import BaseModel
from basicsr.utils import get_root_logger
from basicsr.utils.registry import MODEL_REGISTRY
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nlsn_plugin.errors import UserError, first_line
from nlsn_plugin.models.building import tried
from nlsn_plugin.models.checkpoint import AS_BEGUN, WHAT_FITS, Metadata, fitting, load_weights, read_stored
from nlsn_plugin.models.description import complete, differing

OWN_SCHEDULERS = ('MultiStepLR', 'MultiStepRestartLR', 'CosineAnnealingRestartLR')
"""The schedulers that BasicSR makes itself; PyTorch has a MultiStepLR of its own too."""

AS_IT_BEGAN = AS_BEGUN + '(pretrain_network_g)'
"""Advice for a run that is resumed with another network than it began with."""

NO_GPU = re.compile('CUDA|NVIDIA')
"""Matches PyTorch's errors about a missing GPU."""


def build_model(opt: dict[str, Any]) -> BaseModel:
    """The model that an option file names, mended.

    Args:
        opt: BasicSR's options, which stay as they are.

    Raises:
        UserError: weights do not load or fit, or those that a perceptual loss fetches cannot be fetched; or there is no
            GPU, and the model needs one.
    """
    try:
        model = mended(MODEL_REGISTRY.get(opt['model_type']))(deepcopy(opt))
    except URLError as error:
        raise UserError(
            f"weights of a loss cannot be fetched ({error.reason}): torchvision's VGG19, which perceptual losses take "
            f'by default, is looked for at {Path(VGG_PRETRAIN_PATH).absolute()}'
        ) from error
    except (AssertionError, RuntimeError) as error:
        if isinstance(error, UserError) or torch.cuda.is_available() or not NO_GPU.search(str(error)):
            raise
        raise UserError(f'{opt["model_type"]} needs a GPU: {first_line(error)}') from error
    get_root_logger().info(f'Model [{type(model).__name__}] is created.')
    return model


def check_weights(opt: dict[str, Any], networks: Sequence[str]) -> None:
    """Refuse weights that networks, 'network_g' and the like, begin with and that will not load, before a run makes or
    moves anything.

    Raises:
        CheckpointError: see `read_stored` and `fitting`.
    """
    paths = opt['path']
    for name in [key for key in networks if paths.get(f'pretrain_{key}')]:
        path, letter = paths[f'pretrain_{name}'], name.removeprefix('network_')
        stored = read_stored(path, paths.get(f'param_key_{letter}', 'params'))
        net = tried(opt[name], lambda net: net)
        fitting(net, stored.weights, path, paths.get(f'strict_load_{letter}', True), advice_for(letter))


def advice_for(letter: str) -> str:
    return f'{WHAT_FITS}strict_load_{letter}: false'


@functools.cache
def mended(model_class: type[BaseModel]) -> type[BaseModel]:
    """A model of this class with MendedModel's methods in the place of BaseModel's; its own stay."""
    if issubclass(model_class, MendedModel):
        return model_class
    return type(model_class.__name__, (model_class, MendedModel), {})


class MendedModel(BaseModel):
    """Processes without GPUs, all optimisers and schedulers of PyTorch's, and weights of any layout."""

    def model_to_device(self, net: nn.Module) -> nn.Module:
        """Wrap for distributed training, on CPUs too, where BasicSR asks for the current GPU."""
        if self.opt['dist'] and self.device.type == 'cpu':
            return DistributedDataParallel(net, find_unused_parameters=self.opt.get('find_unused_parameters', False))
        return super().model_to_device(net)

    def get_optimizer(self, optim_type: str, params: Any, lr: float, **kwargs: Any) -> torch.optim.Optimizer:
        """Make any of PyTorch's optimisers; BasicSR knows Adam alone."""
        optimizer: torch.optim.Optimizer = getattr(torch.optim, optim_type)(params, lr, **kwargs)
        return optimizer

    def setup_schedulers(self) -> None:
        """BasicSR's schedulers, and PyTorch's others."""
        arguments = dict(self.opt['train']['scheduler'])
        name = arguments.pop('type')
        if name in OWN_SCHEDULERS:
            super().setup_schedulers()
            return
        scheduler_class = getattr(torch.optim.lr_scheduler, name)
        self.schedulers = [scheduler_class(optimizer, **arguments) for optimizer in self.optimizers]

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        """BasicSR's, but the last update of the warm-up sets the full rate.

        BasicSR stops one step short of it, and schedulers that go on from the current rate would stay below it.
        """
        super().update_learning_rate(current_iter, warmup_iter)
        if current_iter == warmup_iter:
            self._set_lr(self._get_init_lr())

    def load_network(self, net: nn.Module, load_path: str, strict: bool = True, param_key: Any = 'params') -> None:
        """Load weights of any layout that `read_stored` knows, and say where their metadata differ from network_g.

        BasicSR's own form fails on a flat state dict with a KeyError, takes any unknown `param_key` for 'params', and
        with strict=False passes over what does not fit without counting it.

        Raises:
            CheckpointError: see `read_stored` and `load_weights`.
        """
        logger = get_root_logger()
        bare = self.get_bare_model(net)
        paths = self.opt['path']
        letter = 'd' if load_path == paths.get('pretrain_network_d') else 'g'
        # A moving average begins as the network does wherever the file has none.
        if net is getattr(self, 'net_g_ema', None):
            bare.load_state_dict(self.get_bare_model(self.net_g).state_dict())
        stored = read_stored(load_path, param_key, otherwise=paths.get(f'param_key_{letter}') or 'params')
        goes_on = paths.get('resume_state') and f'network_{letter}' not in (paths.get('ignore_resume_networks') or ())
        advice = AS_IT_BEGAN if goes_on else advice_for(letter)
        dropped = load_weights(bare, stored.weights, load_path, strict, advice)
        logger.info(f'Loaded {type(bare).__name__} from {load_path}.')
        self.compare_with_metadata(stored.metadata, load_path)
        if dropped:
            listed = '\n'.join(f'  {line}' for line in dropped)
            logger.warning(f'{len(dropped)} entries did not match and were left as they were:\n{listed}')

    def compare_with_metadata(self, metadata: Metadata | None, path: str) -> None:
        """Warn where network_g differs from the network whose weights were loaded; fine-tuning may intend that."""
        network = {key: value for key, value in self.opt['network_g'].items() if key != 'type'}
        kind = self.opt['network_g']['type']
        if metadata is not None and metadata['type'] == kind:
            for name, (value, other) in differing(complete(kind, network), metadata).items():
                get_root_logger().warning(f'{path} is of a network with {name}={other!r}; network_g has {value!r}')
