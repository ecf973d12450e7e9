"""Attention layers as nn.Modules, [N, C, H, W] -> [N, C, H, W]; they need torch alone."""

from nlsn_plugin.layers.choice import ATTENTIONS, attention_arguments
from nlsn_plugin.layers.local import LocalWindowAttention
from nlsn_plugin.layers.nla import NonLocalAttention
from nlsn_plugin.layers.nlsa import NonLocalSparseAttention

__all__ = ['ATTENTIONS', 'LocalWindowAttention', 'NonLocalAttention', 'NonLocalSparseAttention', 'attention_arguments']
