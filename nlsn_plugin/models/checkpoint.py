"""Weights on disk: reading them without running them, and saying which do not fit."""

from __future__ import annotations

import difflib
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nlsn_plugin.archs import WithNLSA
from nlsn_plugin.errors import CheckpointError

Weights = dict[str, Tensor]


def read_weights(path: str | Path, param_key: str | None = 'params') -> Weights:
    """Read a state dict: BasicSR's {'params': ..., 'params_ema': ...}, or flat as the NLSN authors released theirs.

    Args:
        path: the file.
        param_key: what to take from BasicSR's layout; 'params_ema' falls back to 'params', as in BasicSR.

    Raises:
        CheckpointError: there is no such file, it is damaged, it would run code on loading, or the key is not in it.
    """
    content = load_safely(path)
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f'{path} holds a {type(content).__name__}: a dict of tensors is expected')
    if not any(isinstance(entry, Tensor) for entry in content.values()):
        wanted = [param_key, 'params'] if param_key in ('params_ema', None) else [param_key]
        found = next((key for key in wanted if isinstance(content.get(key), dict)), None)
        if found is None:
            keys = [str(key) for key in content]
            listed = ', '.join(keys[:5]) + (f' and {len(keys) - 5} more' if len(keys) > 5 else '')
            raise CheckpointError(f"{path} has no '{param_key}': it holds {listed}")
        content = content[found]
    for name, entry in content.items():
        if not isinstance(entry, Tensor):
            raise CheckpointError(f'{path}: {name} is a {type(entry).__name__}: tensors are expected')
    return {name.removeprefix('module.'): tensor for name, tensor in content.items()}


def load_safely(path: str | Path) -> Any:
    """torch.load to the CPU, executing nothing that is in the file.

    Raises:
        CheckpointError: there is no such file, it is damaged, or it would run code on loading.
    """
    check_file(path)
    try:
        return torch.load(path, map_location='cpu', weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f'{path} does not load (nothing in it was executed): {reason}') from error


def check_file(path: str | Path) -> None:
    """Refuse a file that is not there, or is a folder, with a hint at what may have been meant."""
    if Path(path).is_dir():
        raise CheckpointError(f'{path} is a folder: name the file in it')
    if not Path(path).is_file():
        raise CheckpointError(f'there is no file {path}{nearest_file(Path(path))}')


def nearest_file(path: Path) -> str:
    """A hint at the file that may have been meant."""
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return f' (there is no folder {path.parent})'
    close = difflib.get_close_matches(path.name, names, n=1)
    return f' (did you mean {path.parent / close[0]}?)' if close else ''


def mismatches(net: nn.Module, weights: Weights) -> list[str]:
    """What does not fit, a line each: names missing in either, and shapes that differ."""
    own = net.state_dict()
    lines = [f'{name}: the file has none' for name in own if name not in weights]
    lines += [f'{name}: the network has none' for name in weights if name not in own]
    lines += [
        f'{name}: {list(tensor.shape)} in the file, {list(own[name].shape)} in the network'
        for name, tensor in weights.items()
        if name in own and own[name].shape != tensor.shape
    ]
    return lines


FITTING = 'To load only what fits (x4 from x2 weights, say), set strict_load_g: false'


def load_weights(
    net: nn.Module, weights: Weights, path: str | Path, strict: bool = True, advice: str = FITTING
) -> list[str]:
    """Load `weights` into `net`; return what did not fit (a line each).

    When strict that is nothing; but of WithNLSA the attentions, where the weights are its base network's alone.
    `advice` ends the error, where they do not.

    Raises:
        CheckpointError: strict, and anything does not fit; or nothing at all fits. The network is then as before.
    """
    new = []
    if isinstance(net, WithNLSA):
        complete = net.completed(weights)
        new = [f'{name}: the file has none' for name in complete if name not in weights]
        weights = complete
    lines = mismatches(net, weights)
    own = net.state_dict()
    fitting = {name: w for name, w in weights.items() if name in own and own[name].shape == w.shape}
    if strict and lines:
        shown = '; '.join(lines[:3]) + (f'; and {len(lines) - 3} more' if len(lines) > 3 else '')
        raise CheckpointError(
            f'{path} does not fit {type(net).__name__}, {len(lines)} of {len(own)} entries: {shown}. {advice}'
        )
    if not fitting:
        raise CheckpointError(f'{path} has nothing that fits {type(net).__name__}: not one name and shape agree')
    net.load_state_dict(fitting, strict=False)
    return lines + new
