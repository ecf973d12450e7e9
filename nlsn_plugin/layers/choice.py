"""The attentions that a network can use, and their arguments."""

from __future__ import annotations

import inspect
from typing import Any

from nlsn_plugin import checks
from nlsn_plugin.errors import ArgumentError
from nlsn_plugin.layers.local import LocalWindowAttention
from nlsn_plugin.layers.nla import NonLocalAttention
from nlsn_plugin.layers.nlsa import NonLocalSparseAttention
from nlsn_plugin.layers.residual import ResidualAttention

ATTENTIONS: dict[str, tuple[type[ResidualAttention], dict[str, Any]]] = {
    'nlsa': (NonLocalSparseAttention, {'partition': 'lsh'}),
    'nla': (NonLocalAttention, {}),
    'local': (LocalWindowAttention, {}),
    'random': (NonLocalSparseAttention, {'partition': 'random'}),
}
"""For each name in a network's options: the layer, and the arguments that the name fixes."""


def attention_arguments(
    attention: str, shared: dict[str, Any], options: dict[str, Any], name_of_options: str = 'attention_options'
) -> dict[str, Any]:
    """Return the arguments of an attention besides its channels.

    They are those of `shared` that it takes, those that its name fixes, and `options`.
    """
    known: list[str] = []
    fixed: dict[str, Any] = {}
    if checks.one_of('attention', attention, (*ATTENTIONS, 'none')) != 'none':
        layer, fixed = ATTENTIONS[attention]
        known = list(inspect.signature(layer).parameters)
    further = [name for name in known if name not in {'channels', *shared, *fixed}]
    for name in checks.mapping(name_of_options, options):
        if name not in further:
            hint = checks.nearest(str(name), further)
            raise ArgumentError(f'{name_of_options}: attention={attention!r} takes no {name}{hint}')
    return {**{name: value for name, value in shared.items() if name in known}, **fixed, **options}
