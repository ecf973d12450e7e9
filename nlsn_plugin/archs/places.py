"""Places in a network where an attention can stand: after modules whose output is an image of features.

They are found by running a small input through a copy of the network.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nlsn_plugin import checks
from nlsn_plugin.errors import FAILURES, ArgumentError, first_line

SIZES = ((16, 24), (32, 48), (56, 84), (64, 96), (128, 192), (48, 48), (64, 64))
"""Heights and widths to try: multiples of windows of 7 or 8 pixels, first not square, which tells height from width and
both from channels; the last two are common sizes of networks that take one size only."""
IN_CHANNELS = ('num_in_ch', 'in_chans', 'in_channels', 'in_nc', 'inp_channels', 'n_colors')
"""Names of the argument or attribute that holds the channels of a network's input."""
SELECTOR = re.compile(r'([^\[\]]+)(?:\[(-?\d+|-?\d*:-?\d*(?::-?\d*)?)\])?')
"""A selector: a name, then possibly an index or slice in brackets."""


@dataclass(frozen=True)
class SizeArgument:
    """The argument of a module that holds the height and width of its sequence.

    Attributes:
        where: position or name of the argument.
        is_pair: whether it holds both; otherwise it is the height, and the next argument is the width.
    """

    where: int | str
    is_pair: bool

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, int]:
        if isinstance(self.where, str):
            height, width = kwargs[self.where]
        elif self.is_pair:
            height, width = args[self.where]
        else:
            height, width = args[self.where : self.where + 2]
        return height, width


@dataclass(frozen=True)
class Place:
    """A module after which an attention may stand.

    Attributes:
        name: path of the module in the network.
        kind: name of its class.
        shape: shape of its output in the trial, [N, C, H, W] or [N, L, C].
        channels: C.
        size_at: the argument with the height and width of [N, L, C]; None for [N, C, H, W].
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    channels: int
    size_at: SizeArgument | None


@dataclass(frozen=True)
class Trial:
    """The outcome of running a small input through a network.

    Attributes:
        shape: shape of the input, [N, C, H, W].
        output: shape of the network's output; None if that is no image.
        places: the places by module name, in order of execution.
        others: for each other module, by name, why no attention can stand after it.
    """

    shape: tuple[int, ...]
    output: tuple[int, ...] | None
    places: dict[str, Place]
    others: dict[str, str]

    @property
    def upscale(self) -> int | None:
        """Factor by which the network enlarges; None if it is not a whole number or there is no image."""
        if self.output is None or self.output[2] % self.shape[2] or self.output[3] % self.shape[3]:
            return None
        return self.output[2] // self.shape[2]


def explore(net: nn.Module, arguments: Mapping[str, Any], probe: Sequence[int] | None) -> Trial:
    """Run small inputs through a copy of `net` until one shows places for attentions.

    Args:
        net: the network, which is left as it is.
        arguments: the arguments that it was built with, which may include its input channels.
        probe: channels, height and width of the input; None tries the usual sizes.

    Raises:
        ArgumentError: no input runs, or none shows a place; the message names one of them, and the argument `probe`.
    """
    inputs: list[tuple[int, ...]]
    if probe is None:
        channels = in_channels(net, arguments)
        inputs = [(channels, *size) for size in SIZES]
    else:
        inputs = [tuple(checks.whole('probe', size, least=1) for size in checks.sequence('probe', probe))]
        if len(inputs[0]) != 3:
            raise ArgumentError(f'probe={list(probe)} is not allowed: [channels, height, width] are expected')
    parts = (part for module in net.modules() for part in vars(module).values() if isinstance(part, Tensor))
    computed = {id(part): part.detach() for part in parts if not part.is_leaf}  # as torch.nn.utils.weight_norm makes
    copied = copy.deepcopy(net, computed).eval()  # deepcopy refuses tensors that are no leaves
    problem = ''
    for shape in inputs:
        try:
            trial = run(copied, (1, *shape))
        except FAILURES as error:
            problem = problem or f'fails on an input of shape {[1, *shape]}: {first_line(error)}'
        else:
            if trial.places:
                return trial
            problem = f'makes no features of images from an input of shape {[1, *shape]}'
    tried = f' (and of {len(inputs) - 1} other sizes)' if len(inputs) > 1 else ''
    advice = 'give one that it takes by probe: [channels, height, width]'
    raise ArgumentError(f'{type(net).__name__} {problem}{tried}; {advice}')


def in_channels(net: nn.Module, arguments: Mapping[str, Any]) -> int:
    """Channels of a network's input, by its arguments, its attributes or its first convolution; 3 if none tells."""
    for name in IN_CHANNELS:
        channels = arguments.get(name, getattr(net, name, None))
        if isinstance(channels, int):
            return channels
    convolutions = (module for module in net.modules() if isinstance(module, nn.Conv2d))
    return next((convolution.in_channels for convolution in convolutions), 3)


def run(net: nn.Module, shape: tuple[int, ...]) -> Trial:
    """Run a random input of this shape through `net` and examine the output of every module."""
    names = {module: name for name, module in net.named_modules() if name}
    seen: dict[str, list[Place | str]] = {}

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        name = names[module]
        seen.setdefault(name, []).append(examined(name, module, args, kwargs, output, shape))

    handles = [module.register_forward_hook(look, with_kwargs=True) for module in names]
    weight = next(net.parameters(), torch.empty(0))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            output = net(torch.rand(shape, device=weight.device, dtype=weight.dtype))
    finally:
        for handle in handles:
            handle.remove()
    places: dict[str, Place] = {}
    others = {name: 'is never called as a module' for name in names.values() if name not in seen}
    for name, found in seen.items():
        first = found[0]
        if isinstance(first, str):
            others[name] = first
        elif all(isinstance(each, Place) and each.channels == first.channels for each in found):
            places[name] = first
        else:
            others[name] = 'is called several times, with different channels'
    made = tuple(output.shape) if isinstance(output, Tensor) and output.dim() == 4 else None
    return Trial(shape, made, places, others)


def examined(
    name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, input_shape: Sequence[int]
) -> Place | str:
    """Return the place after a module, or the reason why there is none."""
    if not isinstance(output, Tensor) or not output.is_floating_point():
        return f'gives a {type(output).__name__}: a tensor of features is expected'
    shape, kind = tuple(output.shape), type(module).__name__
    if shape[2:] == (1, 1):
        return 'gives a single pixel: an image of features is expected'
    if len(shape) == 4 and shape[0] == input_shape[0] and alike(shape[2:], input_shape):
        return Place(name, kind, shape, shape[1], None)
    if len(shape) == 3 and shape[0] == input_shape[0]:
        if size_at := find_size(shape[1], args, kwargs, input_shape):
            return Place(name, kind, shape, shape[2], size_at)
        return f'gives {list(shape)} and has no height and width of it among its arguments'
    return f'gives {list(shape)}: images [N, C, H, W] or sequences [N, L, C] of the input are expected'


def alike(size: Sequence[int], input_shape: Sequence[int]) -> bool:
    """Whether a height and width have the aspect ratio of the input."""
    return size[0] * input_shape[3] == size[1] * input_shape[2]


def find_size(
    length: int, args: tuple[Any, ...], kwargs: dict[str, Any], input_shape: Sequence[int]
) -> SizeArgument | None:
    """Find the argument that holds the height and width of a sequence; None if there is none."""

    def fits(pair: Any) -> bool:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(isinstance(size, int) for size in pair):
            return False
        return pair[0] * pair[1] == length and alike(pair, input_shape)

    by_number: list[tuple[int | str, Any]] = list(enumerate(args))
    for where, value in [*by_number, *kwargs.items()]:
        if fits(value):
            return SizeArgument(where, is_pair=True)
    for number in range(len(args) - 1):
        if fits(args[number : number + 2]):
            return SizeArgument(number, is_pair=False)
    return None


def chosen(after: str | Sequence[str], net: nn.Module, trial: Trial) -> list[Place]:
    """The places that selectors select, in order of execution.

    A selector is a path ('body.3'), a pattern ('body.*') or a class ('RCAB'). In patterns, * and ? match within one
    level and ** across levels. Patterns and classes may end with an index or slice of their matches, which are in the
    network's order ('body.*[7::8]').

    Raises:
        ArgumentError: a selector matches nothing (the message suggests the nearest names), or it matches a module after
            which no attention can stand.
    """
    selectors = [after] if isinstance(after, str) else checks.sequence('after', after)
    names = {name for selector in selectors for name in selected(selector, net)}
    if not names:
        raise ArgumentError('after=[] is not allowed: at least one module is expected')
    for name in trial.others:
        if name in names:
            raise ArgumentError(f'after: there can be no attention after {name}, which {trial.others[name]}')
    return [place for name, place in trial.places.items() if name in names]


def selected(selector: Any, net: nn.Module) -> list[str]:
    """The modules that a selector selects, in the network's order."""
    parts = SELECTOR.fullmatch(selector) if isinstance(selector, str) else None
    if not parts:
        expected = "a path, pattern or class such as 'body.3', 'body.*[7::8]', 'RCAB' is expected"
        raise ArgumentError(f'after: {selector!r} is not allowed: {expected}')
    name, index = parts.groups()
    modules = {path: type(module).__name__ for path, module in net.named_modules() if path}
    matches = list(matching(name, modules))
    if not matches:
        known = [*modules, *sorted(set(modules.values()))]
        raise ArgumentError(f'after: {type(net).__name__} has no {name}{hint_at_modules(name, known)}')
    if index is None:
        return matches
    if ':' in index:
        bounds = [int(bound) if bound else None for bound in index.split(':')]
        if bounds[2:] == [0]:
            raise ArgumentError(f'after: {selector}: a step of 0 is not allowed')
        taken = matches[slice(*bounds)]
    else:
        taken = matches[int(index) :][:1] if -len(matches) <= int(index) else []
    if not taken:
        raise ArgumentError(f'after: {selector} is empty: {name} has {len(matches)} matches, from {matches[0]} on')
    return taken


def matching(name: str, modules: Mapping[str, str]) -> Iterator[str]:
    """The paths that a selector without its index matches; `modules` maps paths to names of classes."""
    if name in modules:
        yield name
    elif '*' in name or '?' in name:
        translated = {'**': '.*', '*': '[^.]*', '?': '[^.]'}
        parts = re.split(r'(\*\*|\*|\?)', name)
        pattern = ''.join(translated.get(part, re.escape(part)) for part in parts)
        yield from (path for path in modules if re.fullmatch(pattern, path))
    else:
        yield from (path for path, kind in modules.items() if kind == name)


def hint_at_modules(name: str, known: Sequence[str]) -> str:
    """Suggest what may have been meant: three names at most, since networks have hundreds."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f': did you mean {" or ".join(close)}?' if close else ' (`nlsn modules` lists what there is)'
