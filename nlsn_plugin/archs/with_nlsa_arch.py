"""WithNLSA: any registered network with attentions after some of its modules, without a change to its code.

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
    """A network of BasicSR's or mmengine's registry with an attention after each of the selected modules.

    The result *is* the base network: an instance of its class as well as of this one, with its attributes, methods and
    weight names, and one more child, `nlsa`, which holds the attentions. They run as forward hooks of the modules that
    they follow, so that no module is renamed or replaced.

    Args:
        arch: the base network as in an option file: {'type': 'RCAN', 'num_in_ch': 3, ...}.
        after: selectors of modules whose output is [N, C, H, W], or [N, L, C] with the height and width among the
            module's arguments. A selector is a path ('body.3'), a pattern ('body.*'; ** spans levels) or a class
            ('RCAB'); patterns and classes may end with an index or slice of the matches ('body.*[7::8]' is every
            eighth). `nlsn modules` lists the modules of a network.
        nlsa: arguments of the attentions besides their channels: n_hashes, chunk_size, reduction, res_scale, ... of
            NonLocalSparseAttention. The i-th attention, in order of execution, gets eval_seed + i.
        attention: 'nlsa', 'nla', 'local' or 'random', as for NLSN.
        zero_start: whether training starts from the function of the base network. The last convolution of each
            attention, conv_assembly, then starts with zeros, so that the attention is the identity to the last bit.
            That convolution gets gradients from the first update on, the attention's other weights from the second on.
            (A fixed res_scale of 0 would never train.) False starts with PyTorch's usual weights.
        probe: channels, height and width of the input that is run to find the modules' channels, for networks that take
            none of the usual sizes.

    Raises:
        ArgumentError (a ValueError): an argument is wrong; the message suggests the nearest valid name.

    State dict: the base network's own, and `nlsa.<path>.*` for the attention after <path>, its dots written as hyphens
    (`nlsa.body-3.conv_match.0.weight`). A state dict without any `nlsa.*`, such as the base network's own checkpoint,
    loads too, even with strict=True: the attentions then keep their weights, and the log says so.
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
        attentions = nn.Identity()  # callable, since a base such as Sequential calls all its children
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
        self.insertions = handles  # kept, since unpickling them in another process reserves the ids of their hooks
        if zero_start:
            self.start_as_base()

    @torch.no_grad()
    def start_as_base(self) -> None:
        """Make the attentions the identity until they are trained, by setting each conv_assembly to zero."""
        for layer in self.nlsa.children():
            for parameter in layer.get_submodule('conv_assembly').parameters():
                parameter.zero_()

    def completed(self, weights: Mapping[str, Tensor], prefix: str = '') -> dict[str, Tensor]:
        """Return `weights`, with the attentions' current ones added if it has none, as a base network's checkpoint."""
        own = f'{prefix}{PREFIX}.'
        if any(name.startswith(own) for name in weights):
            return dict(weights)
        return {**weights, **self.nlsa.state_dict(prefix=own)}

    def init_weights(self, *args: Any, **kwargs: Any) -> None:
        """Initialise as the base network does by mmengine's method of this name, if it has one.

        That may reach the attentions too, so zero_start is applied again, unless the weights come from a file.
        """
        inherited = getattr(super(), 'init_weights', None)
        if inherited is None:
            return
        inherited(*args, **kwargs)
        from_file = args or kwargs or (getattr(self, 'init_cfg', None) or {}).get('type') == 'Pretrained'
        if self.zero_start and not from_file:
            self.start_as_base()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Complete `state_dict` in place before loading: PyTorch's loader and mmengine's both pass a copy."""
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
        state = super().__reduce_ex__(max(protocol, 2))[2]  # pickle cannot find the class by name: `blank` makes it
        return blank, (base_of(self),), state


class Insertion:
    """The forward hook that puts an attention after a module."""

    def __init__(self, attention: ResidualAttention, size_at: SizeArgument | None) -> None:
        self.attention = attention
        self.size_at = size_at

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        """Apply the attention to the module's output, [N, C, H, W] or [N, L, C]; the shape stays."""
        if self.size_at is None:
            attended = self.attention(output)
            # Keep the memory format: the base network may rely on it, and its results depend on it to the last bit.
            return attended.contiguous() if output.is_contiguous() else attended
        size = self.size_at.read(args, kwargs)
        image = torch.unflatten(output, 1, size).permute(0, 3, 1, 2)  # [N, C, H, W]
        return self.attention(image).permute(0, 2, 3, 1).flatten(1, 2)


def key_of(path: str) -> str:
    """Write the path of a module as a single component of a state dict's key."""
    return path.replace('.', '-')


def checked_arguments(attention: str, options: dict[str, Any]) -> dict[str, Any]:
    """Check and return the arguments of the attentions; they include eval_seed if the attention takes one."""
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
    """Make the class of a base network with attentions, which inherits forward and all else from the base."""

    def fill(namespace: dict[str, Any]) -> None:
        namespace['__module__'] = __name__
        namespace['__doc__'] = f'{base.__name__}, with attentions after some of its modules: see WithNLSA.'

    return types.new_class(f'{base.__name__}WithNLSA', (WithNLSA, base), exec_body=fill)


def base_of(net: WithNLSA) -> type:
    """The class of the base network."""
    return next(cls for cls in type(net).__mro__ if cls.__module__ != __name__)


def blank(base: type) -> nn.Module:
    """Create an empty network, which copy or pickle then fills."""
    cls = combined(base)
    return cls.__new__(cls)
