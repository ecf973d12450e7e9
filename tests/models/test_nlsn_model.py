from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from basicsr.models.sr_model import SRModel
from conftest import GOLDEN, golden, needs_compiler, relative_error

from nlsn_plugin import NLSNModel
from nlsn_plugin.errors import CheckpointError, NonFiniteLossError
from nlsn_plugin.models.formats import save_network
from nlsn_plugin.models.nlsn_model import for_this_device

OFFICIAL_X2 = GOLDEN / 'nlsn_x2_small_official_state_dict.pt'


def options(upscale: int = 2, **path: Any) -> dict[str, Any]:
    network = {'type': 'NLSN', 'num_feat': 16, 'num_block': 8, 'upscale': upscale, 'eval_seed': None}
    return {'num_gpu': 0, 'dist': False, 'is_train': False, 'network_g': network, 'path': path}


@pytest.fixture
def log() -> Any:
    """The lines BasicSR's logger writes, which does not propagate."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger, handler = logging.getLogger('basicsr'), Keep()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lines
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_the_authors_file_loads_with_no_other_key_and_gives_the_golden_output() -> None:
    model = NLSNModel(options(pretrain_network_g=str(OFFICIAL_X2)))
    _, arrays = golden('nlsn_x2_small')
    model.feed_data({'lq': torch.tensor(arrays['x'])})
    torch.manual_seed(int(arrays['seed']))
    model.test()
    assert relative_error(model.output.numpy(), arrays['y']) < 1e-5


@pytest.mark.parametrize(('layout', 'ending'), [('safetensors', '.safetensors'), ('mmengine', '.pth')])
def test_files_of_other_layouts_load_and_where_their_metadata_differ_is_said(
    layout: str, ending: str, tmp_path: Path, log: list[str]
) -> None:
    weights, path = torch.load(OFFICIAL_X2, weights_only=True), tmp_path / f'net{ending}'
    metadata = {'type': 'NLSN', 'arguments': {'num_feat': 16, 'num_block': 8, 'chunk_size': 64}}
    save_network(weights, path, metadata, layout=layout)
    model = NLSNModel(options(pretrain_network_g=str(path)))
    assert model.net_g.state_dict()['body.10.weight'].equal(weights['body.10.weight'])
    assert log[-1] == f'{path} is of a network with chunk_size=64; network_g has 144'


def test_weights_of_another_scale_are_an_error_by_default() -> None:
    with pytest.raises(CheckpointError, match='does not fit NLSN of 52 entries, 2 differ: '):
        NLSNModel(options(upscale=3, pretrain_network_g=str(OFFICIAL_X2)))


def test_with_strict_load_g_false_what_did_not_match_is_listed_and_counted(log: list[str]) -> None:
    model = NLSNModel(options(upscale=3, pretrain_network_g=str(OFFICIAL_X2), strict_load_g=False))
    (warning,) = [line for line in log if 'did not match' in line]
    assert warning.splitlines() == [
        '2 entries did not match and were left as they were:',
        '  tail.0.0.weight: [64, 16, 3, 3] in the file, [144, 16, 3, 3] in the network',
        '  tail.0.0.bias: [64] in the file, [144] in the network',
    ]
    official = torch.load(OFFICIAL_X2, weights_only=True)
    assert model.net_g.state_dict()['body.10.weight'].equal(official['body.10.weight'])


def training(train: dict[str, Any] | None = None, optim: dict[str, Any] | None = None, **others: Any) -> Any:
    """A model to be trained, without attention: it draws no random numbers."""
    torch.manual_seed(0)
    network = {'type': 'NLSN', 'num_feat': 8, 'num_block': 2, 'attention_at': []}
    schedule = {'type': 'MultiStepLR', 'milestones': [100], 'gamma': 0.5}
    loss = {'type': 'L1Loss', 'loss_weight': 1.0, 'reduction': 'mean'}
    settings = {'optim_g': optim or {'type': 'SGD', 'lr': 0.1}, 'scheduler': schedule, 'pixel_opt': loss}
    opt = {**options(), 'is_train': True, 'rank': 0, 'world_size': 1, 'scale': 2, 'network_g': network}
    return NLSNModel({**opt, 'train': {**settings, **(train or {})}, **others})


def batch(size: int = 4, seed: int = 1) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    lq, gt = torch.rand(size, 3, 8, 9, generator=generator), torch.rand(size, 3, 16, 18, generator=generator)
    names = [f'{number}.png' for number in range(size)]
    return {'lq': lq, 'gt': gt, 'lq_path': names, 'gt_path': names}


def weights(model: Any) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.net_g.parameters()]


def step(model: Any, data: dict[str, Any] | None = None, count: int = 1) -> Any:
    for iteration in range(1, count + 1):
        model.feed_data(data or batch())
        model.optimize_parameters(iteration)
    return model


@pytest.mark.parametrize('accumulate', [1, 2])
def test_losses_are_summed_and_named(accumulate: int) -> None:
    """A perceptual loss gives two, of which that of style may be none."""
    l1 = torch.nn.functional.l1_loss
    several = training({'accumulate': accumulate})
    several.cri_perceptual = lambda output, gt: (2 * l1(output, gt), l1(output, gt))
    one = training({'pixel_opt': {'type': 'L1Loss', 'loss_weight': 4.0, 'reduction': 'mean'}})
    for ours, expected in zip(weights(step(several)), weights(step(one))):
        torch.testing.assert_close(ours, expected)
    log = several.get_current_log()
    assert list(log) == ['l_pix', 'l_percep', 'l_style']
    assert sum(log.values()) == pytest.approx(one.get_current_log()['l_pix'], rel=1e-5)
    without_style = training()
    without_style.cri_perceptual = lambda output, gt: (l1(output, gt), None)
    assert list(step(without_style).get_current_log()) == ['l_pix', 'l_percep']


def test_warming_up_ends_with_the_whole_rate() -> None:
    model = training()
    rates = []
    for iteration in range(1, 7):
        model.update_learning_rate(iteration, warmup_iter=4)
        rates += model.get_current_learning_rate()
    assert rates == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])


def test_a_step_is_that_of_basicsr() -> None:
    ours = step(training({'ema_decay': 0.9}, {'type': 'Adam', 'lr': 1e-3, 'fused': False}), count=3)
    torch.manual_seed(0)
    opt = {**ours.opt, 'train': {**ours.opt['train'], 'optim_g': {'type': 'Adam', 'lr': 1e-3}}}
    opt['train']['scheduler'] = {'type': 'MultiStepLR', 'milestones': [100], 'gamma': 0.5}
    theirs = step(SRModel(opt), count=3)
    for ours_net, theirs_net in ((ours.net_g, theirs.net_g), (ours.net_g_ema, theirs.net_g_ema)):
        for mine, other in zip(ours_net.parameters(), theirs_net.parameters()):
            torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)
    assert ours.get_current_log().keys() == theirs.get_current_log().keys()


def test_the_log_is_the_mean_since_the_last_one() -> None:
    model = training(optim={'type': 'SGD', 'lr': 0.0})
    losses = []
    for seed in (1, 2, 3):
        step(model, batch(seed=seed))
        with torch.no_grad():
            losses.append((model.net_g(model.lq) - model.gt).abs().mean().item())
    assert model.get_current_log()['l_pix'] == pytest.approx(sum(losses) / 3)
    assert model.get_current_log() == {}


@pytest.mark.parametrize(('size', 'parts'), [(4, 2), (4, 4), (5, 2)])
def test_a_batch_in_parts_gives_the_same_step(size: int, parts: int) -> None:
    whole, cut = step(training(), batch(size)), step(training({'accumulate': parts}), batch(size))
    for mine, other in zip(weights(cut), weights(whole)):
        torch.testing.assert_close(mine, other)
    assert cut.get_current_log()['l_pix'] == pytest.approx(whole.get_current_log()['l_pix'])


def test_gradients_are_clipped_to_their_norm_together() -> None:
    model = training({'clip_grad_norm': 0.01}, {'type': 'SGD', 'lr': 1.0})
    before = weights(model)
    moved = [now - then for now, then in zip(weights(step(model)), before)]
    assert torch.cat([part.flatten() for part in moved]).norm().item() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize('amp', ['bf16', 'fp16'])
def test_mixed_precision_trains_full_precision_weights(amp: str) -> None:
    full, mixed = step(training(), count=5), training({'amp': amp})
    dtypes = set()
    mixed.net_g.head[0].register_forward_hook(lambda layer, inputs, output: dtypes.add(output.dtype))
    step(mixed, count=5)
    assert dtypes == {torch.bfloat16 if amp == 'bf16' else torch.float16}
    for mine, other in zip(weights(mixed), weights(full)):
        assert mine.dtype == torch.float32
        assert not mine.equal(other)
        torch.testing.assert_close(mine, other, rtol=0.05, atol=5e-3)
    kept = {'scale', 'growth_factor', 'backoff_factor', 'growth_interval', '_growth_tracker'}
    assert mixed.state()['scaler'].keys() == (set() if amp == 'bf16' else kept)


@pytest.mark.parametrize(
    'optim', [{'type': 'Adam', 'lr': 0.01}, {'type': 'AdamW', 'lr': 0.01}, {'type': 'NAdam', 'lr': 0.01}]
)
@pytest.mark.parametrize('fault', ['nan in the image', 'an infinite loss with finite gradients'])
def test_an_update_that_is_not_finite_is_skipped_counted_and_named(
    log: list[str], optim: dict[str, Any], fault: str
) -> None:
    model = step(training(optim=dict(optim)))
    before, state = weights(model), str(model.optimizer_g.state_dict())
    faulty = batch()
    if fault == 'nan in the image':
        faulty['lq'][2, 0, 3, 3] = torch.nan
    else:
        faulty['gt'][2, 0, 3, 3] = torch.inf
    step(model, faulty)
    assert all(now.equal(then) for now, then in zip(weights(model), before))
    assert str(model.optimizer_g.state_dict()) == state
    assert model.get_current_log()['l_pix'] < 1  # of the other step
    (warning,) = [line for line in log if 'skipped' in line]
    assert warning.startswith('1 updates were skipped so far, their losses or gradients not finite; last of: 0.png, ')
    assert step(model).get_current_log()['l_pix'] < 1
    assert not all(now.equal(then) for now, then in zip(weights(model), before))


def test_too_many_of_them_end_the_run_with_the_images() -> None:
    model = training({'nonfinite_limit': 2})
    faulty = batch()
    faulty['lq'][0] = torch.nan
    step(model, faulty, count=3)
    with pytest.raises(NonFiniteLossError, match=r'3 updates were skipped .* 3\.png; nonfinite_limit is 2'):
        model.get_current_log()


def test_what_the_guard_counted_and_the_scaler_found_comes_back() -> None:
    model = training({'amp': 'fp16'})
    step(model).scaler.update(512.0)
    model.nonfinite = 7
    state = {
        'optimizers': [model.optimizer_g.state_dict()],
        'schedulers': [model.schedulers[0].state_dict()],
        'model': model.state(),
    }
    other = training({'amp': 'fp16'})
    other.resume_training(state)
    assert other.nonfinite == 7
    assert other.scaler.get_scale() == model.scaler.get_scale() == 512.0


def test_a_state_of_an_optimiser_with_other_kernels_moves_its_steps_to_where_these_want_them() -> None:
    """On the meta device, for there only is a place other than the CPU on every machine."""
    model = step(training({}, {'type': 'Adam', 'lr': 1e-3, 'fused': False}))
    parameter = torch.nn.Parameter(torch.empty(2, device='meta'))
    fused = torch.optim.Adam([parameter])
    fused.param_groups[0]['fused'] = True
    state = model.optimizer_g.state_dict()
    alone = {'state': {0: state['state'][0]}, 'param_groups': [{**state['param_groups'][0], 'params': [0]}]}
    assert alone['param_groups'][0]['fused'] is False
    fused.load_state_dict(for_this_device(alone, fused))
    assert fused.state[parameter]['step'].device == parameter.device
    assert fused.param_groups[0]['fused'] is True


@pytest.mark.parametrize(('written', 'dtype'), [(False, None), ('off', None), ('bf16', torch.bfloat16)])
def test_precision_may_be_written_as_yaml_reads_it(written: object, dtype: torch.dtype | None) -> None:
    assert training({'amp': written}).amp_dtype == dtype


def test_the_average_follows_weights_and_copies_buffers() -> None:
    model = training({'ema_decay': 0.75})
    model.net_g, model.net_g_ema = (torch.nn.BatchNorm1d(2) for _ in range(2))
    del model.averaged  # of the networks that it was made with
    with torch.no_grad():
        model.net_g.weight.fill_(5.0)
    model.net_g(torch.randn(8, 2))
    model.model_ema(0.75)
    assert model.net_g_ema.weight.tolist() == [2.0, 2.0]
    assert model.net_g_ema.running_mean.equal(model.net_g.running_mean)
    assert model.net_g_ema.num_batches_tracked == 1


def test_the_average_begins_as_the_network_where_the_weights_that_both_begin_with_lack_something() -> None:
    path = {'pretrain_network_g': str(OFFICIAL_X2), 'strict_load_g': False}
    model = training({'ema_decay': 0.9}, network_g=options(upscale=4)['network_g'], path=path)
    assert model.net_g.state_dict()['body.10.weight'].equal(torch.load(OFFICIAL_X2)['body.10.weight'])
    average = model.net_g_ema.state_dict()
    for name, weight in model.net_g.state_dict().items():
        assert average[name].equal(weight), name


def test_what_ends_a_validation_leaves_the_network_in_training() -> None:
    model = training()
    model.feed_data({**batch(), 'lq': torch.rand(1, 5, 8, 9)})
    with pytest.raises(ValueError, match='x has the shape'):
        model.test()
    assert model.net_g.training


def test_torchs_schedulers_are_taken_by_name() -> None:
    model = training({'scheduler': {'type': 'CosineAnnealingLR', 'T_max': 10}})
    step(model)
    for iteration in range(1, 12):
        model.update_learning_rate(iteration)
    assert model.get_current_learning_rate()[0] == pytest.approx(0.0, abs=1e-9)


def test_channels_last_is_kept() -> None:
    model = step(training({'channels_last': True}))
    assert model.lq.is_contiguous(memory_format=torch.channels_last)
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in model.net_g.parameters() if w.dim() == 4)


@needs_compiler
def test_a_compiled_network_keeps_its_names_and_numbers() -> None:
    plain, compiled = step(training()), step(training({'compile': True}))
    assert compiled.net_g.state_dict().keys() == plain.net_g.state_dict().keys()
    assert compiled.net_g._compiled_call_impl is not None
    for mine, other in zip(weights(compiled), weights(plain)):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_tiles_and_the_ensemble_are_off_unless_asked_for() -> None:
    outputs, calls = [], []
    for val in ({}, {'tile': 6, 'tile_overlap': 2}, {'self_ensemble': True}):
        model = training(val=val)
        model.feed_data(batch(1))
        model.net_g.register_forward_hook(lambda *_: calls.append(1))
        model.test()
        outputs.append(model.output)
        assert model.net_g.training
    assert len(calls) == 1 + 4 + 8
    assert outputs[0].shape == outputs[1].shape == outputs[2].shape == (1, 3, 16, 18)
    assert not outputs[0].equal(outputs[1])
    assert not outputs[0].equal(outputs[2])


def test_an_image_without_truth_is_not_measured_by_that_of_another() -> None:
    model = training()
    model.feed_data(batch(1))
    model.feed_data({'lq': batch(1)['lq'], 'lq_path': ['0.png']})
    model.test()
    assert 'gt' not in model.get_current_visuals()
