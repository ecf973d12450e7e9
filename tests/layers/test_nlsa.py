from __future__ import annotations

import copy
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from conftest import DEVICE, GOLDEN_LAYERS, golden, relative_error

from nlsn_plugin import NonLocalSparseAttention, ops
from nlsn_plugin.errors import ArgumentError


@pytest.mark.parametrize('backend', ['reference', 'streamed', 'fused'])
@pytest.mark.parametrize('name', GOLDEN_LAYERS)
def test_equals_the_released_layer_in_outputs_and_gradients(
    name: str, backend: str, request: pytest.FixtureRequest
) -> None:
    if backend == 'fused':
        request.getfixturevalue('large_tiles')
    config, arrays = golden(name)
    seed, n_buckets = config.pop('seed'), config.pop('n_buckets')
    layer = NonLocalSparseAttention(**config, backend=backend)
    weights = {key.removeprefix('param/'): torch.tensor(a) for key, a in arrays.items() if key.startswith('param/')}
    layer.load_state_dict(weights, strict=True)
    layer.to(DEVICE)
    x = torch.tensor(arrays['x'], device=DEVICE, requires_grad=True)
    assert ops.count_buckets(x.shape[2] * x.shape[3], layer.chunk_size) == n_buckets

    y = layer(x, rotations=torch.tensor(arrays['rotations'], device=DEVICE))
    y.backward(torch.tensor(arrays['grad_y'], device=DEVICE))

    assert relative_error(y.detach().cpu().numpy(), arrays['y']) < 1e-5
    gradients = {'x': x.grad, **{name: parameter.grad for name, parameter in layer.named_parameters()}}
    for key, gradient in gradients.items():
        assert relative_error(gradient.cpu().numpy(), arrays[f'grad/{key}']) < 1e-4, key

    torch.manual_seed(seed + 1)  # how the vectors' rotations were drawn
    torch.testing.assert_close(layer.train()(x), y)


@pytest.mark.skipif(DEVICE == 'cpu', reason='needs a GPU')
@pytest.mark.parametrize('partition', ['lsh', 'random'])
def test_training_on_a_gpu_waits_for_nothing(partition: str) -> None:
    layer = NonLocalSparseAttention(16, chunk_size=16, partition=partition).to(DEVICE)
    x = torch.randn(2, 16, 20, 20, device=DEVICE)
    layer(x).sum().backward()  # compiles
    torch.cuda.set_sync_debug_mode('error')
    try:
        layer(x).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode('default')


@pytest.mark.parametrize('size', [(1, 1), (1, 17), (17, 1), (3, 5), (8, 8), (9, 13), (12, 12), (5, 40)])
@pytest.mark.parametrize('training', [True, False])
def test_any_size_goes_in_and_comes_out(size: tuple[int, int], training: bool) -> None:
    layer = NonLocalSparseAttention(8, n_hashes=2, chunk_size=16).train(training)
    x = torch.randn(2, 8, *size, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == x.shape
    assert y.isfinite().all()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_state_dict_is_the_released_one_and_has_no_rotations() -> None:
    state = NonLocalSparseAttention(16, reduction=4).state_dict()
    assert {name: list(tensor.shape) for name, tensor in state.items()} == {
        'conv_match.0.weight': [4, 16, 3, 3],
        'conv_match.0.bias': [4],
        'conv_assembly.0.weight': [16, 16, 1, 1],
        'conv_assembly.0.bias': [16],
    }


def layer_and_image(**arguments: object) -> tuple[NonLocalSparseAttention, torch.Tensor]:
    torch.manual_seed(0)
    return NonLocalSparseAttention(8, chunk_size=16, **arguments), torch.randn(1, 8, 10, 12)


def test_res_scale_weighs_the_attention_beside_the_identity() -> None:
    layer, x = layer_and_image(res_scale=1.0)
    whole = layer.eval()(x) - x
    layer.res_scale = 0.25
    torch.testing.assert_close(layer(x) - x, 0.25 * whole)
    layer.res_scale = 0.0
    assert layer(x).equal(x)


class TestInEvalMode:
    def test_the_output_depends_on_the_image_alone_and_leaves_the_global_generator(self) -> None:
        layer, x = layer_and_image()
        layer.eval()
        first = layer(x)
        torch.manual_seed(123)
        before = torch.get_rng_state()
        layer(torch.randn(1, 8, 6, 9, generator=torch.Generator()))
        assert layer(x).equal(first)
        assert torch.get_rng_state().equal(before)

    def test_round_h_depends_on_neither_the_number_of_rounds_nor_the_size(self) -> None:
        layer, _ = layer_and_image(n_hashes=2)
        two = layer.rotation_bank.clone()
        layer.n_hashes = 5
        assert layer.rotation_bank.shape == (2, 5, 64)
        assert layer.rotation_bank[:, :2].equal(two)
        generator = torch.Generator().manual_seed(0)
        assert two[:, 0].equal(torch.randn(2, 64, generator=generator))

    def test_the_bank_is_what_hashes(self) -> None:
        layer, x = layer_and_image(n_hashes=3, eval_seed=7)
        layer.eval()
        half = ops.count_buckets(120, 16) // 2
        assert layer(x).equal(layer(x, rotations=layer.rotation_bank[..., :half]))

    def test_seeds_differ(self) -> None:
        layer, x = layer_and_image(eval_seed=0)
        other = NonLocalSparseAttention(8, chunk_size=16, eval_seed=1)
        other.load_state_dict(layer.state_dict())
        assert not layer.eval()(x).equal(other.eval()(x))

    @pytest.mark.parametrize(
        'change',
        [
            pytest.param(lambda layer: layer.half(), id='half'),
            pytest.param(lambda layer: layer.bfloat16(), id='bfloat16'),
            pytest.param(lambda layer: layer.double(), id='double'),
            pytest.param(lambda layer: layer.to('meta').to_empty(device='cpu'), id='to_empty'),
            pytest.param(copy.deepcopy, id='deepcopy'),
        ],
    )
    def test_the_bank_stays_the_same_through_any_change_of_dtype_or_device(self, change) -> None:
        layer, _ = layer_and_image()
        bank = layer.rotation_bank.clone()
        assert change(layer).rotation_bank.equal(bank)

    def test_the_bank_stays_the_same_whatever_pytorch_takes_numbers_for(self) -> None:
        layer, _ = layer_and_image()
        torch.set_default_dtype(torch.float64)
        try:
            other = copy.deepcopy(layer).to('cpu')
            drawn = ops.draw_rotations(2, 2, 4)
        finally:
            torch.set_default_dtype(torch.float32)
        assert other.rotation_bank.equal(layer.rotation_bank)
        assert drawn.dtype == torch.float32

    def test_copies_for_several_gpus_of_one_process_find_the_bank(self) -> None:
        layer, x = layer_and_image()
        replica = layer.eval()._replicate_for_data_parallel()  # as nn.DataParallel makes them: without parameters
        for name, child in layer.named_children():
            setattr(replica, name, child._replicate_for_data_parallel())
            convolution = child[0]._replicate_for_data_parallel()
            for parameter, tensor in child[0].named_parameters():
                setattr(convolution, parameter, tensor.detach())
            getattr(replica, name)._modules['0'] = convolution
        assert not list(replica.parameters())
        assert replica(x).equal(layer(x))

    def test_a_seed_set_later_takes_effect_at_once(self) -> None:
        layer, x = layer_and_image(eval_seed=0)
        layer.eval()
        zero = layer(x)
        layer.eval_seed = 1
        assert not layer(x).equal(zero)
        layer.eval_seed = None
        assert layer.rotation_bank is None
        layer.eval_seed = 0
        assert layer(x).equal(zero)

    def test_weights_assigned_over_those_of_the_meta_device_bring_the_bank_along(self) -> None:
        layer, x = layer_and_image()
        with torch.device('meta'):
            other = NonLocalSparseAttention(8, chunk_size=16)
        other.load_state_dict(layer.state_dict(), assign=True)
        assert other.eval()(x).equal(layer.eval()(x))

    def test_weights_that_are_there_while_they_are_used_alone_leave_the_bank(self) -> None:
        layer, x = layer_and_image()
        expected = layer.eval()(x)
        convolutions = [module for module in layer.modules() if isinstance(module, torch.nn.Conv2d)]
        for module in convolutions:
            real = {name: parameter.data for name, parameter in module.named_parameters()}

            def swap(module: torch.nn.Module, *_: object, real: dict[str, torch.Tensor], device: str) -> None:
                for name, data in real.items():
                    setattr(module, name, torch.nn.Parameter(data.to(device)))

            module.register_forward_pre_hook(partial(swap, real=real, device='cpu'))
            module.register_forward_hook(partial(swap, real=real, device='meta'))
            swap(module, real=real, device='meta')
        assert layer(x).equal(expected)

    def test_a_bank_that_inference_made_may_be_written_to(self) -> None:
        layer, x = layer_and_image()
        with torch.inference_mode():
            layer.n_hashes = 3
            layer.eval()(x)
        assert not layer.rotation_bank.is_inference()

    def test_a_pickled_layer_is_the_same(self) -> None:
        layer, x = layer_and_image()
        assert pickle.loads(pickle.dumps(layer)).eval()(x).equal(layer.eval()(x))

    def test_without_a_seed_rotations_come_from_the_global_generator(self) -> None:
        layer, x = layer_and_image(eval_seed=None)
        layer.eval()
        torch.manual_seed(5)
        drawn = layer(x)
        torch.manual_seed(5)
        rotations = torch.randn(1, 2, 4, ops.count_buckets(120, 16) // 2)[0]
        assert drawn.equal(layer(x, rotations=rotations))


def test_in_training_mode_rotations_are_drawn_on_the_cpu_from_the_global_generator() -> None:
    layer, x = layer_and_image()
    layer.train()
    torch.manual_seed(5)
    drawn = layer(x)
    after = torch.get_rng_state()
    torch.manual_seed(5)
    rotations = torch.randn(1, 2, 4, ops.count_buckets(120, 16) // 2)[0]
    assert torch.get_rng_state().equal(after)
    assert drawn.equal(layer(x, rotations=rotations))


@pytest.mark.parametrize('neighbours', ['previous', 'none'])
def test_chunks_attend_to_the_neighbours_asked_for(neighbours: str) -> None:
    layer, x = layer_and_image(neighbours=neighbours)
    layer.eval()
    match, value = (conv(x).flatten(2).mT for conv in (layer.conv_match, layer.conv_assembly))
    attended = ops.attend(match, value, layer.rotation_bank[..., :4], 16, 'reference', neighbours)
    torch.testing.assert_close(layer(x), x + attended.mT.view(x.shape))


class TestRandomPartition:
    @pytest.mark.parametrize('backend', ['reference', 'streamed'])
    def test_is_the_attention_of_chunks_in_a_random_order_shared_by_the_batch(self, backend: str) -> None:
        layer, x = layer_and_image(partition='random', n_hashes=2, backend=backend)
        x = torch.cat([x, x.flip(2)])
        torch.manual_seed(5)
        drawn = layer(x)
        after = torch.get_rng_state()
        torch.manual_seed(5)
        order = torch.stack([torch.randperm(120) for _ in range(2)])
        assert torch.get_rng_state().equal(after)
        match, value = (conv(x).flatten(2).mT for conv in (layer.conv_match, layer.conv_assembly))
        attended = ops.attend_in_order(match, value, order.expand(2, -1, -1), 16, 'reference')
        torch.testing.assert_close(drawn, x + attended.mT.view(x.shape))
        drawn.sum().backward()
        assert all(parameter.grad is not None for parameter in layer.parameters())

    def test_in_eval_mode_depends_on_seed_and_size_alone(self) -> None:
        layer, x = layer_and_image(partition='random', eval_seed=3)
        layer.eval()
        before = torch.get_rng_state()
        first = layer(x)
        layer(x[:, :, :5])
        assert layer(x).equal(first)
        assert layer(torch.cat([x, x]))[1:].allclose(first, atol=1e-6)
        assert torch.get_rng_state().equal(before)
        layer.eval_seed = 4
        assert not layer(x).equal(first)
        layer.eval_seed = None
        layer(x)
        assert not torch.get_rng_state().equal(before)

    def test_takes_no_rotations(self) -> None:
        layer, x = layer_and_image(partition='random')
        with pytest.raises(ArgumentError, match="rotations are not allowed with partition='random'"):
            layer(x, rotations=torch.randn(2, 4, 4))

    def test_an_image_smaller_than_a_chunk_draws_nothing(self) -> None:
        layer, x = layer_and_image(partition='random')
        before = torch.get_rng_state()
        layer.partition = 'lsh'
        expected = layer(x[:, :, :1])
        layer.partition = 'random'
        assert layer(x[:, :, :1]).equal(expected)
        assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('eval_seed', [0, None])
def test_an_image_smaller_than_a_chunk_draws_nothing_and_takes_empty_rotations(
    training: bool, eval_seed: int | None
) -> None:
    layer = NonLocalSparseAttention(8, chunk_size=144, eval_seed=eval_seed).train(training)
    x = torch.randn(1, 8, 3, 5)
    before = torch.get_rng_state()
    y = layer(x)
    assert torch.get_rng_state().equal(before)
    assert y.equal(layer(x, rotations=torch.empty(2, 4, 0)))
    layer.n_hashes = 1
    assert y.equal(layer(x))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_a_module_of_half_precision_is_near_that_of_float32(dtype: torch.dtype) -> None:
    layer, x = layer_and_image()
    exact = layer.eval()(x)
    rounded = layer.to(dtype)(x.to(dtype))
    assert rounded.dtype == dtype
    assert (rounded.float() - exact).abs().mean() < 0.02


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'channels': 0}, 'channels=0 is not allowed: a whole number of at least 1'),
        ({'channels': 10}, 'reduction=4 does not divide channels=10: the nearest that does is 5'),
        ({'reduction': 0}, 'reduction=0 is not allowed'),
        ({'n_hashes': 0}, 'n_hashes=0 is not allowed: a whole number of at least 1'),
        ({'n_hashes': 2.0}, 'n_hashes=2.0 is not allowed: a whole number'),
        ({'n_hashes': True}, 'n_hashes=True is not allowed: a whole number'),
        ({'res_scale': '1e-1'}, r"res_scale='1e-1' is not allowed: a number is expected \(in YAML write 0.1"),
        ({'eval_seed': '0'}, "eval_seed='0' is not allowed: a whole number of at least 0"),
        ({'eval_seed': 1.5}, 'eval_seed=1.5 is not allowed'),
        ({'eval_seed': 2**64}, f'eval_seed={2**64} is not allowed: a whole number of at most {2**63 - 1} is expected'),
        ({'chunk_size': 0}, 'chunk_size=0 is not allowed: a whole number of at least 1'),
        ({'backend': 'fast'}, "backend='fast' is not allowed: choose one of 'auto', 'reference'"),
        ({'backend': np.array(['auto', 'x'])}, r"backend=array.* is not allowed: choose one of 'auto', 'reference'"),
        ({'partition': 'none'}, "partition='none' is not allowed: choose one of 'lsh', 'random'"),
        ({'neighbours': 2}, "neighbours=2 is not allowed: choose one of 'both', 'previous', 'none'"),
    ],
)
def test_bad_arguments_are_named_with_their_value_and_what_is_allowed(
    arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        NonLocalSparseAttention(**{'channels': 8, **arguments})


def test_rounds_set_later_are_checked_too() -> None:
    layer = NonLocalSparseAttention(8)
    with pytest.raises(ArgumentError, match='n_hashes=-1 is not allowed'):
        layer.n_hashes = -1
    assert layer.n_hashes == 4


@pytest.mark.parametrize('chunk_size', [0, 8.0, None])
def test_a_chunk_size_set_later_is_checked_too(chunk_size: object) -> None:
    layer = NonLocalSparseAttention(8)
    with pytest.raises(ArgumentError, match=f'chunk_size={chunk_size} is not allowed: a whole number of at least 1'):
        layer.chunk_size = chunk_size
    assert layer.chunk_size == 144


@pytest.mark.parametrize('shape', [(2, 4, 5), (2, 3, 4), (8, 4, 4), (2, 4, 4, 1), (1, 2, 4, 4)])
def test_rotations_of_a_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    layer, x = layer_and_image()
    with pytest.raises(ValueError, match=r'rotations has the shape .*: \[2, 4, 4\] is expected'):
        layer(x, rotations=torch.randn(shape))


def test_numpy_integers_are_whole_numbers() -> None:
    assert NonLocalSparseAttention(np.int64(8), n_hashes=np.int32(2)).n_hashes == 2


class TestWindow:
    @pytest.mark.parametrize('partition', ['lsh', 'random'])
    @pytest.mark.parametrize('window', [5, 7, 20])
    def test_windows_are_images_of_their_own(self, partition: str, window: int) -> None:
        """Of the features, that is: the projections see across."""
        torch.manual_seed(0)
        layer = NonLocalSparseAttention(8, 2, 9, window=window, partition=partition).eval()
        layer.conv_match[0] = torch.nn.Conv2d(8, 2, 1)
        whole = NonLocalSparseAttention(8, 2, 9, partition=partition).eval()
        whole.conv_match[0] = torch.nn.Conv2d(8, 2, 1)
        whole.load_state_dict(layer.state_dict())
        x = torch.randn(2, 8, 12, 17)
        found = layer(x)
        for top in range(0, 12, window):
            for left in range(0, 17, window):
                part = slice(None), slice(None), slice(top, top + window), slice(left, left + window)
                torch.testing.assert_close(found[part], whole(x[part]), rtol=1e-5, atol=1e-5)

    def test_gradients_arrive(self) -> None:
        torch.manual_seed(0)
        layer = NonLocalSparseAttention(8, 2, 9, window=7)
        x = torch.randn(1, 8, 12, 17, requires_grad=True)
        layer(x).square().mean().backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in (x, *layer.parameters()))

    def test_rotations_are_for_the_whole_image(self) -> None:
        with pytest.raises(ArgumentError, match='rotations are not allowed with'):
            NonLocalSparseAttention(8, 1, 9, window=7)(torch.randn(1, 8, 12, 17), rotations=torch.randn(2, 1, 1))
