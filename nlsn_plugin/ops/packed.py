"""Products with several fixed matrices, on CPUs with AVX-512 by oneDNN's convolutions.

PyTorch multiplies float32 matrices with MKL, which uses AVX-512 on Intel's CPUs only. oneDNN's convolutions use it on
every CPU that has it. A 1x1 convolution in G groups is a product with each of G matrices, and oneDNN can arrange
("pack") the matrices once for many products.

Letters: T rows, G matrices, C columns, K columns of the product.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from nlsn_plugin.ops import cpu_matmul

STRIDE, PADDING, DILATION = [1, 1], [0, 0], [1, 1]


class Packed:
    """G matrices to multiply with, each with its own group of rows.

    Args:
        matrices: [G, K, C].
        rows: T, the number of rows that will be multiplied at once. oneDNN's arrangement depends on it. Other numbers
            give the same products, but then oneDNN may have to arrange the matrices anew each time.
    """

    def __init__(self, matrices: Tensor, rows: int) -> None:
        self.groups, _, channels = matrices.shape
        self.is_packed = can_pack(matrices)
        self.matrices = matrices
        if self.is_packed:
            weight, shape = matrices.reshape(-1, channels, 1, 1), [1, self.groups * channels, rows, 1]
            self.matrices = torch.ops.mkldnn._reorder_convolution_weight(
                weight, PADDING, STRIDE, DILATION, self.groups, shape
            )

    def multiply(self, x: Tensor) -> Tensor:
        """Multiply [T, G, C] with the transposed matrices. Returns [T, G, K]."""
        if not self.is_packed:
            return torch.bmm(x.transpose(0, 1), self.matrices.mT).transpose(0, 1)
        image = x.reshape(1, len(x), 1, -1).permute(0, 3, 1, 2)  # [1, G C, T, 1]
        product = torch.ops.mkldnn._convolution_pointwise(
            image, self.matrices, None, PADDING, STRIDE, DILATION, self.groups, 'none', [], ''
        )
        return product.permute(0, 2, 3, 1).view(len(x), self.groups, -1)


def can_pack(matrices: Tensor) -> bool:
    """Whether oneDNN multiplies with these matrices: it does with float32, on CPUs with AVX-512."""
    if matrices.device.type != 'cpu' or matrices.dtype != torch.float32:
        return False
    return (
        torch.backends.cpu.get_cpu_capability() == 'AVX512' and bool(torch.backends.mkldnn.enabled) and has_operators()
    )


@functools.cache
def has_operators() -> bool:
    """Whether this PyTorch has the operators that its own compiler uses for packed weights."""
    return all(hasattr(torch.ops.mkldnn, name) for name in ('_reorder_convolution_weight', '_convolution_pointwise'))


def is_exact() -> bool:
    """Whether products are as exact as float32, as PyTorch is set now; see `cpu_matmul.multiplies_exactly`.

    `torch.backends.mkldnn.conv.fp32_precision` may allow rounding of convolutions too.
    """
    if not torch.backends.mkldnn.enabled:  # an error measured now would be kept for when it is on again
        return True
    settings: Any = getattr(torch.backends.mkldnn, 'conv', None)
    precision = settings.fp32_precision if settings else 'none'
    exact = precision in cpu_matmul.FULL_PRECISION or error_at(precision) <= cpu_matmul.LARGEST_ERROR
    return exact and cpu_matmul.multiplies_exactly()


@functools.cache
def error_at(precision: str) -> float:
    """The error of such products, measured once for each setting; `precision` is the current one, and only a key."""

    def multiply(left: Tensor, right: Tensor) -> Tensor:
        return Packed(right.mT, left.shape[1]).multiply(left.transpose(0, 1)).transpose(0, 1)

    with torch.autocast('cpu', enabled=False):
        return cpu_matmul.product_error(multiply)
