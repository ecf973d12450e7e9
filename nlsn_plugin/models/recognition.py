"""What a network was built with, as far as the names and shapes of its weights tell."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isqrt
from typing import Any

from torch import Tensor

from nlsn_plugin import checks
from nlsn_plugin.archs.nlsn_arch import attention_places
from nlsn_plugin.errors import CheckpointError

Arguments = dict[str, Any]

RELEASED = {'n_hashes': 4, 'chunk_size': 144, 'res_scale': 0.1}
"""Arguments of the released networks, assumed where neither the weights nor anything else tells them."""
SAME_KEYS = ('nlsa', 'local', 'random', 'nla')
"""Attentions whose weights have the same names; 'nla' has further ones unless its keys are its queries."""


def untold(attention: object) -> list[str]:
    """Of RELEASED the arguments that an NLSN with these attentions has: those that do not hash know res_scale alone."""
    return list(RELEASED) if attention in ('nlsa', 'random') else ['res_scale']


def is_nlsn(weights: Mapping[Any, Any]) -> bool:
    """Whether these are the names of an NLSN with attentions in it; EDSR's own weights have none."""
    return is_edsr(weights) and any(re.fullmatch(r'body\.\d+\.conv_match\.0\.weight', str(name)) for name in weights)


def is_edsr(weights: Mapping[Any, Any]) -> bool:
    """Whether these are names of the authors' EDSR, with or without attentions."""
    needed = ('sub_mean.bias', 'add_mean.bias', 'head.0.weight', 'tail.1.weight', 'body.0.')
    return all(any(str(name).startswith(part) for name in weights) for part in needed)


def infer(weights: Mapping[str, Tensor], path: object, img_range: float | None = None) -> Arguments:
    """The arguments of the NLSN whose weights these are: all that names and shapes tell.

    `attention` is 'nla' with keys of their own, 'none' without attentions, else 'nlsa', which 'local' and 'random'
    cannot be told from; `attention_at` is None for the released placing.

    Args:
        weights: the state dict.
        path: where it is from, for messages.
        img_range: what to take for it; by default 255 if the mean that is added is beyond 1, else 1.

    Raises:
        CheckpointError: they are no NLSN's.
    """
    if any(name.startswith('nlsa.') for name in weights):
        raise CheckpointError(
            f'{path} holds a WithNLSA, whose weights do not tell its arch: '
            f'`nlsn convert {path} OUT.safetensors -opt FILE` makes a file that does'
        )
    if not is_edsr(weights):
        raise CheckpointError(
            f'{path} holds no NLSN: head.0.weight, body.0..., tail.1.weight, sub_mean and add_mean are expected, '
            f'and it begins with {", ".join(list(weights)[:3]) or "nothing"}'
        )
    try:
        (num_feat, num_in_ch, _, _), num_out_ch = weights['head.0.weight'].shape, weights['tail.1.weight'].shape[0]
        kinds = kinds_of_body(weights)
        shift = weights['add_mean.bias'].double()
        if img_range is None:
            img_range = 255.0 if bool((shift.abs() > 1).any()) else 1.0
        arguments: Arguments = {
            'num_in_ch': num_in_ch,
            'num_out_ch': num_out_ch,
            'num_feat': num_feat,
            'num_block': kinds.count('block'),
            'upscale': upscale_of_tail(weights),
            'rgb_mean': [round(mean, 6) for mean in (shift / img_range).tolist()],
            'img_range': img_range,
        }
        return {**arguments, **attention_arguments_of(weights, kinds, num_feat)}
    except (KeyError, ValueError, ZeroDivisionError, IndexError, TypeError) as error:  # tensors of other shapes too
        reason = f'{error.args[0]} is missing' if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f'{path} holds no NLSN: {reason}') from error


def kinds_of_body(weights: Mapping[str, Any]) -> list[str]:
    """What `body` consists of, in order, its last convolution left out."""
    numbers = {int(match[1]) for name in weights if (match := re.match(r'body\.(\d+)\.', name))}
    last = max(numbers)
    kinds = []
    for number in range(last):
        if f'body.{number}.body.0.weight' in weights:
            kinds.append('block')
        elif f'body.{number}.conv_match.0.weight' in weights:
            kinds.append('attention')
        else:
            raise ValueError(f'body.{number} is neither a residual block nor an attention')
    if f'body.{last}.weight' not in weights:
        raise ValueError(f'body.{last} is no convolution')
    return kinds


def upscale_of_tail(weights: Mapping[str, Tensor]) -> int:
    """The product of the shuffles' factors, each told by how much its convolution widens."""
    upscale = 1
    for name, tensor in weights.items():
        if re.fullmatch(r'tail\.0\.\d+\.weight', name):
            out_channels, in_channels = tensor.shape[:2]
            upscale *= isqrt(out_channels // in_channels)
    return upscale


def attention_arguments_of(weights: Mapping[str, Tensor], kinds: list[str], num_feat: int) -> Arguments:
    """attention, attention_at, reduction and the option `shared`, as far as there are attentions."""
    if 'attention' not in kinds:
        return {'attention': 'none', 'attention_at': None}
    first = kinds.index('attention')
    places = [kinds[:number].count('block') for number, kind in enumerate(kinds) if kind == 'attention']
    if len(set(places)) < len(places):
        raise ValueError('it has two attentions in a row')
    released = places == attention_places(kinds.count('block'), None)
    arguments: Arguments = {
        'attention': 'nlsa',
        'attention_at': None if released else places,
        'reduction': num_feat // weights[f'body.{first}.conv_match.0.weight'].shape[0],
    }
    if f'body.{first}.conv_key.0.weight' in weights:
        arguments.update(attention='nla', attention_options={'shared': False})
    return arguments


def contradiction(inferred: Arguments, name: str, value: Any) -> bool:
    """Whether an argument cannot be that of the weights that `inferred` was inferred from."""
    if name not in inferred:
        return False
    own = inferred[name]
    if name == 'attention':
        return value != own and not (own == 'nlsa' and value in SAME_KEYS)
    if name == 'attention_at' and inferred['attention'] == 'none':
        return bool(value)  # nothing stands there
    if name == 'attention_at':
        places = attention_places(inferred['num_block'], own)
        return attention_places(inferred['num_block'], value) != places
    if name == 'attention_options':
        return isinstance(value, dict) and value.get('shared', True) is not own['shared']
    if name == 'rgb_mean':
        value = [checks.real(name, mean) for mean in checks.sequence(name, value)]
        return len(value) != len(own) or any(abs(mean - other) > 1e-3 for mean, other in zip(value, own))
    return value != own
