from __future__ import annotations

import logging

import pytest
import torch
from conftest import needs_compiler
from test_reference import draw
from torch.utils.flop_counter import FlopCounterMode

from nlsn_plugin import NLSN, NonLocalSparseAttention, ops
from nlsn_plugin.errors import ArgumentError, BackendError


def test_auto_is_streamed_on_a_cpu_and_reference_where_that_is_faster() -> None:
    large, small = (torch.empty(1, length, 16) for length in (10_000, 160))
    assert ops.fastest(large, large, 4, 144) == 'streamed'
    assert ops.fastest(small, small, 1, 144) == 'reference'


def taken(monkeypatch: pytest.MonkeyPatch, backend: str, length: int = 1000) -> str:
    """Which form `attend` takes."""
    asked = []
    spies = {name: lambda *arguments, name=name: asked.append(name) for name in ops.FORMS}
    monkeypatch.setattr(ops, 'FORMS', spies)
    ops.attend(*draw(1, length, 2, 144, channels=(16, 64)), 144, backend)
    return asked.pop()


@pytest.mark.parametrize('backend', ['reference', 'streamed', 'fused'])
def test_a_backend_is_taken_by_name(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    monkeypatch.setattr(ops, 'cannot_fuse', lambda *tensors: None)
    assert taken(monkeypatch, backend) == backend


@pytest.mark.parametrize('backend', ['reference', 'streamed'])
def test_the_environment_decides_what_auto_is(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    monkeypatch.setenv('NLSN_BACKEND', backend)
    assert taken(monkeypatch, 'auto') == backend


def test_the_environment_does_not_overrule_a_backend_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('NLSN_BACKEND', 'reference')
    assert taken(monkeypatch, 'streamed') == 'streamed'


def test_an_unknown_backend_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('NLSN_BACKEND', 'stremed')
    with pytest.raises(ArgumentError, match=r"NLSN_BACKEND='stremed' is not allowed.*'streamed'"):
        ops.attend(*draw(1, 30, 1, 8), 8)


def test_unknown_neighbours_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"neighbours='next' is not allowed: choose one of 'both', 'previous'"):
        ops.attend(*draw(1, 30, 1, 8), 8, neighbours='next')


@pytest.mark.parametrize('backend', ['reference', 'streamed'])
@pytest.mark.parametrize('length', [30, 5])
def test_autocast_changes_neither_numbers_nor_types(length: int, backend: str) -> None:
    match, value, rotations = draw(1, length, 2, 8)
    inputs = match.float(), value.float(), rotations
    expected = ops.attend(*inputs, 8, backend)
    with torch.autocast('cpu', torch.bfloat16):
        assert ops.attend(*inputs, 8, backend).equal(expected)


@pytest.mark.parametrize(
    ('lengths', 'rounds', 'chunk_size', 'message'),
    [
        (
            (30, 31),
            2,
            8,
            r'match has the shape \[1, 30, 4\], value \[1, 31, 5\]: \[N, L, c\] and \[N, L, C\] are expected',
        ),
        ((30, 30), 2, 0, 'chunk_size=0 is not allowed: a whole number of at least 1 is expected'),
        ((30, 30), 2, -1, 'chunk_size=-1 is not allowed'),
        ((30, 30), 2, 8.0, 'chunk_size=8.0 is not allowed: a whole number of at least 1 is expected'),
        ((30, 30), 2, None, 'chunk_size=None is not allowed: a whole number'),
        ((30, 30), 0, 8, 'rounds=0 is not allowed'),
    ],
)
@pytest.mark.parametrize('backend', ['reference', 'streamed'])
def test_what_makes_no_sense_is_refused(
    lengths: tuple[int, int], rounds: int, chunk_size: object, message: str, backend: str
) -> None:
    match, value = torch.randn(1, lengths[0], 4), torch.randn(1, lengths[1], 5)
    with pytest.raises(ArgumentError, match=message):
        ops.attend(match, value, torch.randn(4, rounds, 1), chunk_size, backend)


@pytest.mark.parametrize(
    ('shape', 'chunk_size', 'message'),
    [
        ((40,), 8, r'order has the shape \[40\], match \[2, 40, 5\]: \[N, r, L\] and \[N, L, c\] are expected'),
        ((2, 40), 8, r'order has the shape \[2, 40\]'),
        ((1, 2, 40), 8, r'order has the shape \[1, 2, 40\]'),
        ((3, 2, 40), 8, r'order has the shape \[3, 2, 40\]'),
        ((2, 2, 32), 8, r'order has the shape \[2, 2, 32\]'),
        ((2, 0, 40), 8, 'rounds=0 is not allowed: a whole number of at least 1'),
        ((2, 2, 40), 41, 'chunk_size=41 is more than the 40 pixels: order=None is expected'),
    ],
)
@pytest.mark.parametrize('backend', ['reference', 'streamed', 'fused'])
def test_an_order_that_does_not_fit_is_refused(
    shape: tuple[int, ...], chunk_size: int, message: str, backend: str
) -> None:
    order = torch.zeros(shape, dtype=torch.int64)
    with pytest.raises(ArgumentError, match=message):
        ops.attend_in_order(torch.randn(2, 40, 5), torch.randn(2, 40, 7), order, chunk_size, backend)


@pytest.mark.parametrize('length', [30, 5])
@pytest.mark.parametrize('dtype', [torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_numbers_that_are_not_floating_are_refused(dtype: torch.dtype, length: int) -> None:
    match, value, rotations = draw(1, length, 2, 8)
    for inputs in ((match.to(dtype), value), (match, value.to(dtype))):
        with pytest.raises(ArgumentError, match=rf'{dtype}.*: floating types are expected'):
            ops.attend(*inputs, rotations, 8)


@pytest.mark.parametrize(
    ('shape', 'message'),
    [
        ((4, 2), r'rotations has the shape \[4, 2\], match \[1, 30, 4\]: \[c, r, m/2\] and \[N, L, c\] are expected'),
        ((5, 2, 2), r'rotations has the shape \[5, 2, 2\], match \[1, 30, 4\]'),
        ((4, 2, 0), r'rotations has the shape .*: 2 columns are expected, half as many as buckets \(30 pixels'),
        ((4, 2, 3), r'rotations has the shape \[4, 2, 3\]: 2 columns are expected'),
    ],
)
def test_rotations_that_cannot_hash_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        ops.attend(torch.randn(1, 30, 4), torch.randn(1, 30, 5), torch.randn(shape), 8)


def test_a_second_derivative_that_there_is_not_says_which_form_has_it() -> None:
    match, value, rotations = draw(1, 30, 2, 8)
    for backend in ('reference', 'streamed'):
        leaf = match.detach().requires_grad_()
        (grad,) = torch.autograd.grad(ops.attend(leaf, value, rotations, 8, backend).sum(), leaf, create_graph=True)
        if backend == 'reference':
            grad.sum().backward()
            assert leaf.grad is not None
        else:
            with pytest.raises(BackendError, match="backend='streamed' can be differentiated once; 'reference' as"):
                grad.sum().backward()


@pytest.mark.parametrize('length', [30, 5])
def test_a_backend_that_cannot_run_says_why(length: int) -> None:
    with pytest.raises(BackendError, match=r"backend='fused' cannot run here: .*float64"):
        ops.attend(*draw(1, length, 1, 8), 8, 'fused')


def test_pixels_that_fill_a_chunk_need_an_order() -> None:
    match, value, _ = draw(1, 8, 1, 8)
    with pytest.raises(ArgumentError, match='order=None is for fewer than chunk_size=8 pixels: there are 8'):
        ops.attend_in_order(match, value, None, 8)
    assert ops.attend_in_order(match, value, None, 9).shape == value.shape


@pytest.mark.parametrize('backend', ['reference', 'streamed'])
def test_of_two_dtypes_the_wider_is_computed_in(backend: str) -> None:
    match, value, rotations = draw(1, 30, 2, 8)
    match, value = match.double().requires_grad_(), value.float().requires_grad_()
    out = ops.attend(match, value, rotations, 8, backend)
    out.sum().backward()
    assert [tensor.dtype for tensor in (out, match.grad, value.grad)] == [torch.float32, torch.float64, torch.float32]
    assert out.equal(ops.attend(match, value.double(), rotations, 8, backend).float())


def test_auto_says_once_why_it_falls_back_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class OnGPU:
        device = torch.device('cuda')
        shape = (1, 10_000, 64)

    monkeypatch.setattr(ops, 'cannot_fuse', lambda *tensors: 'no Triton here')
    with caplog.at_level(logging.WARNING, 'nlsn_plugin'):
        assert [ops.fastest(OnGPU(), OnGPU(), 4, 144) for _ in range(3)] == ['streamed'] * 3
    [record] = caplog.records
    assert record.message.startswith("backend='auto' does without 'fused': no Triton here (")


@pytest.mark.parametrize(
    ('images', 'type_', 'reason', 'kernel'),
    [
        (1, torch.float32, None, True),
        (1, torch.bfloat16, None, True),
        (1, torch.float64, None, False),
        (1, torch.float32, 'no C compiler', False),
        (2**16, torch.float32, None, False),
    ],
)
def test_on_a_gpu_the_kernel_hashes_if_it_can_run(
    images: int, type_: torch.dtype, reason: str | None, kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused = pytest.importorskip('nlsn_plugin.ops.fused', reason='needs Triton')

    class OnGPU:
        device = torch.device('cuda')
        dtype = type_
        shape = (images, 100, 16)

    monkeypatch.setattr(fused, 'cannot_run', lambda device: reason)
    assert ops.library.hash_by(OnGPU()) is (fused.hash_codes if kernel else ops.hash_codes)


def test_no_cuda_graph_is_recorded_of_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: True)
    with pytest.raises(BackendError, match='does not draw again when it is replayed: call eval'):
        ops.library.onto(torch.device('cuda'), torch.zeros(2))


@pytest.mark.parametrize('requires_grad', [False, True])
def test_the_operators_keep_the_rules_of_pytorch(requires_grad: bool) -> None:
    match, value, rotations = draw(2, 30, 2, 8)
    order = ops.library.pixel_order(match, rotations)
    torch.library.opcheck(ops.library.pixel_order, (match, rotations))
    arguments = (match.requires_grad_(requires_grad), value.requires_grad_(requires_grad), order, 8, requires_grad)
    torch.library.opcheck(torch.ops.nlsn_plugin.streamed.default, arguments)
    torch.library.opcheck(torch.ops.nlsn_plugin.streamed.default, (*arguments, 'previous'))


@pytest.mark.parametrize(('neighbours', 'chunks'), [('both', 3), ('previous', 2), ('none', 1)])
def test_multiply_adds_are_counted(neighbours: str, chunks: int) -> None:
    match, value, rotations = draw(2, 30, 3, 8, channels=(5, 7))
    match.requires_grad_()
    value.requires_grad_()
    with FlopCounterMode(display=False) as counter:
        ops.attend(match, value, rotations, 8, 'streamed', neighbours).sum().backward()
    scores = 2 * 3 * 4 * 8 * chunks * 8  # images, rounds, chunks, queries, keys
    hashes = 2 * 30 * 5 * 3 * 2  # images, pixels, channels, rounds, half the buckets
    assert counter.get_total_flops() == 2 * (hashes + scores * (5 + 7) + scores * (3 * 5 + 2 * 7))


class TestRandomOrders:
    def test_each_round_has_every_pixel_once(self) -> None:
        orders = ops.draw_orders(31, 3, None)
        assert orders.sort(dim=-1).values.equal(torch.arange(31).expand(3, -1))
        assert not orders[0].equal(orders[1])

    def test_a_seed_decides_alone_and_round_by_round(self) -> None:
        before = torch.get_rng_state()
        orders = ops.draw_orders(31, 3, 7)
        assert torch.get_rng_state().equal(before)
        assert ops.draw_orders(31, 5, 7)[:3].equal(orders)
        assert not ops.draw_orders(31, 3, 8).equal(orders)

    def test_without_a_seed_they_come_from_the_global_generator(self) -> None:
        torch.manual_seed(3)
        orders = ops.draw_orders(31, 2, None)
        torch.manual_seed(3)
        assert orders.equal(torch.stack([torch.randperm(31), torch.randperm(31)]))


@needs_compiler
class TestCompiled:
    def test_a_network_is_one_graph_and_gives_its_numbers(self) -> None:
        torch.manual_seed(0)
        small = {'num_feat': 16, 'num_block': 2, 'attention_at': [0, 2], 'chunk_size': 16, 'n_hashes': 2}
        network = NLSN(**small, res_scale=1.0, backend='streamed').eval()
        compiled = torch.compile(network, fullgraph=True)
        for size in [(20, 21), (24, 17)]:  # the second size makes the graph a dynamic one
            x = torch.rand(1, 3, *size)
            torch.testing.assert_close(compiled(x), network(x))

    def test_training_draws_the_rotations_that_the_layer_draws(self) -> None:
        torch.manual_seed(0)
        layer = NonLocalSparseAttention(16, chunk_size=16, n_hashes=2, backend='streamed').train()
        compiled = torch.compile(layer, fullgraph=True)
        x = torch.randn(2, 16, 12, 13)
        results = []
        for form in (layer, compiled):
            torch.manual_seed(1)
            layer.zero_grad()
            form(form(x)).square().sum().backward()
            results.append([parameter.grad.clone() for parameter in layer.parameters()])
        for eager, graph in zip(*results):
            torch.testing.assert_close(graph, eager, rtol=1e-3, atol=1e-3)
