"""Search for the tiles of the fused kernels that are fastest on a GPU."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from nlsn_plugin import ops
from nlsn_plugin.engine.benchmarks.cases import Case
from nlsn_plugin.engine.devices import device_of
from nlsn_plugin.engine.dtypes import DTYPES
from nlsn_plugin.engine.measuring.machine import describe_machine
from nlsn_plugin.engine.measuring.timing import Step, interleaved, recorded
from nlsn_plugin.errors import BackendError

CANDIDATES: dict[str, list[dict[str, int]]] = {
    'forward': [
        {'block_m': m, 'block_n': n, 'block_c': c, 'num_warps': w, 'num_stages': s, 'parts': p}
        for m, n, c, w, s, p in [
            (64, 64, 128, 4, 2, 2), (64, 32, 128, 4, 5, 2), (64, 64, 256, 4, 2, 1), (64, 64, 256, 8, 2, 1),
            (64, 64, 128, 4, 2, 1), (64, 32, 256, 4, 2, 1), (64, 32, 256, 8, 3, 1), (128, 64, 128, 8, 2, 2),
            (128, 64, 256, 8, 2, 1), (32, 32, 256, 8, 3, 1), (32, 32, 128, 4, 3, 1), (32, 16, 128, 4, 3, 1),
        ]
    ],
    'query': [
        {'block_m': m, 'block_n': n, 'num_warps': w, 'num_stages': s}
        for m, n, w, s in [
            (64, 32, 4, 2), (64, 32, 8, 3), (64, 64, 4, 2), (64, 64, 8, 3), (128, 64, 8, 2), (128, 32, 8, 3),
            (32, 32, 8, 3), (32, 32, 4, 3), (16, 16, 4, 3),
        ]
    ],
    'key': [
        {'block_m': m, 'block_n': n, 'num_warps': w, 'num_stages': s}
        for m, n, w, s in [
            (64, 32, 4, 2), (64, 32, 8, 3), (64, 64, 8, 2), (128, 32, 8, 3), (32, 64, 4, 2), (32, 32, 8, 2),
            (32, 32, 4, 3), (32, 16, 8, 2), (16, 32, 8, 2), (16, 16, 4, 2),
        ]
    ],
}  # fmt: skip
"""Tiles to try for each kernel besides its default ones, from which they take the fields that are not named here."""


def run(case: Case, dtype: str, budget: float, device: str = 'cuda') -> dict[str, Any]:
    """Time each kernel of `case` with its default tiles and with its candidates.

    The forward kernel is timed alone. The query and the key kernel are timed in a whole backward pass, in which the
    other one has its default tiles.

    Returns:
        The machine, the case, the dtype, and records sorted by kernel and time. Tiles that do not fit the GPU have
        'skipped', the name of the error, in place of 'milliseconds'.

    Raises:
        BackendError: the fused kernels cannot run on the device.
    """
    device_of(device)
    match, value = (
        torch.randn(case.images, case.height * case.width, channels, device=device, dtype=DTYPES[dtype])
        for channels in (case.channels // 4, case.channels)
    )
    if reason := ops.cannot_fuse(match, value):
        raise BackendError(reason)
    from nlsn_plugin.ops import fused
    from nlsn_plugin.ops.tiles import KERNELS, Tiles, default_tiles

    half = ops.count_buckets(match.shape[1], case.chunk_size) // 2
    order = ops.library.pixel_order(match, torch.randn(case.channels // 4, case.n_hashes, half))
    tensors = match, value, order, case.chunk_size
    out, mass, shift = fused.forward(*tensors, True)
    kept = shift if len(shift) else out
    defaults = dict(zip(KERNELS, default_tiles(match, value)))

    def backward(query: Tiles, key: Tiles) -> Any:
        return fused.backward(out, match, value, kept, mass, order, case.chunk_size, tiles=(query, key))

    steps: dict[str, tuple[str, Callable[[Tiles], Any]]] = {
        'forward': ('forward', lambda cut: fused.forward(*tensors, False, tiles=cut)),
        'query': ('backward', lambda cut: backward(cut, defaults['key'])),
        'key': ('backward', lambda cut: backward(defaults['query'], cut)),
    }

    def trials() -> Iterator[tuple[str, Tiles]]:
        for name, default in defaults.items():
            yield from (
                (name, cut)
                for cut in dict.fromkeys([default, *(Tiles(**{**default._asdict(), **c}) for c in CANDIDATES[name])])
            )

    records = []
    for name, cut in tqdm(list(trials()), unit='kernel'):
        timed, step = steps[name]
        record = {'kernel': name, **cut._asdict(), 'is default': cut == defaults[name], 'timed': timed}
        try:
            trial: Step = partial(step, cut)
            times = interleaved({'': recorded(trial) if device == 'cuda' else trial}, device, budget)['']
        except Exception as error:  # noqa: BLE001  (Triton and CUDA raise many kinds for tiles that do not fit)
            records.append({**record, 'skipped': type(error).__name__})
            continue
        records.append({**record, 'milliseconds': 1e3 * statistics.median(times)})
    records.sort(key=lambda record: (record['kernel'], record.get('milliseconds', float('inf'))))
    return {'machine': describe_machine(device), 'case': str(case), 'dtype': dtype, 'records': records}
