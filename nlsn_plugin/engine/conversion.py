"""Conversion of weights files to other layouts, verified on the way: tensors bit by bit, networks by their output."""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nlsn_plugin.errors import SaveError
from nlsn_plugin.files import check_writable, exists, write_whole
from nlsn_plugin.models.building import PROBE, network_of, scale_of, upscaled
from nlsn_plugin.models.checkpoint import Stored, Weights, read_stored
from nlsn_plugin.models.description import OF_THE_RUN, Arguments, Description, describe
from nlsn_plugin.models.formats import layout_of, refuse_what_does_nothing, write_layout
from nlsn_plugin.models.recognition import RELEASED


@dataclass(frozen=True)
class Wish:
    """How the new file is to be written.

    Attributes:
        layout: one of `formats.LAYOUTS`; None for the one that the file's ending stands for.
        half: whether to store parameters in float16, the only change ever made to tensors.
        embed: see `formats.save_network`.
        prefix: see `formats.save_network`.
        force: whether an existing file may be replaced.
    """

    layout: str | None = None
    half: bool = False
    embed: bool = False
    prefix: str = ''
    force: bool = False


def convert(
    source: Path, target: Path, wish: Wish, kind: str | None, given: Arguments, param_key: str | None = 'params_ema'
) -> list[str]:
    """Write the weights of one file into another layout.

    The networks of both files are built and compared before the new file takes its place.

    Args:
        source, target: the file to read and the file to write.
        wish: how to write it.
        kind: class of the network; None for the one in the file's metadata, or NLSN where there are none.
        given: arguments of the network, as far as the caller knows them.
        param_key: which weights to take, see `read_stored`.

    Returns:
        Lines that say what was inferred, assumed and verified.

    Raises:
        UserError: the source does not load, the target exists or cannot be written, or the networks differ.
    """
    layout = layout_of(target, wish.layout)
    refuse_what_does_nothing(layout, wish.embed, wish.prefix)
    stored = read_stored(source, param_key)
    check_target(source, target, wish.force)
    description = describe(stored, source, given, kind)
    net = network_of(description, stored.weights, source)
    weights = {name: stored.weights[name] for name in net.state_dict() if name in stored.weights}  # the net's order
    if wish.half:
        parameters = dict(net.named_parameters())  # buffers, the means of MeanShift, are few and stay exact
        weights = {name: w.half() if name in parameters else w for name, w in weights.items()}
    metadata = None if layout == 'authors' else description.metadata
    proved: list[str] = []

    def save(path: Path) -> None:
        write_layout(path, weights, metadata, layout, wish.embed, wish.prefix)
        proved.append(prove(path, target, layout, weights, description, net, wish.half))

    write_whole(target, save, replaces=wish.force)
    found = f'{description.type} x{scale_of(net)}, {sum(p.numel() for p in net.parameters()) / 1e6:.2f} M parameters'
    return [
        f'{source}: {stored.layout}, {found}',
        *listed(description),
        f'{target}: {layout}{", float16" if wish.half else ""}, {proved[0]}',
        *losses(layout, description),
    ]


def check_target(source: Path, target: Path, force: bool) -> None:
    """Refuse a target that cannot be written, is the source itself, or exists and is not to be replaced."""
    check_writable(target, whole=True)
    if exists(target) and source.samefile(target):
        raise SaveError(f'{target} is the file that is read: name another')
    if exists(target) and not force:
        raise SaveError(f'{target} is there already: --force replaces it')


def prove(
    path: Path, target: Path, layout: str, weights: Weights, description: Description, net: nn.Module, half: bool
) -> str:
    """Read back what was written, build its network and compare both; return what was found, for a message.

    Raises:
        SaveError: a tensor differs, or the outputs do (with `half`: the new one is not a number).
    """
    written = read_stored(path)
    if sorted(written.weights) != sorted(weights):
        raise SaveError(f'{target} was not written: its tensors have other names when read back')
    for name, tensor in weights.items():
        if not identical(tensor, written.weights[name]):
            raise SaveError(f'{target} was not written: {name} differs when read back')
    ours, theirs = upscaled(net), upscaled(again(written, layout, description, target))
    difference = 0.0 if identical(ours, theirs) else float((ours - theirs).abs().max())
    if isnan(difference) or (difference and not half):  # NaN: float16 has overflowed
        raise SaveError(f'{target} was not written: the output of its network differs, by {difference:.3g}')
    size = f'an image of {PROBE[1]}x{PROBE[0]}'
    if half:
        return f'{len(weights)} tensors; its output on {size} in [0, 1] differs by {difference:.2g} at most'
    return f'{len(weights)} tensors bit-identical, its output on {size} too'


def again(written: Stored, layout: str, description: Description, target: Path) -> nn.Module:
    """Build the network of the written file from what the file says; in the authors' layout, from `description`."""
    own = description.arguments
    told = own if layout == 'authors' else {name: own[name] for name in OF_THE_RUN if name in own}
    return network_of(describe(written, target, told, description.type), written.weights, target)


def identical(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal bit by bit, so that even NaN equals itself."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return one.contiguous().flatten().view(torch.uint8).equal(other.contiguous().flatten().view(torch.uint8))


def listed(description: Description) -> list[str]:
    """Lines that list the arguments by their source; those in both weights and metadata under the metadata alone."""
    stored, inferred = description.stored, description.inferred
    return [
        f'  {source}: {words(arguments)}'
        for source, arguments in (
            ('inferred from its weights', {key: inferred[key] for key in inferred if key not in stored}),
            ('from its metadata', stored),
            ('given', description.given),
            ('ASSUMED, since nothing says them', description.assumed),
        )
        if arguments
    ]


def losses(layout: str, description: Description) -> list[str]:
    """A line with the arguments, if any, that the file cannot hold and that a reader would assume otherwise."""
    if layout != 'authors':
        return []
    lost = description.metadata['arguments']
    if description.type == 'NLSN':
        usual: dict[str, Any] = {**RELEASED, 'attention': 'nlsa', 'attention_options': None, 'eval_seed': 0}
        lost = {name: lost[name] for name, value in usual.items() if lost[name] != value}
    return [f"  The authors' layout has no room for arguments. To be said when loading: {words(lost)}"] if lost else []


def words(arguments: Arguments) -> str:
    return ', '.join(f'{name}={value}' for name, value in arguments.items())
