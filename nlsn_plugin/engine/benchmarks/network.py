"""Time and memory of the paper's whole network, with its attentions in several forms."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nlsn_plugin.archs import NLSN
from nlsn_plugin.engine.benchmarks import onednn
from nlsn_plugin.engine.devices import device_of
from nlsn_plugin.engine.measuring.machine import describe_machine
from nlsn_plugin.engine.measuring.memory import Job, peak_memories
from nlsn_plugin.engine.measuring.timing import Step, interleaved, summary
from nlsn_plugin.errors import UserError
from nlsn_plugin.ops import tf32
from nlsn_plugin.ops.cpu_matmul import has_products_in

LARGEST_DIFFERENCE = 1e-5
"""Difference allowed between the forms in float32, relative to the largest entry of a module's output."""

FORMS: dict[str, dict[str, Any]] = {
    'reference': {'backend': 'reference'},
    'auto': {'backend': 'auto'},
    'no attention': {'attention_at': []},
}
"""Arguments of the network for each form: two backends, and the same network without attention."""

DTYPES = {'float32': None, 'bfloat16': torch.bfloat16}

SLOW = 'this CPU has no arithmetic in half precision: PyTorch takes some ten times as long as in float32'


def run(
    size: tuple[int, int],
    device: str,
    budget: float,
    compiled: bool,
    keep: Callable[[dict[str, Any]], None] = lambda results: None,
) -> dict[str, Any]:
    """Measure NLSN x2, with random weights, on one random image: the time hardly depends on either.

    Args:
        size: height and width of the image.
        device: 'cpu' or 'cuda'.
        budget: seconds for timing all forms together.
        compiled: whether the network is also measured under torch.compile.
        keep: is called with the results so far once the times are known, and after each peak.

    Returns:
        The machine, and records like those of `attention.run`.

    Raises:
        UserError: the backends differ by more than LARGEST_DIFFERENCE.
    """
    device_of(device)
    times = measure(size, device, budget, compiled)
    base = statistics.median(times['reference, float32'])
    case = f'NLSN x2, {size[0]}x{size[1]}'
    records: list[dict[str, Any]] = [
        {
            'case': case,
            'pass': 'forward',
            'form': name,
            **summary(seconds),
            'speedup': base / statistics.median(seconds),
            'peak_bytes': None,
        }
        for name, seconds in times.items()
    ]
    for name in every_form() - times.keys():
        records.append({'case': case, 'pass': 'forward', 'form': name, 'skipped': SLOW})
    results = {'machine': describe_machine(device), 'records': records}
    keep(results)
    plain = times.keys() & every_form()  # neither compiled nor with oneDNN's products
    eager = [record for record in records if record['form'] in plain]
    names = [record['form'].rsplit(', ', 1) for record in eager]
    jobs = [Job(f'{case}, {form}, {dtype}', one_image, (form, list(size), dtype)) for form, dtype in names]
    for record, peak in zip(eager, peak_memories(jobs, device), strict=True):
        record['peak_bytes'] = peak
        keep(results)
    return results


def measure(size: tuple[int, int], device: str, budget: float, compiled: bool) -> dict[str, list[float]]:
    """Check that the backends compute the same, then return the seconds of every form.

    Raises:
        UserError: they differ by more than LARGEST_DIFFERENCE.
    """
    networks = {form: make(form, device) for form in FORMS}
    x = torch.rand(1, 3, *size, device=device)
    compare: Step = partial(largest_difference, networks['reference'], networks['auto'], x)
    has_onednn = onednn.why_not(device, 'float32') is None
    with tf32.switched(False):
        differences = [compare(), *([onednn.with_onednn(compare)()] if has_onednn else [])]
    if not all(difference <= LARGEST_DIFFERENCE for difference in differences):
        said = ', '.join(f'{difference:.1e}' for difference in differences)
        raise UserError(f"NLSN with backend='auto' is off 'reference' by {said}; nothing was timed")
    steps: dict[str, Step] = {}
    for form, network in networks.items():
        steps |= {f'{form}, {dtype}': partial(upscale, network, x, DTYPES[dtype]) for dtype in DTYPES}
    if device == 'cpu' and not has_products_in(torch.bfloat16):
        del steps['reference, bfloat16']
    if has_onednn:
        steps['auto-onednn, float32'] = onednn.with_onednn(steps['auto, float32'])
    if compiled:
        graph = torch.compile(networks['auto'], fullgraph=True)
        steps |= {f'auto, torch.compile, {dtype}': partial(upscale, graph, x, DTYPES[dtype]) for dtype in DTYPES}
    return interleaved(steps, device, budget)


def every_form() -> set[str]:
    """Names of all combinations of FORMS and DTYPES."""
    return {f'{form}, {dtype}' for form in FORMS for dtype in DTYPES}


def largest_difference(reference: NLSN, other: NLSN, x: Tensor) -> float:
    """The largest difference between modules of two networks, relative to the largest entry of `reference`'s output.

    Each module of `other` is given the input of its counterpart in `reference`. Were the networks compared as a whole,
    rounding in one module would move a few pixels to other chunks of the next attention, and all outputs would differ.
    """
    differences: list[Tensor] = []

    def compare(module: nn.Module, other: nn.Module) -> RemovableHandle:
        def hook(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            differences.append((other(*inputs) - output).abs().max() / output.abs().max())

        return module.register_forward_hook(hook)

    pairs = zip([reference.head, *reference.body, reference.tail], [other.head, *other.body, other.tail])
    hooks = [compare(*pair) for pair in pairs]
    upscale(reference, x)
    for hook in hooks:
        hook.remove()
    return float(torch.stack(differences).max())


def make(form: str, device: str) -> NLSN:
    """Build the network in one of FORMS; all backends have the same weights."""
    torch.manual_seed(0)
    return NLSN(**FORMS[form]).to(device).eval()


def upscale(network: Callable[[Tensor], Tensor], x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    with torch.no_grad(), torch.autocast(x.device.type, dtype) if dtype else contextlib.nullcontext():
        return network(x)


def one_image(device: str, form: str, size: list[int], dtype: str) -> tuple[Step, Step]:
    """Upscaling of a small image and of one of the given size, as `peak_memories` expects them."""
    network = make(form, device)
    small, x = torch.rand(1, 3, 16, 16, device=device), torch.rand(1, 3, *size, device=device)
    return partial(upscale, network, small, DTYPES[dtype]), partial(upscale, network, x, DTYPES[dtype])
