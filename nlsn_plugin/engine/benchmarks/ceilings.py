"""Throughput that a device reaches at most, and the share of it that the core of a fused forward pass reaches."""

from __future__ import annotations

import contextlib
import statistics
from functools import partial

import torch

from nlsn_plugin import ops
from nlsn_plugin.engine.benchmarks.cases import Case
from nlsn_plugin.engine.dtypes import DTYPES
from nlsn_plugin.engine.measuring.timing import interleaved, on_gpu_alone
from nlsn_plugin.ops import tf32


def ceilings(device: str, dtype: str) -> dict[str, float]:
    """Measure the bytes per second of a large copy and the operations per second of a large matrix product.

    The product is computed as the fused kernels multiply. In float32 on a GPU these take three products in TF32, so a
    third of the TF32 rate is the ceiling, unless PyTorch is set to multiply float32 in plain TF32.
    """
    size = 8192 if device == 'cuda' else 1024
    a, b = (torch.randn(size, size, device=device, dtype=DTYPES[dtype]) for _ in range(2))
    copied = torch.randn(2**28 if device == 'cuda' else 2**25, device=device)
    target = torch.empty_like(copied)
    in_three = (device, dtype) == ('cuda', 'float32') and not tf32.of_products()
    with tf32.switched(True) if in_three else contextlib.nullcontext():
        times = interleaved({'copy': lambda: target.copy_(copied), 'product': lambda: a @ b}, device, 1.0)
    return {
        'copy, bytes/s': 2 * copied.numel() * copied.element_size() / statistics.median(times['copy']),
        'product, operations/s': 2 * size**3 / statistics.median(times['product']) / (3 if in_three else 1),
    }


def core_time(case: Case, dtype: str, budget: float) -> float:
    """Seconds that a GPU takes for the fused attention alone, without convolutions, hashing and sorting."""
    match, value = (
        torch.randn(case.images, case.height * case.width, channels, device='cuda', dtype=DTYPES[dtype])
        for channels in (case.channels // 4, case.channels)
    )
    half = ops.count_buckets(match.shape[1], case.chunk_size) // 2
    order = ops.library.pixel_order(match, torch.randn(case.channels // 4, case.n_hashes, half))
    step = partial(ops.attend_in_order, match, value, order, case.chunk_size, 'fused')
    return statistics.median(on_gpu_alone({'': step}, budget)[''])


def fractions(case: Case, dtype: str, seconds: float, ceiling: dict[str, float]) -> dict[str, float]:
    """Shares of the ceilings that the core reaches, by the operations it must compute and the bytes it must move.

    Args:
        case: what was measured.
        dtype: of the features.
        seconds: the time of the core, see `core_time`.
        ceiling: see `ceilings`.
    """
    pixels, channels, rounds = case.images * case.height * case.width, case.channels, case.n_hashes
    operations = 2 * pixels * rounds * 3 * case.chunk_size * (channels + channels // 4)
    size = DTYPES[dtype].itemsize
    moved = pixels * (
        rounds * ((channels + channels // 4) * size + 8) + (2 * rounds - 2) * channels * 4 + channels * size
    )
    return {
        'core, milliseconds': 1e3 * seconds,
        'of the product ceiling': operations / seconds / ceiling['product, operations/s'],
        'of the copy ceiling': moved / seconds / ceiling['copy, bytes/s'],
    }
