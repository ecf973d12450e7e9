"""The base class of the attention layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nlsn_plugin import checks
from nlsn_plugin.errors import ArgumentError
from nlsn_plugin.layers.convolution import Conv2d


class ResidualAttention(nn.Module):
    """x -> x + res_scale * attention(x), [N, C, H, W] -> [N, C, H, W], of any height and width.

    Args:
        channels: C.
        reduction: queries and keys have C / reduction channels; must divide C.
        res_scale: factor of the attention's output, which is added to the input.
    """

    def __init__(self, channels: int, reduction: int, res_scale: float) -> None:
        super().__init__()
        self.channels = checks.whole('channels', channels, least=1)
        self.reduction = checks.divisor('reduction', reduction, 'channels', self.channels)
        self.res_scale = checks.real('res_scale', res_scale)
        self.conv_match = self._new_conv_match()
        self.conv_assembly = nn.Sequential(Conv2d(self.channels, self.channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Add the attention to `x`."""
        attended = self._attend(self._checked(x))
        return torch.add(x, attended, alpha=self.res_scale)

    def _new_conv_match(self) -> nn.Sequential:
        """Make the projection theta or phi, a 3x3 convolution C -> C / reduction."""
        return nn.Sequential(Conv2d(self.channels, self.channels // self.reduction, 3, padding=1))

    def _checked(self, x: Tensor) -> Tensor:
        """Check the shape of `x` and return it with channels last, so that each pixel is a row of memory."""
        if x.dim() != 4 or x.shape[1] != self.channels:
            raise ArgumentError(f'x has the shape {list(x.shape)}: [N, {self.channels}, H, W] is expected')
        return channels_last(x)

    def _attend(self, x: Tensor) -> Tensor:
        """attention(x), [N, C, H, W]."""
        raise NotImplementedError


def channels_last(x: Tensor) -> Tensor:
    """`x`, [N, C, H, W], with channels last in memory; written so that it works under torch.func.vmap."""
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def channels_behind(features: Tensor) -> Tensor:
    """Move channels last: [N, D, H, W] -> [N, H, W, D], without a copy if they are last in memory already."""
    return features.permute(0, 2, 3, 1).contiguous()
