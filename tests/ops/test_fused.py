from __future__ import annotations

import contextlib
import gc
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from conftest import DEVICE, python
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from nlsn_plugin import NonLocalSparseAttention
from nlsn_plugin.ops import lsh, reference

triton = pytest.importorskip('triton', reason='needs Triton')
tl = pytest.importorskip('triton.language')
fused, kernel_parts = (pytest.importorskip(f'nlsn_plugin.ops.{name}') for name in ('fused', 'kernel_parts'))

SMALL = fused.Tiles(16, 16, block_c=16, num_warps=4)


@triton.jit
def tile_kernel(found, program, checksum, L, k, BLOCK_M: tl.constexpr):  # noqa: N803
    """The places of some programs."""
    row = tl.program_id(0)
    first, end = kernel_parts.tile(tl.load(program + row).to(tl.int32), tl.load(checksum), L, k, L, BLOCK_M)
    tl.store(found + 2 * row, first)
    tl.store(found + 2 * row + 1, end)


class Problem(NamedTuple):
    """What attention takes, and the gradient of what it gives."""

    match: Tensor
    value: Tensor
    order: Tensor
    chunk_size: int
    grad: Tensor
    neighbours: str = 'both'

    def to(self, dtype: torch.dtype) -> Problem:
        match, value, grad = (x.to(dtype) for x in (self.match, self.value, self.grad))
        return self._replace(match=match, value=value, grad=grad)


class Answer(NamedTuple):
    out: Tensor
    grad_match: Tensor
    grad_value: Tensor


def draw(
    length: int, chunk_size: int, rounds: int = 2, images: int = 1, channels: tuple[int, int] = (20, 36)
) -> Problem:
    """Random numbers in float32 and random orders."""
    generator = torch.Generator().manual_seed(length)
    match, value, grad = (
        torch.randn(images, length, width, generator=generator).to(DEVICE) for width in (*channels, channels[1])
    )
    order = torch.rand(images, rounds, length, generator=generator).argsort(dim=-1).to(DEVICE)
    return Problem(match, value, order, chunk_size, grad)


def by_fused(problem: Problem, tiles: Any = None) -> Answer:
    """By the kernels; tiles for all three of them."""
    match, value, order, chunk_size, grad, neighbours = problem
    out, mass, shift = fused.forward(match, value, order, chunk_size, True, neighbours, tiles=tiles)
    both = tiles and (tiles, tiles)
    kept = out if value.dtype == torch.float32 else shift
    return Answer(out, *fused.backward(grad, match, value, kept, mass, order, chunk_size, neighbours, tiles=both))


def by_reference(problem: Problem) -> Answer:
    match, value = problem.match.clone().requires_grad_(), problem.value.clone().requires_grad_()
    out = reference.attend(match, value, problem.order, problem.chunk_size, problem.neighbours)
    return Answer(out.detach(), *torch.autograd.grad(out, (match, value), problem.grad))


def assert_exact(answer: Answer, problem: Problem) -> None:
    """Largest differences to float64, relative to the largest entries."""
    for ours, truth, allowed in zip(answer, by_reference(problem.to(torch.float64)), (1e-5, 1e-4, 1e-4)):
        assert (ours - truth).abs().max() < allowed * truth.abs().max()


@pytest.mark.parametrize(
    ('length', 'chunk_size'),
    [
        pytest.param(5, 5, id='one-chunk'),
        pytest.param(9, 5, id='two-chunks-second-filled'),
        pytest.param(10, 5, id='two-chunks'),
        pytest.param(11, 5, id='three-chunks-all-but-one-filled'),
        pytest.param(15, 5, id='three-chunks'),
        pytest.param(38, 9, id='five-chunks-last-filled'),
        pytest.param(50, 24, id='chunks-longer-than-a-tile'),
        pytest.param(7, 1, id='chunks-of-one'),
        pytest.param(2, 1, id='two-pixels'),
    ],
)
def test_equals_the_reference(length: int, chunk_size: int) -> None:
    problem = draw(length, chunk_size)
    assert_exact(by_fused(problem, SMALL), problem)


@pytest.mark.parametrize('neighbours', ['previous', 'none'])
@pytest.mark.parametrize(('length', 'chunk_size'), [(5, 5), (9, 5), (10, 5), (11, 5), (50, 24), (7, 2)])
def test_equals_the_reference_in_smaller_windows(length: int, chunk_size: int, neighbours: str) -> None:
    problem = draw(length, chunk_size)._replace(neighbours=neighbours)
    assert_exact(by_fused(problem, SMALL), problem)


@pytest.mark.parametrize(('rounds', 'images'), [(1, 1), (1, 3), (3, 2)])
def test_equals_the_reference_over_rounds_and_images(rounds: int, images: int) -> None:
    problem = draw(30, 8, rounds, images)
    assert_exact(by_fused(problem), problem)


@pytest.mark.parametrize('channels', [(1, 1), (16, 16), (40, 5), (3, 70)])
def test_equals_the_reference_for_any_channels(channels: tuple[int, int]) -> None:
    problem = draw(20, 6, channels=channels)
    assert_exact(by_fused(problem), problem)
    assert_exact(by_fused(problem, fused.Tiles(32, 16, block_c=32)), problem)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
@pytest.mark.parametrize(('block_c', 'channels'), [(16, 16), (16, 32), (16, 64), (32, 70)])
def test_values_in_two_parts_are_the_values(block_c: int, channels: int, dtype: torch.dtype) -> None:
    problem = draw(40, 9, rounds=3, channels=(16, channels)).to(dtype)
    tiles = (SMALL._replace(block_c=block_c, parts=n) for n in (1, 2))
    for whole, parts in zip(*(fused.forward(*problem[:4], True, tiles=cut) for cut in tiles)):
        torch.testing.assert_close(whole, parts)


@pytest.mark.parametrize('magnitude', [1e-6, 0.1, 1.0, 10.0])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_as_good_as_the_reference_s(dtype: torch.dtype, magnitude: float) -> None:
    problem = draw(50, 9, rounds=3)
    problem = problem._replace(match=problem.match * magnitude).to(dtype)
    answer = by_fused(problem)
    assert {x.dtype for x in answer} == {dtype}
    # Triton's interpreter cuts bfloat16 off where a GPU rounds.
    times = 4 if fused.INTERPRETED and dtype == torch.bfloat16 else 2
    expected, truth = by_reference(problem), by_reference(problem.to(torch.float64))
    for ours, theirs, exact in zip(answer, expected, truth):
        assert (ours - exact).norm() <= times * (theirs - exact).norm()
    without_gradients = fused.forward(problem.match, problem.value, problem.order, problem.chunk_size, False)[0]
    assert (without_gradients - truth.out).norm() <= times * (expected.out - truth.out).norm()


@pytest.mark.parametrize(
    ('dtype', 'magnitude'),
    [*itertools.product([torch.float32, torch.bfloat16, torch.float16], [0.0, 1e3]), (torch.float32, 1e6)],
)
def test_features_of_any_length_give_finite_numbers(dtype: torch.dtype, magnitude: float) -> None:
    problem = draw(30, 8)
    problem = problem._replace(match=problem.match * magnitude).to(dtype)
    answer, truth = by_fused(problem), by_reference(problem.to(torch.float64))
    assert all(x.isfinite().all() for x in answer)
    torch.testing.assert_close(answer.out.double(), truth.out, rtol=0.01, atol=0.01)


@pytest.mark.parametrize('broken', ['match', 'value'])
@pytest.mark.parametrize('number', [float('nan'), float('inf')])
def test_what_is_not_a_number_reaches_the_outputs_that_it_reaches_in_the_reference(broken: str, number: float) -> None:
    problem = draw(40, 5, images=2)
    getattr(problem, broken)[0, 13, 1] = number
    out = fused.forward(*problem[:4], True)[0]
    finite, finite_in_reference = out.isfinite(), by_reference(problem).out.isfinite()
    assert torch.equal(finite, finite_in_reference)
    assert 0 < finite[0].sum() < finite[0].numel()
    match, value, order, chunk_size, *_ = problem.to(torch.bfloat16)  # with sums in two halves
    without_gradients = fused.forward(match, value, order, chunk_size, False)[0]
    assert torch.equal(without_gradients.isfinite(), finite)


@pytest.mark.parametrize('length', [pytest.param(25, id='whole-chunks'), pytest.param(26, id='four-pixels-doubled')])
@pytest.mark.parametrize('broken', ['match', 'value', 'grad'])
def test_what_is_not_a_number_reaches_no_gradient_that_it_does_not_in_the_reference(broken: str, length: int) -> None:
    places = [0, 6, 13, 18, 23, 25]  # one in each image, and none in the last
    problem = draw(length, 5, rounds=1, images=len(places) + 1)
    for image, place in enumerate(places):
        pixel = problem.order[image, 0, place % length]
        getattr(problem, broken)[image, pixel, 1] = float('nan')
    answer, truth = by_fused(problem), by_reference(problem)
    for ours, theirs in zip(answer[1:], truth[1:]):
        assert not (theirs.isfinite() & ~ours.isfinite()).any()
    for image in range(len(places) + 1):
        assert all(theirs[image].isfinite().all() for theirs in truth[1:]) == (image == len(places))
    reached = answer.grad_match.isfinite() & truth.grad_match.isfinite()
    torch.testing.assert_close(answer.grad_match[reached], truth.grad_match[reached], rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(DEVICE == 'cuda', reason='counts what PyTorch allocates on the CPU')
def test_half_precision_is_trained_in_little_memory() -> None:
    """Besides what it takes: y and its difference to the values, both gradients, and the lower halves of their sums."""
    problem = draw(96, 24, channels=(64, 256)).to(torch.bfloat16)
    match, value = problem.match.requires_grad_(), problem.value.requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        out = torch.ops.nlsn_plugin.fused(match, value, problem.order, problem.chunk_size, True)[0]
        gc.collect()  # Triton's interpreter leaves what kernels were given in cycles
        out.backward(problem.grad)
    events = sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    allocated = [event.nbytes() for event in events if event.name() == '[memory]']
    peak = max(itertools.accumulate(allocated))
    rows = 2 * value.nbytes + 2 * (match.nbytes + value.nbytes)
    assert rows <= peak < 1.15 * rows


def test_tensors_need_not_be_contiguous() -> None:
    problem = draw(20, 6)
    match, value, order, grad = (
        x.mT.contiguous().mT for x in (problem.match, problem.value, problem.order, problem.grad)
    )
    for ours, theirs in zip(by_fused(Problem(match, value, order, 6, grad)), by_fused(problem)):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_an_empty_batch_stays_empty() -> None:
    problem = draw(20, 6, images=0)
    out, mass, _ = fused.forward(problem.match, problem.value, problem.order, 6, False)
    assert out.shape == (0, 20, 36)
    assert mass.shape == (0, 20)
    assert [x.shape for x in by_fused(problem)[1:]] == [(0, 20, 20), (0, 20, 36)]


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(('channels', 'rounds', 'half'), [(20, 3, 1), (5, 1, 7), (70, 2, 64)])
def test_hash_codes_equal_those_of_lsh(channels: int, rounds: int, half: int, dtype: torch.dtype) -> None:
    match = draw(90, 8, images=2, channels=(channels, 1)).match.to(dtype)
    match[0, 3] = 0
    match[1, 5, 2] = float('nan')
    rotations = torch.randn(channels, rounds, half, generator=torch.Generator().manual_seed(1))
    assert torch.equal(fused.hash_codes(match, rotations), lsh.hash_codes(match, rotations))


@pytest.mark.parametrize(
    ('dtype', 'channels', 'reason'),
    [
        (torch.float32, (128, 512), None),
        (torch.bfloat16, (512, 512), None),
        (torch.float32, (512, 512), 'bytes of shared memory for 512 and 512 channels'),
        (torch.float64, (16, 16), 'not torch.float64'),
        (torch.float32, (16, 513), 'at most 512 channels, not 513'),
    ],
)
def test_it_says_what_it_cannot_do(dtype: torch.dtype, channels: tuple[int, int], reason: str | None) -> None:
    match, value = (torch.empty(1, 4, width, dtype=dtype, device=DEVICE) for width in channels)
    said = fused.unsupported(match, value)
    assert said == reason if reason is None else reason in said


def test_without_a_gpu_it_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, 'INTERPRETED', False)
    said = fused.unsupported(torch.empty(1, 4, 16), torch.empty(1, 4, 16))
    assert said == 'fused needs a CUDA device (or TRITON_INTERPRET=1)'


def test_an_old_gpu_is_not_asked_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, 'INTERPRETED', False)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (7, 5))
    monkeypatch.setattr(fused, 'failure', lambda device: pytest.fail('launched'))
    assert fused.cannot_run(torch.device('cuda')) == 'fused needs a GPU of compute capability 8.0 or newer'


def test_what_goes_wrong_when_a_kernel_is_launched_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(match: Tensor, rotations: Tensor) -> Tensor:
        raise RuntimeError('Failed to find C compiler.\nPlease specify it')

    monkeypatch.setattr(fused, 'INTERPRETED', False)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (8, 0))
    monkeypatch.setattr(fused, 'hash_codes', launch)
    launching = fused.failure.__wrapped__  # rather than its cache, for what is found here is not so
    monkeypatch.setattr(fused, 'failure', lambda device: launching(torch.device(DEVICE)))
    assert fused.cannot_run(torch.device('cuda')) == (
        'Triton cannot run kernels here (RuntimeError: Failed to find C compiler.)'
    )


@pytest.mark.parametrize('state', [FakeTensorMode(), torch.device('meta')], ids=['fake', 'meta'])
def test_whether_kernels_run_does_not_depend_on_who_asks_first(state: contextlib.AbstractContextManager) -> None:
    with state:
        assert fused.failure.__wrapped__(torch.device(DEVICE)) is None


def test_kernels_are_compiled_once_for_images_of_all_sizes() -> None:
    code = """
import os
os.environ.pop('TRITON_INTERPRET', None)
from nlsn_plugin.ops import kernels
for name in ('forward', 'query', 'key', 'hash'):
    parameters = getattr(kernels, f'{name}_kernel').params
    anywhere = [p.name for p in parameters if p.do_not_specialize_on_alignment]  # where a round's numbers begin
    print(name, *[p.name for p in parameters if p.do_not_specialize], *anywhere)
"""
    assert python(code).stdout.splitlines() == [
        'forward L k scale order',
        'query L k total_bound scale order mean',
        'key L k total_bound scale order mean',
        'hash L rounds half pitch',
    ]


@pytest.mark.parametrize('chunk_size', [1, 4, 144, 10**8, fused.MAX_PIXELS])
@pytest.mark.parametrize('checksum', [0.0, float('nan')])
def test_places_of_the_largest_images_are_counted(chunk_size: int, checksum: float) -> None:
    length = fused.MAX_PIXELS
    programs = fused.most_tiles(length, chunk_size, SMALL)
    at = torch.tensor([0, 1, programs // 2, programs - 1], device=DEVICE)
    found = torch.empty(len(at), 2, dtype=torch.int64, device=DEVICE)
    tile_kernel[(len(at),)](found, at, torch.tensor(checksum, device=DEVICE), length, chunk_size, SMALL.block_m)
    first, end = found.unbind(dim=1)
    exist = first < end
    assert exist[0]
    assert (first[exist] >= 0).all()
    assert (end[exist] <= length).all()
    slots = -(-length // chunk_size) * chunk_size + 2 * chunk_size + fused.SPARE.value
    assert slots < 2**31


@pytest.mark.skipif(DEVICE == 'cpu', reason='needs a GPU')
def test_without_a_c_compiler_auto_takes_another_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('CC', str(tmp_path / 'no compiler'))
    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path / 'cache'))
    code = """
import torch
from nlsn_plugin import NonLocalSparseAttention
layer = NonLocalSparseAttention(16, chunk_size=16, backend='auto').cuda().eval()
x = torch.randn(1, 16, 20, 20, device='cuda')
auto = layer(x)
layer.backend = 'reference'
print((auto - layer(x)).abs().max().item() < 1e-4)
"""
    result = python(code)
    assert result.stdout == 'True\n', result.stderr
    assert "does without 'fused': Triton cannot run kernels here" in result.stderr


def layer_and_images(backend: str) -> tuple[NonLocalSparseAttention, list[Tensor]]:
    torch.manual_seed(0)
    layer = NonLocalSparseAttention(16, chunk_size=8, n_hashes=2, backend=backend).to(DEVICE)
    return layer, [torch.randn(1, 16, *size, generator=torch.Generator()).to(DEVICE) for size in [(5, 6), (7, 4)]]


def outputs_and_gradients(form: Any, layer: NonLocalSparseAttention, images: list[Tensor]) -> list[Tensor]:
    """Of a layer, or of what was compiled from it, that draws its rotations."""
    found = []
    for image in images:
        torch.manual_seed(1)
        layer.zero_grad()
        out = form(image)
        out.float().square().sum().backward()
        found += [out.detach(), *(parameter.grad.clone() for parameter in layer.parameters())]
    return found


def test_compiled_it_is_one_graph_that_gives_its_numbers() -> None:
    layer, images = layer_and_images('fused')
    torch.compiler.reset()
    graph = torch.compile(layer, fullgraph=True, backend='inductor' if DEVICE == 'cuda' else 'aot_eager')
    found, expected = (outputs_and_gradients(form, layer, images) for form in (graph, layer))
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_under_autocast_it_is_as_good_as_the_reference() -> None:
    answers = []
    for backend, dtype in (('fused', torch.bfloat16), ('reference', torch.bfloat16), ('reference', torch.float32)):
        layer, images = layer_and_images(backend)
        with torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == torch.bfloat16):
            answers.append(outputs_and_gradients(layer, layer, images))
    for ours, theirs, truth in zip(*answers):
        assert (ours - truth).norm() <= 2 * (theirs - truth).norm() + 0.03 * truth.norm()
