"""Any registered network with attentions after some of its modules, its own code untouched.

Paper of the attention: Mei, Fan, Zhou, "Image Super-Resolution with Non-Local Sparse Attention", CVPR 2021, Section
3.3; Section 4.4 puts it into a plain residual network.
"""

from __future__ import annotations

import functools
import logging
import types
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nlsn_plugin import checks
from nlsn_plugin.archs.bases import build_base
from nlsn_plugin.archs.places import SizeArgument, chosen, explore
from nlsn_plugin.errors import ArgumentError, UserError
from nlsn_plugin.layers import ATTENTIONS, attention_arguments
from nlsn_plugin.layers.residual import ResidualAttention

PREFIX = 'nlsa'


class WithNLSA(nn.Module):
    """A network of BasicSR's or mmengine's registry, with an attention after each of the modules named.

    What is made *is* the base network: an instance of its class as well as of this one, with its attributes, its
    methods and its names of weights, and one child more, `nlsa`, that holds the attentions. They run as forward hooks
    of the modules they stand after, so that none is renamed or replaced.

    Args:
        arch: the base network as in an option file: {'type': 'RCAN', 'num_in_ch': 3, ...}.
        after: selectors of modules whose output is [N, C, H, W], or [N, L, C] with the height and width among the
            module's arguments: paths ('body.3'), patterns ('body.*'; ** goes through all levels), classes ('RCAB'), the
            latter two with an index or slice of the matches ('body.*[7::8]' is every eighth). `nlsn modules` lists
            what a network has.
        nlsa: arguments of the attentions besides their channels: n_hashes, chunk_size, reduction, res_scale, ... of
            NonLocalSparseAttention. The i-th attention, in order of execution, takes eval_seed + i.
        attention: 'nlsa', 'nla', 'local' or 'random', as for NLSN.
        zero_start: whether training starts from the base network's function: the last convolution of each attention,
            conv_assembly, begins with zeros, so that each is the identity to the last bit. It gets gradients from the
            first update on, and through it, from the second on, all others. (A fixed res_scale of 0 would never train.)
            False begins with PyTorch's usual weights.
        probe: channels, height and width of the input that finds the channels of the modules, where no usual one runs.

    Raises:
        ArgumentError (a ValueError): any of these is wrong; the message names the nearest that is right.

    State dict: the base network's own, and `nlsa.<path>.*` for the attention after <path>, its dots written as hyphens
    (`nlsa.body-3.conv_match.0.weight`). A state dict without any `nlsa.*`, such as the base network's own checkpoint,
    loads as it is, strictly too: the attentions then stay as they are, which the log says.
    """

    nlsa: nn.Module

    def __init__(
        self,
        arch: dict[str, Any],
        after: str | Sequence[str],
        nlsa: dict[str, Any] | None = None,
        attention: str = 'nlsa',
        zero_start: bool = True,
        probe: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        arguments = checked_arguments(attention, {} if nlsa is None else nlsa)
        zero_start = checks.boolean('zero_start', zero_start)
        base = build_base(arch)
        kind: Any = type(base)
        if hasattr(base, PREFIX):
            raise ArgumentError(f'arch: {type(base).__name__} has a part named {PREFIX} already')
        trial = explore(base, arch, probe)
        attentions = nn.Identity()  # which a base that runs through all its parts, as Sequential does, runs through
        handles = []
        for number, place in enumerate(chosen(after, base, trial)):
            if arguments.get('eval_seed') is not None:
                own = {**arguments, 'eval_seed': arguments['eval_seed'] + number}
            else:
                own = arguments
            try:
                layer = ATTENTIONS[attention][0](place.channels, **own)
            except ArgumentError as error:
                raise ArgumentError(f'nlsa, after {place.name}: {error}') from error
            attentions.add_module(key_of(place.name), layer)
            hook = Insertion(layer, place.size_at)
            handles.append(base.get_submodule(place.name).register_forward_hook(hook, with_kwargs=True))
        for name, value in (('upscale', trial.upscale), ('num_in_ch', trial.shape[1])):
            if value is not None and not hasattr(base, name):
                setattr(base, name, value)
        base.add_module(PREFIX, attentions)
        self.__dict__ = base.__dict__
        self.__class__ = combined(kind)
        self.zero_start = zero_start
        self.insertions = handles  # kept, for they know their numbers: in another process none is given out twice
        if zero_start:
            self.start_as_base()

    @torch.no_grad()
    def start_as_base(self) -> None:
        """Let the attentions be the identity, until they are trained: zeros in each conv_assembly."""
        for layer in self.nlsa.children():
            for parameter in layer.get_submodule('conv_assembly').parameters():
                parameter.zero_()

    def completed(self, weights: Mapping[str, Tensor], prefix: str = '') -> dict[str, Tensor]:
        """`weights`, and the attentions' own where there are none at all, as in a checkpoint of the base network."""
        own = f'{prefix}{PREFIX}.'
        if any(name.startswith(own) for name in weights):
            return dict(weights)
        return {**weights, **self.nlsa.state_dict(prefix=own)}

    def init_weights(self, *args: Any, **kwargs: Any) -> None:
        """mmengine's way to initialise: the base network's, if it has one, which may reach the attentions too."""
        inherited = getattr(super(), 'init_weights', None)
        if inherited is None:
            return
        inherited(*args, **kwargs)
        from_file = args or kwargs or (getattr(self, 'init_cfg', None) or {}).get('type') == 'Pretrained'
        if self.zero_start and not from_file:
            self.start_as_base()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Called by PyTorch's loader and by mmengine's, which both hand over a copy."""
        complete = self.completed(state_dict, prefix)
        if len(complete) > len(state_dict):
            state_dict.update(complete)
            logging.getLogger('nlsn_plugin').warning(
                'the weights are of %s without attentions: these stay as they are', base_of(self).__name__
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _replicate_for_data_parallel(self) -> Any:
        raise UserError(
            f'{type(self).__name__} cannot be copied to several GPUs of one process, as its hooks hold one attention: '
            'torchrun --nproc_per_node N ... --launcher pytorch, or num_gpu: 1'
        )

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        state = super().__reduce_ex__(max(protocol, 2))[2]  # the class has no name to be found by: it is made anew
        return blank, (base_of(self),), state


class Insertion:
    """The forward hook that puts an attention after a module."""

    def __init__(self, attention: ResidualAttention, size_at: SizeArgument | None) -> None:
        self.attention = attention
        self.size_at = size_at

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        """[N, C, H, W] or [N, L, C], of the module, to the same."""
        if self.size_at is None:
            attended = self.attention(output)
            # The base network goes on with the memory format that it had: it may rely on it, and so do its last bits.
            return attended.contiguous() if output.is_contiguous() else attended
        size = self.size_at.read(args, kwargs)
        image = torch.unflatten(output, 1, size).permute(0, 3, 1, 2)  # [N, C, H, W]
        return self.attention(image).permute(0, 2, 3, 1).flatten(1, 2)


def key_of(path: str) -> str:
    """A path as one part of a state dict's name."""
    return path.replace('.', '-')


def checked_arguments(attention: str, options: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the attentions; eval_seed is always among those of attentions that know it."""
    checks.one_of('attention', attention, tuple(ATTENTIONS))
    arguments = attention_arguments(attention, {'eval_seed': 0}, {}, 'nlsa')
    arguments |= attention_arguments(attention, {}, options, 'nlsa')
    if arguments.get('eval_seed') is not None:
        checks.seed('nlsa: eval_seed', arguments['eval_seed'])
    if arguments.get('res_scale') == 0:
        raise ArgumentError(
            'nlsa: res_scale=0 is not allowed: such an attention would never train; zero_start begins with the base '
            "network's function, at any res_scale"
        )
    return arguments


@functools.cache
def combined(base: Any) -> Any:
    """The class of a base network with attentions: its forward and all else are the base network's."""

    def fill(namespace: dict[str, Any]) -> None:
        namespace['__module__'] = __name__
        namespace['__doc__'] = f'{base.__name__}, with attentions after some of its modules: see WithNLSA.'

    return types.new_class(f'{base.__name__}WithNLSA', (WithNLSA, base), exec_body=fill)


def base_of(net: WithNLSA) -> type:
    """The class of the base network."""
    return next(cls for cls in type(net).__mro__ if cls.__module__ != __name__)


def blank(base: type) -> nn.Module:
    """A network that copy or pickle is about to fill."""
    cls = combined(base)
    return cls.__new__(cls)
