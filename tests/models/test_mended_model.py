"""What this plugin mends of BasicSR's models, in a model that is not its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torch.distributed
from basicsr.models.sr_model import SRModel
from conftest import GOLDEN, official
from torch.nn.parallel import DistributedDataParallel

from nlsn_plugin.errors import CheckpointError, UserError
from nlsn_plugin.models.mended_model import build_model, mended

NETWORK = {'type': 'NLSN', 'num_feat': 16, 'num_block': 8, 'upscale': 2}
TRAIN = {
    'optim_g': {'type': 'AdamW', 'lr': 0.1},
    'scheduler': {'type': 'StepLR', 'step_size': 2, 'gamma': 0.5},
    'pixel_opt': {'type': 'L1Loss', 'loss_weight': 1.0, 'reduction': 'mean'},
}


def options(is_train: bool = False, **path: Any) -> dict[str, Any]:
    opt = {'model_type': 'SRModel', 'num_gpu': 0, 'dist': False, 'is_train': is_train, 'network_g': NETWORK}
    return {**opt, 'path': path, 'train': TRAIN}


def test_it_is_basicsrs_model_still() -> None:
    model = build_model(options())
    assert isinstance(model, SRModel)
    assert type(model).__name__ == 'SRModel'
    assert mended(SRModel) is type(model)


def test_weights_of_any_layout_load() -> None:
    weights = str(GOLDEN / 'nlsn_x2_small_official_state_dict.pt')
    model = build_model(options(pretrain_network_g=weights))
    assert model.net_g.head[0].weight.equal(official('nlsn_x2_small')['head.0.weight'])


def test_an_unknown_key_is_an_error(tmp_path: Path) -> None:
    torch.save({'params': official('nlsn_x2_small')}, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match=r"has no 'params_emaa'.*params"):
        build_model(options(pretrain_network_g=str(tmp_path / 'a.pth'), param_key_g='params_emaa'))


def test_weights_that_do_not_fit_are_said_to_whatever_their_file_is_called(tmp_path: Path) -> None:
    torch.save({'params': {'head.0.weight': torch.zeros(1)}}, tmp_path / 'CUDA.pth')
    with pytest.raises(CheckpointError, match=r'CUDA\.pth does not fit'):
        build_model(options(pretrain_network_g=str(tmp_path / 'CUDA.pth')))


def test_the_second_networks_weights_are_told_from_the_firsts(tmp_path: Path) -> None:
    path = str(tmp_path / 'd.pth')
    torch.save({'of_d': {'weight': torch.ones(2, 3)}}, path)
    model = build_model(options(pretrain_network_d=path, param_key_d='of_d'))
    net = torch.nn.Linear(3, 2, bias=False)
    model.load_network(net, path, True, 'params_ema')  # which it has not: then param_key_d, as it stands
    assert net.weight.equal(torch.ones(2, 3))
    with pytest.raises(CheckpointError, match='strict_load_d: false'):
        model.load_network(torch.nn.Linear(4, 2, bias=False), path, True, 'of_d')


def test_optimisers_and_schedulers_are_pytorchs() -> None:
    opt = options(is_train=True)
    model = build_model(opt)
    rates = []
    for iteration in range(1, 8):
        model.update_learning_rate(iteration, warmup_iter=2)
        rates += model.get_current_learning_rate()
    assert isinstance(model.optimizer_g, torch.optim.AdamW)
    assert rates == pytest.approx([0.05, 0.1, 0.05, 0.05, 0.025, 0.025, 0.0125])
    assert opt['train']['optim_g'] == {'type': 'AdamW', 'lr': 0.1}  # BasicSR takes the names out


def test_several_processes_need_no_gpu(tmp_path: Path) -> None:
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/meet', rank=0, world_size=1)
    try:
        for unused in (False, True):
            model = build_model({**options(), 'dist': True, 'find_unused_parameters': unused})
            assert isinstance(model.net_g, DistributedDataParallel)
            assert model.net_g.find_unused_parameters is unused
    finally:
        torch.distributed.destroy_process_group()


def test_weights_of_a_loss_that_cannot_be_fetched_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**arguments: Any) -> None:
        raise URLError('no route to host')

    monkeypatch.setattr('basicsr.losses.basic_loss.VGGFeatureExtractor', fail)
    opt = options(is_train=True)
    perceptual = {'type': 'PerceptualLoss', 'layer_weights': {'conv5_4': 1.0}}
    with pytest.raises(UserError, match=r'cannot be fetched \(no route to host\): .*VGG19.* is looked for at .*\.pth$'):
        build_model({**opt, 'train': {**TRAIN, 'perceptual_opt': perceptual}})


def test_what_a_model_does_in_its_own_way_stays() -> None:
    class Own(SRModel):
        def load_network(self, *arguments: Any) -> None:
            self.loaded = arguments

    model = mended(Own)(options(pretrain_network_g='nowhere.pth'))
    assert model.loaded[1] == 'nowhere.pth'
