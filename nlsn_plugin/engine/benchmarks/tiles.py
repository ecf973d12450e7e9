"""The tiles of the fused kernels that suit a GPU best, by trying."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from nlsn_plugin import ops
from nlsn_plugin.engine.benchmarks.attention import DTYPES, Case
from nlsn_plugin.engine.measuring import check_device, describe_machine, interleaved
from nlsn_plugin.errors import BackendError


def run(case: Case, dtype: str, budget: float) -> dict[str, Any]:
    """Time the kernels of `case` on the GPU with many tiles; those that do not fit are left out."""
    check_device('cuda')
    match, value = (
        torch.randn(case.images, case.height * case.width, channels, device='cuda', dtype=DTYPES[dtype])
        for channels in (case.channels // 4, case.channels)
    )
    if reason := ops.cannot_fuse(match, value):
        raise BackendError(reason)
    from nlsn_plugin.ops import fused
    from nlsn_plugin.ops.tiles import Tiles, default_tiles

    half = ops.count_buckets(match.shape[1], case.chunk_size) // 2
    order = ops.library.pixel_order(match, torch.randn(case.channels // 4, case.n_hashes, half))
    tensors = match, value, order, case.chunk_size
    out, mass, shift = fused.forward(*tensors, True)
    kept = shift if len(shift) else out
    default, query, key = default_tiles(match, value)
    sizes = itertools.product((32, 64, 128), (16, 32, 64, 128), (4, 8), (2, 3, 4))
    tiles = [default._replace(block_m=m, block_n=n, num_warps=w, num_stages=s) for m, n, w, s in sizes]

    def backward(query: Tiles, key: Tiles) -> Any:
        return fused.backward(out, match, value, kept, mass, order, case.chunk_size, tiles=(query, key))

    kernels: dict[str, Callable[[Tiles], Any]] = {
        'forward': lambda cut: fused.forward(*tensors, False, tiles=cut),
        'query': lambda cut: backward(cut, key),
        'key': lambda cut: backward(query, cut),
    }
    records = []
    for (name, kernel), cut in itertools.product(kernels.items(), tiles):
        try:
            times = interleaved({'': partial(kernel, cut)}, 'cuda', budget)['']
        except Exception as error:  # noqa: BLE001  (Triton has many for tiles that do not fit, CUDA one more)
            records.append({'kernel': name, **cut._asdict(), 'skipped': type(error).__name__})
            continue
        records.append({'kernel': name, **cut._asdict(), 'milliseconds': 1e3 * statistics.median(times)})
    records.sort(key=lambda record: (record['kernel'], record.get('milliseconds', float('inf'))))
    return {'machine': describe_machine('cuda'), 'case': str(case), 'dtype': dtype, 'records': records}
