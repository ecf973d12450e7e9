"""Convolutions that use the fastest method that a device offers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nlsn_plugin import ops
from nlsn_plugin.ops import cpu_matmul, winograd
from nlsn_plugin.ops.context import has_tangent, is_recorded, without_autocast
from nlsn_plugin.ops.reference import HALF, wide

CAST = (torch.float32, *HALF)
"""The floating types that autocast casts; it leaves float64 as it is."""


class Conv2d(nn.Conv2d):
    """PyTorch's convolution, except where that is slow in half precision.

    On a GPU, PyTorch adds the bias in a separate pass. A 1x1 convolution of a channels-last input in half precision is
    therefore computed as a product of matrices, which adds the bias in the same pass. On a CPU without arithmetic for
    half precision, PyTorch takes some ten times as long as in float32; there, if no gradients are needed, this computes
    in float32 and rounds the result.
    """

    def forward(self, x: Tensor) -> Tensor:
        if is_recorded() or x.device.type not in ('cpu', 'cuda'):
            return super().forward(x)
        is_cast = torch.is_autocast_enabled(x.device.type)
        dtype = torch.get_autocast_dtype(x.device.type) if is_cast and x.dtype in CAST else x.dtype
        if x.device.type == 'cuda':
            if dtype in HALF and self._is_pointwise() and x.is_contiguous(memory_format=torch.channels_last):
                return F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)
            return super().forward(x)
        # PyTorch raises the error about types that differ.
        if self._is_trained(x) or (x.dtype != self.weight.dtype and not is_cast):
            return super().forward(x)
        if dtype in HALF and not cpu_matmul.has_products_in(dtype):
            with without_autocast(x.device):
                bias = None if self.bias is None else wide(self.bias)
                return self._convolve(x, wide(self.weight), bias).to(dtype)
        if dtype in HALF or dtype != self.weight.dtype:
            return super().forward(x)
        return self._convolve(x, self.weight, self.bias)

    def _is_pointwise(self) -> bool:
        """Whether each output pixel is the product of the channels of one input pixel with the weights."""
        alone = self.kernel_size == self.stride == (1, 1) and self.padding in ((0, 0), 'valid', 'same')
        return alone and self.groups == 1

    def _is_trained(self, x: Tensor) -> bool:
        taken = (x, self.weight) if self.bias is None else (x, self.weight, self.bias)
        return (torch.is_grad_enabled() and any(t.requires_grad for t in taken)) or has_tangent(*taken)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve in the precision of the weights, which may be wider than that of `x`."""
        return self._conv_forward(x.to(weight.dtype), weight, bias)


class Conv3x3(Conv2d):
    """A 3x3 convolution that keeps the size; with many channels on a CPU it uses Winograd's algorithm in inference.

    Args:
        in_channels, out_channels: C and K.
        backend: that of the network. 'reference' computes the plain convolution, as published; so does 'auto' where
            the environment variable NLSN_BACKEND is 'reference'.
    """

    def __init__(self, in_channels: int, out_channels: int, backend: str = 'auto') -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)
        self.backend = backend

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if winograd.is_faster(x, weight) and ops.named(self.backend) != 'reference':
            return winograd.conv3x3(x, weight, bias)
        return super()._convolve(x, weight, bias)
