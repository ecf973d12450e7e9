"""Networks of registered classes, built from a name and arguments that a stranger's file may have said."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from nlsn_plugin.archs import NLSN
from nlsn_plugin.archs.bases import base_class, innermost
from nlsn_plugin.archs.places import in_channels
from nlsn_plugin.errors import FAILURES, ArgumentError, CheckpointError, UserError, first_line
from nlsn_plugin.models.checkpoint import Weights, load_weights
from nlsn_plugin.models.description import Arguments, Description

T = TypeVar('T')

PROBE = (24, 32)
"""Height and width of a small image, which all networks take and no chunk divides."""
BUILDING = threading.RLock()
"""Held while the environment keeps torch.load from running code."""
ADVICE = 'The arguments have to be those that the weights were trained with'


def network_of(description: Description, weights: Weights, path: object) -> nn.Module:
    """Build what was described, and load its weights.

    Raises:
        CheckpointError: they do not fit.
        ArgumentError: the class refuses its arguments.
    """
    net = build(description.type, description.arguments, path)
    if missing := load_weights(net, weights, str(path), advice=ADVICE):
        raise CheckpointError(f'{path} has no attentions, {len(missing)} entries of {description.type}: a base network')
    net.eval()
    if not isinstance(getattr(net, 'num_in_ch', None), int):
        net.num_in_ch = in_channels(net, innermost(description.arguments))  # type: ignore[assignment]
    if getattr(net, 'upscale', None) is None:  # others have a part of that name, or a number that means something else
        net.upscale = scale_of(net)  # type: ignore[assignment]
    return net


def build(kind: str, arguments: Arguments, path: object) -> nn.Module:
    """A network of a registered class, with weights that mean nothing yet.

    Raises:
        CheckpointError: there is no such class.
        ArgumentError: it refuses its arguments.
    """
    try:
        cls: Any = NLSN if kind == 'NLSN' else base_class(kind)
    except ArgumentError as error:
        raise CheckpointError(f'{path}: {error}') from error
    try:
        with only_weights_loaded():
            return cls(**arguments)
    except UserError:
        raise
    except FAILURES as error:
        raise ArgumentError(f'{path}: {kind} cannot be built: {first_line(error)}') from error


def tried(options: Mapping[str, Any], use: Callable[[nn.Module], T]) -> T:
    """What `use` makes of a network by its options, in eval mode, its weights random: on the meta device, at no cost,
    or else on the CPU.

    Raises:
        Whatever building or using it raises on the CPU.
    """
    cls = base_class(options['type'])
    arguments = {name: value for name, value in options.items() if name != 'type'}

    def on(device: str) -> T:
        with torch.device(device), torch.random.fork_rng(devices=[]), torch.no_grad():
            return use(cls(**arguments).eval())

    try:
        return on('meta')
    except (*FAILURES, UserError):
        return on('cpu')


@contextlib.contextmanager
def only_weights_loaded() -> Iterator[None]:
    """Whatever is torch.loaded inside runs no code; one thread at a time, for it is the process's environment that says
    so.

    Classes may load a file that their arguments name, and those may come from a stranger's metadata.
    """
    name = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
    with BUILDING:
        before = os.environ.get(name)
        os.environ[name] = '1'
        try:
            yield
        finally:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before


def scale_of(net: nn.Module) -> int:
    """By how much a network on the CPU enlarges: what it makes of a small image. Only an NLSN's `upscale` is believed:
    SwinIR's is 2 by default even where it enlarges nothing."""
    return net.upscale if isinstance(net, NLSN) else round(upscaled(net).shape[-1] / probe_size(net)[1])


def channels_of(net: nn.Module) -> int:
    """Channels of the image that a network takes."""
    return in_channels(net, {})


def probe_size(net: nn.Module) -> list[int]:
    """PROBE, or where a network takes whole windows alone the next larger size of such."""
    window = getattr(net, 'window_size', 1)
    unit = window if isinstance(window, int) else 1
    return [edge + -edge % unit for edge in PROBE]


def upscaled(net: nn.Module) -> Tensor:
    """What a network in eval mode makes of an image of noise, the same each time, on the CPU.

    Raises:
        ArgumentError: it takes no such image, or makes none of it.
    """
    x = torch.rand(1, channels_of(net), *probe_size(net), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # eval_seed=None draws from the global generator
        try:
            y = net(x)
        except FAILURES as error:
            shape = 'x'.join(map(str, x.shape[1:]))
            raise ArgumentError(f'{type(net).__name__} fails on an image of {shape}: {first_line(error)}') from error
    if not isinstance(y, Tensor):
        raise ArgumentError(f'{type(net).__name__} makes a {type(y).__name__} of an image: an image is expected')
    return y
