"""Attention layers as nn.Modules, [N, C, H, W] -> [N, C, H, W]; they need torch alone."""

from typing import Any

from nlsn_plugin.layers.local import LocalWindowAttention
from nlsn_plugin.layers.nla import NonLocalAttention
from nlsn_plugin.layers.nlsa import NonLocalSparseAttention
from nlsn_plugin.layers.residual import ResidualAttention

__all__ = ['ATTENTIONS', 'LocalWindowAttention', 'NonLocalAttention', 'NonLocalSparseAttention']

ATTENTIONS: dict[str, tuple[type[ResidualAttention], dict[str, Any]]] = {
    'nlsa': (NonLocalSparseAttention, {'partition': 'lsh'}),
    'nla': (NonLocalAttention, {}),
    'local': (LocalWindowAttention, {}),
    'random': (NonLocalSparseAttention, {'partition': 'random'}),
}
"""What a network may take for its attention, by the name in its options: a layer, and arguments the name stands for."""
