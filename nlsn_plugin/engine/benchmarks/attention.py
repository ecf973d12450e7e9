"""Time and memory of non-local attention: every form of NLSA beside the others, and standard attention beside them.

Forms are checked against each other first; one that gives other numbers is not timed. Times are medians of
interleaved runs in one process, memory is the peak of a fresh process for each form and case.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from nlsn_plugin import ops
from nlsn_plugin.engine.measuring import Step, check_device, describe_machine, free_memory, interleaved, peak_memory
from nlsn_plugin.errors import BackendError, UserError
from nlsn_plugin.layers import NonLocalSparseAttention
from nlsn_plugin.ops import reference
from nlsn_plugin.ops.cpu_matmul import onednn_matmul

DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}
TOLERANCES = {'float32': (1e-5, 1e-4), 'bfloat16': (0.05, 0.2), 'float16': (0.01, 0.05)}
"""Of outputs and gradients, relative to the largest entry. Half precision is held to what it can hold to."""


@dataclass(frozen=True)
class Case:
    """What is attended to: features [images, channels, height, width]; the layer's arguments."""

    channels: int
    height: int
    width: int
    images: int = 1
    n_hashes: int = 4
    chunk_size: int = 144

    def __str__(self) -> str:
        images = f'{self.images} x ' if self.images > 1 else ''
        return f'{images}{self.height}x{self.width}, C {self.channels}, r {self.n_hashes}, k {self.chunk_size}'


LAYER = Case(64, 100, 100)  # the size of the paper's Table 5
SUITES = {
    'quick': [Case(64, 40, 40)],
    'layer': [LAYER, Case(256, 48, 48, images=16), Case(256, 512, 384)],
    'n': [replace(LAYER, height=edge, width=edge) for edge in (64, 128, 256, 512, 1024)],
    'r': [replace(LAYER, n_hashes=rounds) for rounds in (1, 2, 4, 8, 16)],
    'k': [replace(LAYER, chunk_size=chunk_size) for chunk_size in (36, 72, 144, 288, 576)],
    'c': [replace(LAYER, channels=channels) for channels in (16, 32, 64, 128, 256, 512)],
}
FORWARD_ALONE = 100_000
"""Pixels of a batch from which only the forward pass is measured: such inputs are for testing."""

FORMS = ('reference', 'streamed', 'streamed-onednn', 'fused', 'nla', 'nla-sdpa')
"""The backends, one also with oneDNN's matrix products, and standard attention over all pixels (Eq. 4): its scores in
memory, and by PyTorch's own kernel."""


def make(form: str, case: Case, device: str, dtype: str) -> Callable[[Tensor], Tensor]:
    """The layer in one form, [N, C, H, W] -> [N, C, H, W], with the same weights and rotations for all."""
    torch.manual_seed(0)
    backend = form.removesuffix('-onednn')
    is_sparse = backend in ops.BACKENDS
    arguments = case.channels, case.n_hashes, case.chunk_size
    layer = NonLocalSparseAttention(*arguments, backend=backend if is_sparse else 'auto')
    layer = layer.to(device, DTYPES[dtype]).eval()
    if is_sparse:
        return layer

    def attend(x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        match, value = (conv(x).flatten(2).transpose(1, 2) for conv in (layer.conv_match, layer.conv_assembly))
        if form == 'nla':
            attended = reference.attend_densely(match, value)
        else:
            # With zeros up to the width of the values, or PyTorch takes a form that holds all scores.
            padding = (0, value.shape[-1] - match.shape[-1])
            query, key = (F.pad(part, padding)[:, None] for part in (match, reference.normalise(match)))
            attended = F.scaled_dot_product_attention(query, key, value[:, None], scale=1.0)[:, 0]
        return x + attended.transpose(1, 2).reshape(x.shape)

    return attend


def features(case: Case, device: str, dtype: str) -> Tensor:
    """Random features, channels last, as a network has them."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(case.images, case.channels, case.height, case.width, generator=generator)
    return x.to(device, DTYPES[dtype]).contiguous(memory_format=torch.channels_last)


def bytes_needed(form: str, case: Case) -> int:
    """What a form will take at least: its scores in float32, three times over; 0 if it holds none."""
    pixels = case.height * case.width
    scores = {'reference': case.n_hashes * pixels * 3 * case.chunk_size, 'nla': pixels**2}.get(form, 0)
    return 3 * 4 * case.images * scores


def why_not(form: str, case: Case, device: str, dtype: str) -> str | None:
    """Why a form is not measured; None if it is."""
    pixels = case.height * case.width
    if form == 'fused':
        rows = torch.empty(1, 1, case.channels, device=device, dtype=DTYPES[dtype])
        reason = ops.cannot_fuse(rows[..., : case.channels // 4], rows)
        return reason or ('its interpreter is for tests' if device == 'cpu' else None)
    if form.endswith('-onednn'):
        if (device, dtype) != ('cpu', 'float32'):
            return 'is for float32 on a CPU'
        try:
            with onednn_matmul():
                return None
        except BackendError as error:
            return str(error)
    if form.startswith('nla') and (case.n_hashes, case.chunk_size) != (LAYER.n_hashes, LAYER.chunk_size):
        return 'knows neither r nor k'
    if form.startswith('nla') and pixels * case.images > (70_000 if device == 'cpu' else 300_000):
        return 'takes minutes'
    needed, free = bytes_needed(form, case), free_memory(device)
    return f'needs about {needed / 1e9:.0f} GB' if needed > 0.8 * free else None


def forward(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.no_grad():
        return layer(x)


def forward_and_backward(layer: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """The output, and the gradient of its sum; those of the weights are computed too."""
    x = x.detach().requires_grad_()
    y = layer(x)
    torch.autograd.backward(y.sum())
    return [y.detach(), *([x.grad] if x.grad is not None else [])]


PASSES: dict[str, Callable[..., Any]] = {'forward': forward, 'forward + backward': forward_and_backward}


def step_of(form: str, which: str, layer: Callable[[Tensor], Tensor], x: Tensor) -> Step:
    """One pass of a layer, ready to be timed."""
    step = partial(PASSES[which], layer, x)
    if not form.endswith('-onednn'):
        return step

    def with_onednn() -> Any:
        with onednn_matmul(check=False):
            return step()

    return with_onednn


def check_equal(layers: dict[str, Callable[[Tensor], Tensor]], case: Case, device: str, dtype: str) -> None:
    """Refuse to time forms that give other numbers than the first of their kind."""
    x = features(case, device, dtype)
    large = x.shape[0] * x.shape[2] * x.shape[3] > FORWARD_ALONE
    for is_dense in (False, True):
        names = [name for name in layers if name.startswith('nla') == is_dense]
        results = {}
        for name in names:
            result = step_of(name, 'forward' if large else 'forward + backward', layers[name], x)()
            results[name] = [result] if large else result
        for name in names[1:]:
            for what, ours, expected, allowed in zip(
                ('output', 'gradient'), results[name], results[names[0]], TOLERANCES[dtype]
            ):
                error = ((ours - expected).abs().max() / expected.abs().max()).item()
                if not error <= allowed:
                    off = f'the {what} of {name} is off {names[0]} by {error:.1e}'
                    raise UserError(f'{case}: {off}, {allowed:.0e} is allowed; nothing was timed')


def one_pass(device: str, form: str, case: dict[str, Any], dtype: str, which: str) -> tuple[Step, Step]:
    """A pass on a small input, and the pass, for `peak_memory`."""
    layer = make(form, Case(**case), device, dtype)
    small = features(replace(Case(**case), images=1, height=20, width=20), device, dtype)
    x = features(Case(**case), device, dtype)
    return step_of(form, which, layer, small), step_of(form, which, layer, x)


def measure(case: Case, forms: list[str], device: str, dtype: str, budget: float, memory: bool) -> list[dict[str, Any]]:
    """Time and memory of all forms on one case, one record for each form and pass."""
    skipped = {form: reason for form in forms if (reason := why_not(form, case, device, dtype))}
    layers = {form: make(form, case, device, dtype) for form in forms if form not in skipped}
    check_equal(layers, case, device, dtype)
    x = features(case, device, dtype)
    large = case.images * case.height * case.width > FORWARD_ALONE
    records = []
    for which in PASSES:
        if large and which != 'forward':
            continue
        steps = {form: step_of(form, which, layer, x) for form, layer in layers.items()}
        times = interleaved(steps, device, budget)
        base = statistics.median(times['reference']) if 'reference' in times else None
        for form in forms:
            record = {'case': str(case), **asdict(case), 'pass': which, 'form': form, 'dtype': dtype}
            if form in skipped:
                records.append({**record, 'skipped': skipped[form]})
                continue
            median = statistics.median(times[form])
            words = device, form, asdict(case), dtype, which
            peak = peak_memory(f'{case}, {form}', one_pass, *words) if memory else None
            records.append(
                {
                    **record,
                    'milliseconds': 1e3 * median,
                    'spread': [1e3 * min(times[form]), 1e3 * max(times[form])],
                    'runs': len(times[form]),
                    'speedup': base / median if base else None,
                    'peak_bytes': peak,
                }
            )
    return records


def ceilings(device: str, dtype: str) -> dict[str, float]:
    """What the device reaches at most: bytes a second of a large copy, operations a second of a large product."""
    size = 8192 if device == 'cuda' else 1024
    a, b = (torch.randn(size, size, device=device, dtype=DTYPES[dtype]) for _ in range(2))
    copied = torch.randn(2**28 if device == 'cuda' else 2**25, device=device)
    target = torch.empty_like(copied)
    times = interleaved({'copy': lambda: target.copy_(copied), 'product': lambda: a @ b}, device, 1.0)
    return {
        'copy, bytes/s': 2 * copied.numel() * copied.element_size() / statistics.median(times['copy']),
        'product, operations/s': 2 * size**3 / statistics.median(times['product']),
    }


def fractions(record: dict[str, Any], ceiling: dict[str, float]) -> dict[str, float]:
    """What part of its ceilings the core of a fused forward pass reaches: what it must compute, what it must move."""
    pixels = record['images'] * record['height'] * record['width']
    channels, rounds = record['channels'], record['n_hashes']
    operations = 2 * pixels * rounds * 3 * record['chunk_size'] * (channels + channels // 4)
    size = DTYPES[record['dtype']].itemsize
    moved = pixels * (
        rounds * ((channels + channels // 4) * size + 8) + (2 * rounds - 2) * channels * 4 + channels * size
    )
    seconds = record['milliseconds'] / 1e3
    return {
        'of the product ceiling': operations / seconds / ceiling['product, operations/s'],
        'of the copy ceiling': moved / seconds / ceiling['copy, bytes/s'],
    }


def run(
    suites: list[str], forms: list[str], device: str, dtype: str, budget: float, memory: bool = True
) -> dict[str, Any]:
    """Measure suites of cases; the machine, the command's settings and the records, ready for JSON."""
    check_device(device)
    ceiling = ceilings(device, dtype)
    cases = dict.fromkeys(case for suite in suites for case in SUITES[suite])
    records: list[dict[str, Any]] = []
    for case in tqdm(cases, unit='case', file=sys.stderr):
        records += measure(case, forms, device, dtype, budget, memory)
    if device == 'cuda':
        for record in records:
            if record['form'] == 'fused' and record['pass'] == 'forward' and 'milliseconds' in record:
                record |= fractions(record, ceiling)
    return {'machine': describe_machine(device), 'ceilings': ceiling, 'suites': suites, 'records': records}


def rows(records: list[dict[str, Any]]) -> Iterator[list[str]]:
    """Rows of a table: case, pass, form, time, times faster than the reference, memory."""
    for record in records:
        if 'skipped' in record:
            continue
        speedup, peak = record['speedup'], record['peak_bytes']
        yield [
            *(record[key] for key in ('case', 'pass', 'form')),
            f'{record["milliseconds"]:.4g} ms',
            f'{speedup:.2f}x' if speedup else '',
            f'{peak / 1e6:.0f} MB' if peak is not None else '',
        ]


def left_out(records: list[dict[str, Any]]) -> list[str]:
    """What was not measured, and why: a line for each form and reason."""
    cases: dict[str, dict[str, None]] = {}
    for record in records:
        if 'skipped' in record:
            cases.setdefault(f'{record["form"]}: {record["skipped"]}', {})[record['case']] = None
    return [f'not measured, {what} ({"; ".join(names)})' for what, names in cases.items()]


HEADERS = ['case', 'pass', 'form', 'time', 'speed', 'peak memory']


def plot(records: list[dict[str, Any]], path: Path) -> None:
    """Time and memory of the forward pass over the number of pixels, both axes logarithmic."""
    from matplotlib.figure import Figure

    sweep = [asdict(case) for case in SUITES['n']]
    figure = Figure(figsize=(10, 4.2), layout='constrained')
    for axes, key, unit, label in zip(
        figure.subplots(1, 2), ('milliseconds', 'peak_bytes'), (1e3, 1e9), ('time, s', 'peak memory, GB')
    ):
        for form in dict.fromkeys(record['form'] for record in records):
            points = sorted(
                (record['height'] * record['width'], record[key] / unit)
                for record in records
                if record['form'] == form
                and record['pass'] == 'forward'
                and record.get(key)
                and {name: record[name] for name in sweep[0]} in sweep
            )
            if points:
                axes.loglog(*zip(*points), marker='o', label=form)
        axes.set(xlabel='pixels', ylabel=label)
        axes.grid(which='both', alpha=0.3)
    figure.axes[0].legend()
    figure.suptitle('Forward pass of the layer, 64 channels')
    figure.savefig(path, dpi=120)
