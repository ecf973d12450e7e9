"""Networks from files and into files: what weights do not tell is read from their metadata, and kept there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from nlsn_plugin import checks
from nlsn_plugin.errors import ArgumentError
from nlsn_plugin.files import write_whole
from nlsn_plugin.models.building import network_of
from nlsn_plugin.models.checkpoint import EMBEDDED, METADATA_KEY, Metadata, Stored, checked_metadata, read_stored
from nlsn_plugin.models.description import as_json, describe, warn_of_assumed

LAYOUTS = {'authors': '.pt', 'basicsr': '.pth', 'safetensors': '.safetensors', 'mmengine': '.pth'}
"""What a file can be, and the ending of its name."""


def load_network(path: str | Path, *, param_key: str | None = 'params_ema', **arguments: Any) -> nn.Module:
    """The network in a file, ready to use: in eval mode, on the CPU; `building.scale_of(net)` is its scale, and so is
    `net.upscale` unless its class has something else of that name.

    Args:
        path: the authors' .pt, BasicSR's .pth, .safetensors, or mmengine's .pth.
        param_key: which weights, see `checkpoint.read_stored`.
        arguments: of the network. They go before the file's metadata, and cannot contradict its weights. What nothing
            says is taken as released (n_hashes=4, chunk_size=144, res_scale=0.1), and logged.

    Raises:
        CheckpointError: the file cannot be read, or holds no network that is known.
        ArgumentError: arguments that do not exist, are out of range, or contradict the weights.
    """
    stored = read_stored(path, param_key)
    description = describe(stored, path, arguments)
    warn_of_assumed(description, path)
    return network_of(description, stored.weights, path)


def save_network(
    net: nn.Module | Mapping[str, Tensor],
    path: str | Path,
    metadata: Metadata | None = None,
    *,
    layout: str | None = None,
    embed: bool = False,
    prefix: str = '',
) -> None:
    """Write weights to a file, as a whole or not at all; an older one of that name is replaced.

    Args:
        net: a network, or its state dict.
        path: the file.
        metadata: {'type': 'NLSN', 'arguments': {...}}: kept in it, except in the authors' layout, which has no room.
        layout: one of LAYOUTS; by default what the ending stands for: .pt authors, .pth basicsr, .safetensors.
        embed: keep the metadata as a tensor too, for programs that read nothing else (spandrel). Of safetensors.
        prefix: before the names of the weights ('generator.' for mmagic's models). Of mmengine.

    Raises:
        ArgumentError: the ending and the layout do not fit, the metadata are none, or something asked for would do
            nothing.
        CheckpointError: the metadata contradict the weights.
        SaveError: the file cannot be written.
    """
    weights = net.state_dict() if isinstance(net, nn.Module) else net
    path = Path(path)
    layout = layout_of(path, layout)
    refuse_what_does_nothing(layout, embed, prefix)
    if embed and metadata is None:
        raise ArgumentError(f'{path}: embed keeps the metadata as a tensor too, and there are none')
    if checked_metadata(path, metadata):
        metadata = describe(Stored(dict(weights), metadata, layout), path, {}).metadata
    write_whole(path, lambda file: write_layout(file, weights, metadata, layout, embed, prefix))


def layout_of(path: Path, layout: str | None = None) -> str:
    """The layout to write to `path`.

    Raises:
        ArgumentError: its ending stands for none, or for another.
    """
    ending = path.suffix.lower()
    if layout is None:
        for name, usual in LAYOUTS.items():
            if ending == usual:
                return name
        raise ArgumentError(
            f'{path} ends in no known way: .pt (authors), .pth (basicsr, or mmengine if asked for) or .safetensors'
        )
    checks.one_of('layout', layout, tuple(LAYOUTS))
    if (layout == 'safetensors') != (ending == '.safetensors'):
        raise ArgumentError(f'{path} is no name for {layout}: {LAYOUTS[layout]} is expected')
    return layout


def refuse_what_does_nothing(layout: str, embed: bool, prefix: str) -> None:
    """Refuse what a layout has no place for.

    Raises:
        ArgumentError: names it.
    """
    if embed and layout != 'safetensors':
        raise ArgumentError(f'embed is for safetensors: {layout} was asked for')
    if prefix and layout != 'mmengine':
        raise ArgumentError(f'prefix={prefix} is for mmengine: {layout} was asked for')
    if prefix and not prefix.endswith('.'):
        raise ArgumentError(f'prefix={prefix} is not allowed: a dot at its end is expected: {prefix}.')


def write_layout(
    path: Path, weights: Mapping[str, Tensor], metadata: Metadata | None, layout: str, embed: bool, prefix: str
) -> None:
    """Write a file of `layout`."""
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
    beside = {METADATA_KEY: metadata} if metadata else {}
    with path.open('wb') as file:  # of Python's: its errors have reasons, and its files the usual permissions
        if layout == 'safetensors':
            if embed and metadata:
                tensors[EMBEDDED] = torch.tensor(list(as_json(metadata).encode()), dtype=torch.uint8)
            file.write(save(tensors, {'format': 'pt', **{key: as_json(value) for key, value in beside.items()}}))
            return
        contents: dict[str, dict[str, Any]] = {
            'authors': tensors,
            'basicsr': {'params': tensors, **beside},
            'mmengine': {'meta': beside, 'state_dict': {prefix + name: tensor for name, tensor in tensors.items()}},
        }
        torch.save(contents[layout], file)
