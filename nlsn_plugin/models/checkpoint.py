"""Reading files of weights without executing what is in them, and reporting weights that do not fit a network."""

from __future__ import annotations

import difflib
import errno
import json
import pickle
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from nlsn_plugin.archs import NLSN, WithNLSA
from nlsn_plugin.archs.nlsn_arch import foreign_means
from nlsn_plugin.errors import CheckpointError, first_line
from nlsn_plugin.files import exists, is_dir, is_file
from nlsn_plugin.models.inert import load_inertly

Weights = dict[str, Tensor]
Metadata = dict[str, Any]

METADATA_KEY = 'nlsn'
"""The key under which files keep {'type': ..., 'arguments': {...}}, as JSON in safetensors."""
EMBEDDED = 'nlsn_metadata'
"""Name of the tensor that holds the same metadata, for programs that read nothing but tensors."""
DAMAGES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
)
"""What torch.load raises on a file that is damaged, or would run code."""
GENERATOR = 'generator.'
GENERATOR_AVERAGES = ('generator_ema.module.', 'generator_ema.')
"""Before the names of a network in SuperResolutionModel and in mmagic's models, and of its moving average if there is
one."""


class Stored(NamedTuple):
    """What a file holds.

    Attributes:
        weights: name -> tensor, as the network has them.
        metadata: {'type': ..., 'arguments': {...}} of the network; None if the file says nothing.
        layout: 'authors' (a flat state dict), 'basicsr', 'mmengine' or 'safetensors'; 'spandrel' for what that gives.
    """

    weights: Weights
    metadata: Metadata | None
    layout: str


def read_weights(path: str | Path, param_key: str | None = 'params') -> Weights:
    """The weights of a file; see `read_stored`."""
    return read_stored(path, param_key).weights


def read_stored(path: str | Path, param_key: str | None = 'params', otherwise: str = 'params') -> Stored:
    """Read a file of weights: safetensors, BasicSR's {'params': ..., 'params_ema': ...}, mmengine's
    {'state_dict': ..., 'meta': ...}, or flat as the NLSN authors released theirs.

    Args:
        path: the file; what it is, is seen from its content.
        param_key: what to take from BasicSR's layout. Of mmengine's layout 'params_ema' and None take the moving
            average if there is one, 'params' the network itself; files that keep one set of weights alone have it under
            these keys, and no others.
        otherwise: what to take in place of a 'params_ema' that BasicSR's layout has not.

    Raises:
        CheckpointError: there is no such file, it is damaged, it would run code on loading, or the key is not in it.
    """
    check_readable(path)
    if is_safetensors(path):
        refuse_key(path, param_key)
        return read_safetensors(path)
    content = load_container(path)
    if isinstance(content, dict) and {'optimizers', 'schedulers', 'iter'} <= content.keys():
        weights_file = f'models/net_g_{content["iter"]}.pth'
        raise CheckpointError(f'{path} is the state of a run, without weights: {weights_file} of that run has them')
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f'{path} holds a {type(content).__name__}: a dict of tensors is expected')
    if any(isinstance(entry, Tensor) for entry in content.values()):
        refuse_key(path, param_key)
        weights, layout, metadata = content, 'authors', None
    elif is_of_mmengine(content):
        weights, layout = weights_of_mmengine(content, param_key), 'mmengine'
        metadata = content['meta'].get(METADATA_KEY)
    else:
        wanted = [param_key, otherwise] if param_key in ('params_ema', None) else [param_key]
        found = next((key for key in wanted if isinstance(content.get(key), dict)), None)
        if found is None:
            raise CheckpointError(f"{path} has no '{param_key or otherwise}': it holds {shortened(content, 5)}")
        weights, layout, metadata = content[found], 'basicsr', content.get(METADATA_KEY)
    for name, entry in weights.items():
        if not isinstance(name, str) or not isinstance(entry, Tensor):
            raise CheckpointError(f'{path}: {name} is a {type(entry).__name__}: tensors are expected')
        if entry.layout != torch.strided or entry.is_meta:
            kind = 'without numbers' if entry.is_meta else f'in the layout {entry.layout}'
            raise CheckpointError(f'{path}: {name} is a tensor {kind}: plain ones are expected')
    weights = {name: tensor.detach() for name, tensor in unwrapped(weights).items()}
    return Stored(weights, checked_metadata(path, metadata), layout)


def unwrapped(weights: Weights) -> Weights:
    """Remove what torch.compile and DistributedDataParallel add to the names of weights."""
    weights = {name.replace('_orig_mod.', ''): tensor for name, tensor in weights.items()}
    is_wrapped = all(name.startswith('module.') for name in weights)  # else a part is called so
    return {name.removeprefix('module.'): tensor for name, tensor in weights.items()} if is_wrapped else weights


def refuse_key(path: str | Path, param_key: str | None) -> None:
    """Refuse any other key for a file that holds a single set of weights."""
    if param_key not in ('params', 'params_ema', None):
        raise CheckpointError(f"{path} has no '{param_key}': it keeps one set of weights, without a key")


def is_safetensors(path: str | Path) -> bool:
    """Whether the file begins as safetensors do: the length of a header, and JSON."""
    with Path(path).open('rb') as file:
        return file.read(9)[8:] == b'{'


def read_safetensors(path: str | Path) -> Stored:
    try:
        with safe_open(str(path), 'pt', 'cpu') as file:
            said = (file.metadata() or {}).get(METADATA_KEY)
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f'{path} does not load: {first_line(error)}') from error
    metadata = embedded_metadata(path, weights) if said is None else from_json(path, said)
    weights.pop(EMBEDDED, None)
    return Stored(unwrapped(weights), metadata, 'safetensors')


def embedded_metadata(path: object, weights: Mapping[str, Tensor]) -> Metadata | None:
    """What EMBEDDED says, if it is among the weights."""
    said = weights.get(EMBEDDED)
    return from_json(path, bytes(said.flatten().to(torch.uint8).tolist())) if isinstance(said, Tensor) else None


def from_json(path: object, text: str | bytes) -> Metadata | None:
    try:
        return checked_metadata(path, json.loads(text))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its metadata '{METADATA_KEY}' is no JSON: {first_line(error)}") from error


def checked_metadata(path: object, metadata: Any) -> Metadata | None:
    """Check metadata and return them; None stays None."""
    if metadata is None:
        return None
    if (
        not isinstance(metadata, dict)
        or not isinstance(metadata.get('type'), str)
        or not isinstance(metadata.get('arguments'), dict)
    ):
        raise CheckpointError(
            f"{path}: its metadata '{METADATA_KEY}' are {str(metadata)[:80]}: a type and arguments are expected"
        )
    arguments = dict(metadata['arguments'])
    if metadata['type'] == 'WithNLSA' and isinstance(arguments.get('arch'), dict):
        arguments['arch'] = {name: value for name, value in arguments['arch'].items() if name != 'type'}
    for kind in classes_named(arguments):
        raise CheckpointError(
            f"{path}: its metadata '{METADATA_KEY}' name a class in a class, {kind}: none is built but WithNLSA's arch"
        )
    return metadata


def classes_named(value: Any) -> Iterator[str]:
    """What dictionaries within a value have as their `type`: toolboxes make objects of these."""
    if isinstance(value, dict):
        if 'type' in value:
            yield str(value['type'])
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from classes_named(each)


def load_container(path: str | Path) -> Any:
    """`load_safely`, with mmengine's own objects replaced by stand-ins that do nothing."""
    try:
        return load_safely(path)
    except CheckpointError as refusal:
        if not isinstance(refusal.__cause__, pickle.UnpicklingError) or not zipfile.is_zipfile(path):
            raise
        try:
            content = load_inertly(path)
        except DAMAGES:
            raise refusal from None
        if not is_of_mmengine(content):
            raise
        return content


def is_of_mmengine(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and isinstance(content.get('state_dict'), dict)
        and isinstance(content.get('meta'), dict)
    )


def weights_of_mmengine(content: dict[str, Any], param_key: str | None) -> dict[str, Any]:
    """The network's own weights from a checkpoint of mmengine's Runner, without what stands before their names."""
    weights = {str(name): tensor for name, tensor in content['state_dict'].items()}
    average = param_key in ('params_ema', None)
    others = content.get('ema_state_dict')
    if isinstance(others, dict) and not average:  # EMAHook saves its average as the state dict, and the weights here
        weights = {str(name).removeprefix('module.'): tensor for name, tensor in others.items() if name != 'steps'}
    for prefix in (*(GENERATOR_AVERAGES if average else ()), GENERATOR):
        if any(name.startswith(prefix) for name in weights):
            return {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
    firsts = {name.split('.')[0] for name in weights}
    rests = [name.split('.', 1)[-1] for name in weights]
    if len(firsts) == 1 and not any(rest[:1].isdigit() for rest in rests):  # a model with the network as its only part
        return dict(zip(rests, weights.values()))
    return weights


def load_safely(path: str | Path) -> Any:
    """torch.load to the CPU, executing nothing that is in the file.

    Raises:
        CheckpointError: there is no such file, it is damaged, or it would run code on loading.
    """
    check_readable(path)
    try:
        with Path(path).open('rb') as file:  # by a path torch.load would go by its ending
            return torch.load(file, map_location='cpu', weights_only=True)
    except DAMAGES as error:
        raise CheckpointError(f'{path} does not load (nothing in it was executed): {refusal(path, error)}') from error


def refusal(path: str | Path, error: Exception) -> str:
    """Why torch.load does not read a file, without its advice to load it unsafely."""
    if isinstance(error, OSError):  # of which a truncated file is one too
        return 'it is truncated or damaged' if error.errno == errno.EINVAL else first_line(error)
    with Path(path).open('rb') as file:
        begin = file.read(2)
    if begin and begin != b'PK' and begin[:1] != b'\x80':  # neither a zip nor a pickle
        return 'it is no file of weights: .pt, .pth or .safetensors is expected'
    if not isinstance(error, pickle.UnpicklingError):
        return first_line(error)
    told = [line.strip() for line in str(error).splitlines() if 'nsupported' in line]
    return told[0].split(' Please use')[0] if told else 'it holds something other than tensors'


def shortened(names: Iterable[object], most: int) -> str:
    listed = [str(name) for name in names]
    return ', '.join(listed[:most]) + (f' and {len(listed) - most} more' if len(listed) > most else '')


def check_readable(path: str | Path) -> None:
    """Refuse a file that is not there, is a folder, with a hint at what may have been meant, or cannot be read."""
    try:
        if is_dir(Path(path)):
            raise CheckpointError(f'{path} is a folder: name the file in it')
        if not exists(Path(path)):
            raise CheckpointError(f'there is no file {path}{nearest_file(Path(path))}')
        if not is_file(Path(path)):
            raise CheckpointError(f'{path} is a pipe or a device: a file is expected')
        with Path(path).open('rb'):
            pass
    except OSError as error:
        raise CheckpointError(f'{path} cannot be read: {error.strerror}') from error


def nearest_file(path: Path) -> str:
    """A hint at the file that may have been meant."""
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return f' (there is no folder {path.parent})'
    close = difflib.get_close_matches(path.name, names, n=1)
    return f' (did you mean {path.parent / close[0]}?)' if close else ''


def mismatches(net: nn.Module, weights: Weights) -> list[str]:
    """List what does not fit, a line each: names missing in either, and shapes that differ."""
    own = net.state_dict()
    lines = [f'{name}: the file has none' for name in own if name not in weights]
    lines += [f'{name}: the network has none' for name in weights if name not in own]
    lines += [
        f'{name}: {list(tensor.shape)} in the file, {list(own[name].shape)} in the network'
        for name, tensor in weights.items()
        if name in own and own[name].shape != tensor.shape
    ]
    return lines


WHAT_FITS = 'To load only what fits (x4 from x2 weights, say), set '
ADVICE = WHAT_FITS + 'strict_load_g: false'
AS_BEGUN = 'A run goes on with the network that it began with; its weights may begin another run '


def load_weights(
    net: nn.Module, weights: Weights, path: str | Path, strict: bool = True, advice: str = ADVICE
) -> list[str]:
    """Load `weights` into `net`; return what did not fit (a line each).

    With strict=True that is nothing, except the attentions of a WithNLSA given its base network's weights.
    `advice` is the end of the error message.

    Raises:
        CheckpointError: see `fitting`. The network is then as before.
    """
    fit, left = fitting(net, weights, path, strict, advice)
    net.load_state_dict(fit, strict=False)
    return left


def fitting(
    net: nn.Module, weights: Weights, path: str | Path, strict: bool = True, advice: str = ADVICE
) -> tuple[Weights, list[str]]:
    """What `load_weights` will load, and what it will return.

    Raises:
        CheckpointError: strict, and anything does not fit; nothing at all fits; or an NLSN would be given the means of
            another img_range.
    """
    new: list[str] = []
    named = weights
    if isinstance(net, WithNLSA):
        complete = net.completed(weights)
        new = [f'{name}: the file has none' for name in complete if name not in weights]
        weights = complete
    lines = mismatches(net, weights)
    own = net.state_dict()
    fit = {name: w for name, w in weights.items() if name in own and own[name].shape == w.shape}
    if strict and lines:
        shown = '; '.join(lines[:3]) + (f'; and {len(lines) - 3} more' if len(lines) > 3 else '')
        raise CheckpointError(
            f'{path} does not fit {type(net).__name__} of {len(own)} entries, {len(lines)} differ: {shown}. {advice}'
        )
    if not fit.keys() & named.keys():
        raise CheckpointError(f'{path} has nothing that fits {type(net).__name__}: not one name and shape agree')
    if isinstance(net, NLSN) and (said := foreign_means(weights, net.img_range, net.rgb_mean)):
        raise CheckpointError(f'{path}: {said}')
    return fit, lines + new
