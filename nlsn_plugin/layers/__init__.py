"""Attention layers as nn.Modules, [N, C, H, W] -> [N, C, H, W]; they need torch alone."""

from nlsn_plugin.layers.nlsa import NonLocalSparseAttention

__all__ = ['NonLocalSparseAttention']
