"""BasicSR's super-resolution model, with weights read safely and never dropped in silence."""

from __future__ import annotations

from typing import Any

import torch
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nlsn_plugin.models.checkpoint import load_weights, read_weights


class NLSNModel(SRModel):
    """SRModel for any network. Registered by `nlsn_plugin.registry`."""

    def model_to_device(self, net: nn.Module) -> nn.Module:
        """Wrap for distributed training, on CPUs too, where SRModel asks for the current GPU."""
        if self.opt['dist'] and self.device.type == 'cpu':
            return DistributedDataParallel(net, find_unused_parameters=self.opt.get('find_unused_parameters', False))
        return super().model_to_device(net)

    def test(self) -> None:
        """Run the network (its moving average, if there is one) on `self.lq`.

        Unwrapped: SRModel's own form calls the DistributedDataParallel wrapper on rank 0 alone, which synchronises the
        network's buffers with processes that are not there.
        """
        net = self.net_g_ema if hasattr(self, 'net_g_ema') else self.get_bare_model(self.net_g)
        was_training = net.training
        net.eval()
        with torch.no_grad():
            self.output = net(self.lq)
        net.train(was_training)

    def load_network(self, net: nn.Module, load_path: str, strict: bool = True, param_key: Any = 'params') -> None:
        """Load weights of BasicSR's layout or of the NLSN authors' (flat) one.

        SRModel's own form fails on a flat state dict with a KeyError, takes any unknown `param_key` for 'params', and
        with strict=False passes over what does not fit without counting it.

        Raises:
            CheckpointError: see `read_weights` and `load_weights`.
        """
        logger = get_root_logger()
        bare = self.get_bare_model(net)
        dropped = load_weights(bare, read_weights(load_path, param_key), load_path, strict)
        logger.info(f'Loaded {type(bare).__name__} from {load_path}.')
        if dropped:
            listed = '\n'.join(f'  {line}' for line in dropped)
            logger.warning(f'{len(dropped)} entries did not match and were left as they were:\n{listed}')
