"""oneDNN's matrix products, which are faster on some CPUs, and a check that they are exact."""

from __future__ import annotations

import contextlib
import functools
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from nlsn_plugin.errors import BackendError
from nlsn_plugin.ops.reference import HALF

LARGEST_ERROR = 1e-4
"""Largest error allowed in a product of normal random numbers, relative to its largest entry. That of bfloat16 is some
3e-3."""

FULL_PRECISION = ('none', 'ieee', 'highest')
"""PyTorch's names for products in full precision, the first two from 2.9 on."""


def use_onednn_matmul() -> float:
    """Let oneDNN multiply float32 matrices on the CPU from now on, in the whole process.

    PyTorch offers its kernels under the name of bfloat16, to which they may round; without AMX they compute in float32,
    on AVX-512 up to twice as fast as the usual ones. So a product is checked against float64 first.

    Returns:
        The error of that product, relative to its largest entry.

    Raises:
        BackendError: the error exceeds 1e-4, or this PyTorch has no such setting. The setting is then as it was.
    """
    settings = matmul_settings()
    if settings is None:
        raise BackendError(f'PyTorch {torch.__version__} cannot choose oneDNN for matrix products: 2.9 or newer can')
    before = settings.fp32_precision
    settings.fp32_precision = 'bf16'
    error = error_at('bf16')
    if not error <= LARGEST_ERROR:
        settings.fp32_precision = before
        raise BackendError(
            f'oneDNN rounds float32 matrix products on this CPU: a relative error of {error:.1e}, '
            f'{LARGEST_ERROR:.0e} at most is expected; nothing was changed'
        )
    return error


@contextlib.contextmanager
def onednn_matmul() -> Iterator[None]:
    """Apply `use_onednn_matmul` while the block runs."""
    settings = matmul_settings()
    before = settings.fp32_precision if settings else None
    use_onednn_matmul()
    try:
        yield
    finally:
        settings.fp32_precision = before


def onednn_multiplies(x: Tensor) -> bool:
    """Whether oneDNN computes products of matrices of the type and device of `x`."""
    if x.device.type != 'cpu':
        return False
    settings = matmul_settings()
    return x.dtype in HALF or (x.dtype == torch.float32 and settings is not None and settings.fp32_precision == 'bf16')


def multiplies_exactly() -> bool:
    """Whether products of float32 matrices on the CPU are as exact as float32, as PyTorch is set now.

    `torch.set_float32_matmul_precision('medium')` and its like allow rounding to bfloat16 or TF32. Only oneDNN makes
    use of that, and only on CPUs with AMX.
    """
    if not torch.backends.mkldnn.enabled:
        return True
    settings = matmul_settings()
    precision = settings.fp32_precision if settings else torch.get_float32_matmul_precision()
    return precision in FULL_PRECISION or error_at(precision) <= LARGEST_ERROR


@functools.cache
def error_at(precision: str) -> float:
    """`product_error`, measured once for each setting; `precision` is the current setting, and only a key."""
    with torch.autocast('cpu', enabled=False):
        return product_error()


@functools.cache
def has_products_in(dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies in half precision as fast as in float32. Others take ten times as long."""
    query = {torch.bfloat16: '_is_mkldnn_bf16_supported', torch.float16: '_is_mkldnn_fp16_supported'}.get(dtype)
    return query is None or bool(getattr(torch.ops.mkldnn, query, lambda: False)())


def matmul_settings() -> Any:
    """PyTorch's settings of oneDNN's matrix products; None in versions without them."""
    return getattr(torch.backends.mkldnn, 'matmul', None) if torch.backends.mkldnn.enabled else None


def product_error(multiply: Callable[[Tensor, Tensor], Tensor] = operator.matmul) -> float:
    """The error of float32 batched matrix products under the current settings, relative to the largest entry."""
    generator = torch.Generator('cpu').manual_seed(0)
    left, right = (
        torch.randn(shape, generator=generator, dtype=torch.float32, device='cpu')
        for shape in ((8, 144, 432), (8, 432, 256))
    )
    exact = left.double() @ right.double()
    return float((multiply(left, right).double() - exact).abs().max() / exact.abs().max())
