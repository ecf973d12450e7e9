"""Time and memory of non-local attention: all forms of NLSA, and standard attention for comparison.

The forms are checked against each other first; if one gives other numbers, nothing is timed. Times are medians of
interleaved runs in one process. On a GPU they are taken twice: as called, and without the host, whose launches take
longer than the kernels of small cases. Memory is measured in another process, see `peak_memories`.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from nlsn_plugin import ops
from nlsn_plugin.engine.benchmarks import onednn
from nlsn_plugin.engine.benchmarks.cases import LAYER, SUITES, Case
from nlsn_plugin.engine.benchmarks.ceilings import ceilings, core_time, fractions
from nlsn_plugin.engine.devices import device_of
from nlsn_plugin.engine.dtypes import DTYPES
from nlsn_plugin.engine.measuring.machine import describe_machine
from nlsn_plugin.engine.measuring.memory import Job, free_memory, peak_memories, release
from nlsn_plugin.engine.measuring.timing import Step, interleaved, on_gpu_alone, summary
from nlsn_plugin.errors import UserError
from nlsn_plugin.files import write_whole
from nlsn_plugin.layers import NonLocalSparseAttention
from nlsn_plugin.ops import reference, tf32

TOLERANCES = {'float32': 1e-4, 'bfloat16': 0.03, 'float16': 0.005}
"""Largest error allowed, by dtype. The error is the norm of the difference in what the attention adds to outputs and
gradients, relative to the norm of what it adds. Correct forms differ by up to 0.014 in bfloat16; one round of four
makes a difference of 0.06 and more."""


FORWARD_ALONE = 100_000
"""Pixels of a batch above which only the forward pass is measured: inputs of that size are for inference."""

MOST_PIXELS_OF_NLA = {('cpu', True): 70_000, ('cpu', False): 70_000, ('cuda', True): 100_000, ('cuda', False): 300_000}
"""Pixels of a batch up to which standard attention is measured, by device and whether the dtype is float32. Beyond
that, the runs and the check take minutes."""

FORMS = ('reference', 'streamed', 'streamed-onednn', 'fused', 'nla', 'nla-sdpa')
"""Everything that can be measured: the backends, 'streamed' also with oneDNN's matrix products, and standard attention
over all pixels (Eq. 4), with all scores in memory ('nla') or by PyTorch's own kernel ('nla-sdpa')."""


def make(form: str, case: Case, device: str, dtype: str) -> Callable[[Tensor], Tensor]:
    """Build the layer in one form, [N, C, H, W] -> [N, C, H, W]; all forms have the same weights and rotations."""
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
            # Queries and keys are padded to the width of the values; otherwise PyTorch falls back to a kernel that
            # holds all scores in memory.
            padding = (0, value.shape[-1] - match.shape[-1])
            query, key = (F.pad(part, padding)[:, None] for part in (match, reference.normalise(match)))
            attended = F.scaled_dot_product_attention(query, key, value[:, None], scale=1.0)[:, 0]
        return x + attended.transpose(1, 2).reshape(x.shape)

    return attend


def features(case: Case, device: str, dtype: str) -> Tensor:
    """Random features in the channels-last format, as inside a network."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(case.images, case.channels, case.height, case.width, generator=generator)
    return x.to(device, DTYPES[dtype]).contiguous(memory_format=torch.channels_last)


def bytes_needed(form: str, case: Case) -> int:
    """Lower bound of the bytes that a form takes: three copies of its scores in float32; 0 if it does not hold them."""
    pixels = case.height * case.width
    scores = {'reference': case.n_hashes * pixels * 3 * case.chunk_size, 'nla': pixels**2}.get(form, 0)
    return 3 * 4 * case.images * scores


def why_not(form: str, case: Case, device: str, dtype: str) -> str | None:
    """The reason why a form is not measured on a case; None if it is measured."""
    pixels = case.height * case.width
    if form == 'fused':
        rows = torch.empty(1, 1, case.channels, device=device, dtype=DTYPES[dtype])
        reason = ops.cannot_fuse(rows[..., : case.channels // 4], rows)
        return reason or ('its interpreter is for tests' if device == 'cpu' else None)
    if form.endswith('-onednn'):
        return onednn.why_not(device, dtype)
    if form.startswith('nla') and (case.n_hashes, case.chunk_size) != (LAYER.n_hashes, LAYER.chunk_size):
        return 'knows neither r nor k'
    if form.startswith('nla') and pixels * case.images > MOST_PIXELS_OF_NLA[device, dtype == 'float32']:
        return 'takes minutes'
    needed, free = bytes_needed(form, case), free_memory(device)
    return f'needs about {needed / 1e9:.0f} GB' if needed > 0.8 * free else None


def forward(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.no_grad():
        return layer(x)


def forward_and_backward(layer: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """Return the output and the gradient of its sum by `x`; the gradients of the weights are computed too."""
    x = x.detach().requires_grad_()
    y = layer(x)
    torch.autograd.backward(y.sum())
    return [y.detach(), *([x.grad] if x.grad is not None else [])]


PASSES: dict[str, Callable[..., Any]] = {'forward': forward, 'forward + backward': forward_and_backward}


def step_of(form: str, which: str, layer: Callable[[Tensor], Tensor], x: Tensor) -> Step:
    """One pass of a layer as a step without arguments, ready to be timed."""
    step = partial(PASSES[which], layer, x)
    return onednn.with_onednn(step) if form.endswith('-onednn') else step


NO_MEMORY = 'ran out of memory'


def tried(step: Step, device: str) -> Any:
    """Run a step and return its result; None if the GPU's memory runs out."""
    try:
        return step()
    except torch.cuda.OutOfMemoryError:
        return None
    finally:
        release(device)


def check_equal(layers: dict[str, Callable[[Tensor], Tensor]], case: Case, device: str, dtype: str) -> dict[str, str]:
    """Check that all forms compute the same, separately for NLSA and for standard attention.

    Returns:
        The forms that run out of memory, each with NO_MEMORY as the reason.

    Raises:
        UserError: a form differs from the first of its kind by more than TOLERANCES allow.
    """
    x = features(case, device, dtype)
    large = x.shape[0] * x.shape[2] * x.shape[3] > FORWARD_ALONE
    reasons: dict[str, str] = {}
    for is_dense in (False, True):
        first, expected = '', list[Tensor]()
        for name in (name for name in layers if name.startswith('nla') == is_dense):
            with tf32.switched(False):  # TF32 rounding in the convolutions would move pixels to other chunks
                found = tried(step_of(name, 'forward' if large else 'forward + backward', layers[name], x), device)
            if found is None:
                reasons[name] = NO_MEMORY
                continue
            found = [found] if large else found
            if not first:
                first, expected = name, found
            identity = x, torch.ones_like(x)  # what the residual connection adds to y and to the gradient of its sum
            for what, ours, theirs, own in zip(('output', 'gradient'), found, expected, identity):
                error = ((ours - theirs).float().norm() / (theirs.float() - own.float()).norm()).item()
                if not error <= TOLERANCES[dtype]:
                    off = f'the {what} of {name} is off {first} by {error:.1e}'
                    raise UserError(f'{case}: {off}, {TOLERANCES[dtype]:.0e} is allowed; nothing was timed')
    return reasons


def one_pass(device: str, form: str, case: dict[str, Any], dtype: str, which: str) -> tuple[Step, Step]:
    """One pass on a small input and the same pass on the whole case, as `peak_memories` expects them."""
    layer = make(form, Case(**case), device, dtype)
    small = features(replace(Case(**case), images=1, height=20, width=20), device, dtype)
    x = features(Case(**case), device, dtype)
    return step_of(form, which, layer, small), step_of(form, which, layer, x)


def measure(case: Case, forms: list[str], device: str, dtype: str, budget: float) -> list[dict[str, Any]]:
    """Measure the times of all forms on one case; return one record for each form and pass."""
    skipped = {form: reason for form in forms if (reason := why_not(form, case, device, dtype))}
    layers = {form: make(form, case, device, dtype) for form in forms if form not in skipped}
    skipped |= check_equal(layers, case, device, dtype)
    x = features(case, device, dtype)
    large = case.images * case.height * case.width > FORWARD_ALONE
    records = []
    for which in PASSES:
        if large and which != 'forward':
            continue
        steps = {form: step_of(form, which, layer, x) for form, layer in layers.items() if form not in skipped}
        reasons = skipped | {form: NO_MEMORY for form, step in steps.items() if tried(step, device) is None}
        steps = {form: step for form, step in steps.items() if form not in reasons}
        times = interleaved(steps, device, budget) if steps else {}
        medians = medians_of(times)
        alone = medians_of(on_gpu_alone(steps, budget)) if steps and device == 'cuda' else {}
        for form in forms:
            record = {'case': str(case), **asdict(case), 'pass': which, 'form': form, 'dtype': dtype}
            if form in reasons:
                records.append({**record, 'skipped': reasons[form]})
                continue
            record |= {
                **summary(times[form]),
                'speedup': medians['reference'] / medians[form] if 'reference' in medians else None,
            }
            if form in alone:
                record |= {
                    'gpu_milliseconds': 1e3 * alone[form],
                    'gpu_speedup': alone['reference'] / alone[form] if 'reference' in alone else None,
                }
            records.append({**record, 'peak_bytes': None})
    return records


def medians_of(times: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def add_memory(records: list[dict[str, Any]], device: str, keep: Callable[[], None]) -> None:
    """Add the peak memory to each record that has a time, and call `keep` after each."""
    timed = [record for record in records if 'milliseconds' in record]
    jobs = []
    for record in timed:
        case = {field.name: record[field.name] for field in fields(Case)}
        words = record['form'], case, record['dtype'], record['pass']
        jobs.append(Job(f'{record["case"]}, {record["form"]}', one_pass, words))
    for record, peak in zip(timed, peak_memories(jobs, device), strict=True):
        record['peak_bytes'] = peak
        keep()


def run(
    suites: list[str],
    forms: list[str],
    device: str,
    dtype: str,
    budget: float,
    keep: Callable[[dict[str, Any]], None] = lambda results: None,
) -> dict[str, Any]:
    """Measure suites of cases.

    Args:
        suites: names in SUITES.
        forms: names in FORMS.
        device: 'cpu' or 'cuda'.
        dtype: a key of DTYPES.
        budget: seconds for each comparison of the forms.
        keep: is called with the results so far after each case and each peak, so that a stopped run loses little.

    Returns:
        The machine, its ceilings, the suites and the records, ready for JSON.
    """
    device_of(device)
    cases = dict.fromkeys(case for suite in suites for case in SUITES[suite])
    records: list[dict[str, Any]] = []
    ceiling = ceilings(device, dtype)
    results = {'machine': describe_machine(device), 'ceilings': ceiling, 'suites': suites, 'records': records}
    for case in tqdm(cases, unit='case', file=sys.stderr):
        found = measure(case, forms, device, dtype, budget)
        for record in found:
            if (record['form'], record['pass']) == ('fused', 'forward') and 'milliseconds' in record:
                record |= fractions(case, dtype, core_time(case, dtype, budget), ceiling)
        records += found
        keep(results)
    add_memory(records, device, partial(keep, results))
    return results


def rows(records: list[dict[str, Any]]) -> Iterator[list[str]]:
    """Yield the rows of a table under HEADERS."""
    for record in records:
        if 'skipped' in record:
            continue
        speedup, peak = record['speedup'], record['peak_bytes']
        yield [
            *(record[key] for key in ('case', 'pass', 'form')),
            f'{record["milliseconds"]:.4g} ms',
            f'{speedup:.2f}x' if speedup else '',
            f'{peak / 1e6:.0f} MB' if peak is not None else '',
            *gpu_cells(record),
        ]


def gpu_cells(record: dict[str, Any]) -> list[str]:
    """Cells with the time and the speedup without the host; none if these were not measured."""
    if 'gpu_milliseconds' not in record:
        return []
    speedup = record['gpu_speedup']
    return [f'{record["gpu_milliseconds"]:.4g} ms', f'{speedup:.2f}x' if speedup else '']


def left_out(records: list[dict[str, Any]]) -> list[str]:
    """Lines that say what was not measured and why: one for each form and reason, with the cases unless it is all."""
    every = {record['case'] for record in records}
    cases: dict[str, dict[str, None]] = {}
    for record in records:
        if 'skipped' in record:
            cases.setdefault(f'{record["form"]}: {record["skipped"]}', {})[record['case']] = None
    return [
        f'not measured, {what}' + (f' ({"; ".join(names)})' if names.keys() != every else '')
        for what, names in cases.items()
    ]


HEADERS = ['case', 'pass', 'form', 'time', 'speed', 'peak memory', 'GPU alone', 'speed of it']
"""Columns of the table; the last two are filled on a GPU only."""


def plot(records: list[dict[str, Any]], path: Path) -> None:
    """Plot time and memory of the forward pass against the number of pixels, on logarithmic axes."""
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
    write_whole(path, lambda temporary: figure.savefig(temporary, dpi=120, format=path.suffix[1:]))
