"""BasicSR's super-resolution model, for any network, with the features that training for weeks needs."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
import torch.distributed
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nlsn_plugin import checks
from nlsn_plugin.errors import NonFiniteLossError
from nlsn_plugin.models.inference import enlarged, in_whole_windows, window_of
from nlsn_plugin.models.mended_model import MendedModel

AMP = {'off': None, 'bf16': torch.bfloat16, 'fp16': torch.float16}

Options = dict[str, Any]


class NLSNModel(SRModel, MendedModel):
    """SRModel with mixed precision, compilation, clipping, accumulation, and a guard against non-finite updates.

    Registered by `nlsn_plugin.registry`. Besides SRModel's options it reads

    * `train`: amp ('off', 'bf16' or 'fp16'), compile, channels_last, clip_grad_norm (largest norm of the gradients),
      accumulate (parts in which a batch is computed, to save memory), nonfinite_limit (updates that may be skipped);
    * `val`: tile (edge of the tiles to upscale in, in low-resolution pixels), tile_overlap, self_ensemble (x8).

    For networks with windows, images are mirrored up to a multiple of the window, as in BasicSR's SwinIRModel.

    An update whose loss or gradients are not finite is skipped. With an optimiser that has fused kernels this is
    decided on the device, without waiting for it. How many updates were skipped, and on which images, is read when
    losses are logged. In fp16 the scaler skips updates whose gradients overflow, which is normal; then only losses that
    are not finite are counted.
    """

    def __init__(self, opt: Options) -> None:
        train = opt.get('train') or {}
        self.amp_dtype = AMP[checks.one_of('amp', train.get('amp') or 'off', tuple(AMP))]  # YAML reads off as false
        self.channels_last = train.get('channels_last', False)
        self.window = window_of(opt['network_g'])
        super().__init__(opt)

    def model_to_device(self, net: nn.Module) -> nn.Module:
        if self.channels_last:
            net = net.to(memory_format=torch.channels_last)
        if self.is_train and self.opt['train'].get('compile', False):
            net.compile()  # in place, so that the names of the weights stay
        return super().model_to_device(net)

    def init_training_settings(self) -> None:
        train = self.opt['train']
        self.accumulate = train.get('accumulate', 1)
        self.largest_norm = train.get('clip_grad_norm')
        self.nonfinite_limit = train.get('nonfinite_limit', 20)
        self.nonfinite = 0
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp_dtype == torch.float16)
        self.since_log: list[tuple[list[str], Tensor, dict[str, Tensor]]] = []
        super().init_training_settings()

    def get_optimizer(self, optim_type: str, params: Any, lr: float, **kwargs: Any) -> torch.optim.Optimizer:
        """Make an optimiser, with fused kernels where it has them."""
        if not {'fused', 'foreach', 'capturable', 'differentiable'} & kwargs.keys():
            with contextlib.suppress(TypeError, RuntimeError):  # no fused kernels, or none for this device
                return super().get_optimizer(optim_type, params, lr, fused=True, **kwargs)
        return super().get_optimizer(optim_type, params, lr, **kwargs)

    def model_ema(self, decay: float = 0.999) -> None:
        """Update the moving average, all weights in one kernel; buffers, which SRModel leaves out, are copied."""
        averages, weights, kept, buffers = self.averaged
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, 1 - decay)
            if kept:
                torch._foreach_copy_(kept, buffers)

    @cached_property
    def averaged(self) -> tuple[list[Tensor], ...]:
        """The average's parameters and the network's, then the buffers of both; the tensors stay the same objects."""
        networks = self.net_g_ema, self.get_bare_model(self.net_g)
        return (*(list(net.parameters()) for net in networks), *(list(net.buffers()) for net in networks))

    def feed_data(self, data: dict[str, Any]) -> None:
        memory_format = torch.channels_last if self.channels_last else torch.preserve_format
        self.lq = data['lq'].to(self.device, non_blocking=True, memory_format=memory_format)
        if 'gt' in data:
            self.gt = data['gt'].to(self.device, non_blocking=True)
        elif hasattr(self, 'gt'):
            del self.gt  # it belongs to another image
        self.names = list(data.get('gt_path', data.get('lq_path', [])))

    def optimize_parameters(self, current_iter: int) -> None:
        self.optimizer_g.zero_grad(set_to_none=True)
        terms: dict[str, Tensor] = {}
        parts = list(zip(self.lq.chunk(self.accumulate), self.gt.chunk(self.accumulate)))
        for number, (lq, gt) in enumerate(parts):
            share = len(lq) / len(self.lq)
            with self.processes_meet(number == len(parts) - 1):
                with torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
                    self.output = self.net_g(lq)
                found = self.losses(self.output.float(), gt)
                loss = torch.stack(list(found.values())).sum() * share
                # A loss that is not finite becomes NaN, which spreads to the gradients of all processes: checking their
                # norm is then enough.
                marked = loss * torch.where(loss.isfinite(), 1.0, torch.nan)
                torch.autograd.backward(self.scaler.scale(marked))
            for name, term in found.items():
                terms[name] = terms.get(name, 0) + term.detach() * share
        norm = self.clip_gradients()
        total = torch.stack(list(terms.values())).sum()
        finite = total.isfinite() if self.scaler.is_enabled() else norm.isfinite()
        self.update(finite)
        self.since_log.append((self.names, finite, terms))
        if self.ema_decay > 0:
            self.model_ema(decay=self.ema_decay)

    def losses(self, output: Tensor, gt: Tensor) -> dict[str, Tensor]:
        """The terms of the loss, under the names that SRModel gives them."""
        terms = {}
        if self.cri_pix:
            terms['l_pix'] = self.cri_pix(output, gt)
        if self.cri_perceptual:
            perceptual, style = self.cri_perceptual(output, gt)
            terms |= {name: term for name, term in (('l_percep', perceptual), ('l_style', style)) if term is not None}
        return terms

    @contextlib.contextmanager
    def processes_meet(self, last: bool) -> Iterator[None]:
        """Let processes exchange gradients only after the last part of a batch."""
        apart = isinstance(self.net_g, DistributedDataParallel) and not last
        with self.net_g.no_sync() if apart else contextlib.nullcontext():
            yield

    def clip_gradients(self) -> Tensor:
        """Clip the gradients to a norm of `clip_grad_norm`, if that is set, and return their norm before that."""
        self.scaler.unscale_(self.optimizer_g)
        if self.largest_norm is not None:
            return nn.utils.clip_grad_norm_(self.net_g.parameters(), self.largest_norm)
        gradients = [parameter.grad for parameter in self.net_g.parameters() if parameter.grad is not None]
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))

    def update(self, finite: Tensor) -> None:
        """Step the optimiser if `finite`; in fp16 the scaler decides."""
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer_g)
            self.scaler.update()
        elif self.device.type == 'cpu' or not getattr(self.optimizer_g, '_step_supports_amp_scaling', False):
            if finite:
                self.optimizer_g.step()
        else:  # the fused kernel checks found_inf, as for a GradScaler
            self.optimizer_g.grad_scale, self.optimizer_g.found_inf = None, (~finite).float()
            self.optimizer_g.step()

    def get_current_log(self) -> OrderedDict[str, float]:
        """The mean losses since the last call, over all processes; all have to call this together.

        Raises:
            NonFiniteLossError: see `check_skipped`.
        """
        skipped, bad = self.skipped_since_log()
        steps, self.since_log = self.since_log, []
        if not steps:
            return OrderedDict()
        names = list(steps[0][2])
        values = torch.stack([torch.stack([step[2][name] for name in names]) for step in steps]).double()
        known = values.isfinite()
        sums = torch.stack([values.where(known, 0).sum(0), known.sum(0)])
        if self.opt['dist']:
            torch.distributed.all_reduce(sums)
        if skipped:
            self.nonfinite += skipped
            get_root_logger().warning(self.refuse_too_many(self.nonfinite, bad))
        total, count = sums.cpu()
        return OrderedDict(zip(names, (total / count).tolist()))  # NaN if none was finite

    def skipped_since_log(self) -> tuple[int, list[str]]:
        """The number of updates skipped since the last log, and their images, over all processes.

        All processes have to call this together, since in fp16 each knows only its own losses.
        """
        if not self.since_log:
            return 0, []
        finite = torch.stack([step[1] for step in self.since_log]).int()
        if self.opt['dist']:
            torch.distributed.all_reduce(finite, torch.distributed.ReduceOp.MIN)
            self.since_log = [(names, good, terms) for (names, _, terms), good in zip(self.since_log, finite)]
        skipped = [step[0] for step, good in zip(self.since_log, finite.tolist()) if not good]
        bad = [name for names in skipped for name in names]
        if self.opt['dist'] and skipped:
            everyone: list[Any] = [None] * self.opt['world_size']
            torch.distributed.all_gather_object(everyone, bad)
            bad = [name for part in everyone for name in part]
        return len(skipped), bad

    def check_skipped(self) -> None:
        """Check the number of skipped updates between two logs. All processes have to call this together.

        Raises:
            NonFiniteLossError: more than `nonfinite_limit` updates were skipped since the start of the run.
        """
        skipped, bad = self.skipped_since_log()
        self.refuse_too_many(self.nonfinite + skipped, bad)

    def refuse_too_many(self, number: int, names: list[str]) -> str:
        """Return the warning about `number` skipped updates; `names` are the images of the last ones.

        Raises:
            NonFiniteLossError: `number` is more than `nonfinite_limit`.
        """
        said = f'{number} updates were skipped so far, their losses or gradients not finite'
        if names:
            said += f'; last of: {", ".join(dict.fromkeys(names))}'
        if number > self.nonfinite_limit:
            raise NonFiniteLossError(f'{said}; nonfinite_limit is {self.nonfinite_limit}')
        return said

    def test(self) -> None:
        """Run the network (its moving average, if there is one) on `self.lq`, in tiles or as an ensemble if set.

        The network is called without its DistributedDataParallel wrapper. SRModel calls the wrapper on rank 0 alone,
        which then waits to synchronise buffers with processes that do not take part.
        """
        net = self.net_g_ema if hasattr(self, 'net_g_ema') else self.get_bare_model(self.net_g)
        was_training = net.training
        net.eval()
        try:
            with torch.no_grad():
                self.output = self.upscale(net, self.lq)
        finally:
            net.train(was_training)

    def upscale(self, net: nn.Module, x: Tensor) -> Tensor:
        val = self.opt.get('val') or {}
        overlap, self_ensemble = val.get('tile_overlap', 16), val.get('self_ensemble', False)
        scale = self.opt.get('scale', 1)
        whole = in_whole_windows(net, self.window, scale)
        return enlarged(whole, x, scale, val.get('tile'), overlap, self_ensemble)

    def state(self) -> dict[str, Any]:
        """The state to save for `resume_training` besides BasicSR's own; to be called after `check_skipped`."""
        skipped = sum(not good for _, good, _ in self.since_log)
        return {'scaler': self.scaler.state_dict(), 'nonfinite': self.nonfinite + skipped}

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        states = resume_state['optimizers']
        loaded = [for_this_device(*both) for both in zip(states, self.optimizers)]
        super().resume_training({**resume_state, 'optimizers': [*loaded, *states[len(loaded) :]]})  # refuses more
        own = resume_state.get('model') or {}  # absent from states of BasicSR itself and of its other models
        if own.get('scaler'):  # empty unless the run was in fp16
            self.scaler.load_state_dict(own['scaler'])
        self.nonfinite = own.get('nonfinite', 0)


def for_this_device(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimiser's state with the choice of fused kernels made here, which the saved one may lack.

    On loading, PyTorch puts step counts where these kernels need them, on the parameters' device or the CPU.
    """
    chosen = [{'fused': group['fused']} if 'fused' in group else {} for group in optimizer.param_groups]
    groups = [{**group, **own} for group, own in zip(state['param_groups'], chosen)]
    return {**state, 'param_groups': [*groups, *state['param_groups'][len(groups) :]]}  # PyTorch refuses surplus groups
