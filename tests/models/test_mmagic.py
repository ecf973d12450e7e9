"""mmagic's own models, networks, data and loops with the plugin's networks; where mmagic can be imported."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from pages import examples

import nlsn_plugin.mmcv_lite  # noqa: F401  (before mmagic)
from nlsn_plugin import NLSN, NonLocalSparseAttention, WithNLSA


def obstacle() -> str:
    """Why mmagic cannot be used here; empty where it can."""
    if importlib.util.find_spec('mmagic') is None:
        return 'mmagic is not installed (docs/mmagic.md says how)'
    try:
        for part in ('models', 'datasets', 'evaluation', 'engine'):
            importlib.import_module(f'mmagic.{part}')
    except (ImportError, AttributeError, AssertionError) as error:  # it was written for older packages
        return f'mmagic does not import: {type(error).__name__}: {error}'
    return ''


pytestmark = [
    pytest.mark.skipif(bool(obstacle()), reason=obstacle()),
    pytest.mark.filterwarnings('ignore'),
]
CONFIGS = sorted((ROOT / 'options' / 'mmengine').glob('mmagic_*.py'))
SHOWN = [example.text for example in examples('py', 'docs/mmagic.md')]
EDSR = {
    'type': 'mmagic.EDSRNet', 'in_channels': 3, 'out_channels': 3, 'mid_channels': 8, 'num_blocks': 8,
    'upscale_factor': 2,
}  # fmt: skip
RESNET = {
    'type': 'mmagic.MSRResNet', 'in_channels': 3, 'out_channels': 3, 'mid_channels': 8, 'num_blocks': 8,
    'upscale_factor': 2,
}  # fmt: skip
SMALL_NLSA = {'n_hashes': 2, 'chunk_size': 16, 'reduction': 2}


@pytest.fixture(autouse=True)
def scope() -> None:
    init_default_scope('mmagic')


def editor(generator: dict[str, Any]) -> Any:
    return MODELS.build(
        {
            'type': 'BaseEditModel',
            'generator': generator,
            'pixel_loss': {'type': 'L1Loss', 'loss_weight': 1.0, 'reduction': 'mean'},
            'data_preprocessor': {'type': 'DataPreprocessor', 'mean': [0.0] * 3, 'std': [255.0] * 3},
        }
    )


def batch() -> dict[str, Any]:
    from mmagic.structures import DataSample

    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, 12, 13), generator=generator).float() for _ in range(2)]
    truths = [torch.randint(0, 256, (3, 24, 26), generator=generator).float() for _ in range(2)]
    return {'inputs': images, 'data_samples': [DataSample(gt_img=truth) for truth in truths]}


@pytest.mark.parametrize(
    'generator',
    [
        {'type': 'NLSN', 'num_feat': 8, 'num_block': 1, 'n_hashes': 2, 'chunk_size': 16},
        {'type': 'WithNLSA', 'arch': EDSR, 'after': 'body.*[3::4]', 'nlsa': SMALL_NLSA},
        {'type': 'WithNLSA', 'arch': RESNET, 'after': 'trunk_net.*[3::4]', 'nlsa': SMALL_NLSA},
    ],
    ids=['NLSN', 'WithNLSA over EDSRNet', 'WithNLSA over MSRResNet'],
)
def test_mmagics_model_trains_and_predicts(generator: dict[str, Any]) -> None:
    from mmengine.optim import OptimWrapper

    torch.manual_seed(0)
    model = editor(generator)
    model.init_weights()
    layers = [module for module in model.modules() if isinstance(module, NonLocalSparseAttention)]
    before = [parameter.detach().clone() for layer in layers for parameter in layer.parameters()]
    wrapper = OptimWrapper(torch.optim.Adam(model.parameters(), lr=1e-3))
    losses = [model.train_step(batch(), wrapper)['loss'].item() for _ in range(8)]
    assert losses[-1] < losses[0]
    assert len(layers) == (1 if generator['type'] == 'NLSN' else 2)
    after = [parameter for layer in layers for parameter in layer.parameters()]
    assert not any(now.equal(then) for now, then in zip(after, before))
    model.eval()
    with torch.no_grad():
        first, second = (model.val_step(batch())[0].output.pred_img for _ in range(2))
    assert first.shape == (3, 24, 26)
    assert first.equal(second)
    assert 0 <= first.min() < first.max() > 2  # in [0, 255] again


def test_with_nlsa_begins_as_mmagics_own_network() -> None:
    torch.manual_seed(0)
    plain = editor(EDSR)
    combined = editor({'type': 'WithNLSA', 'arch': EDSR, 'after': 'body.*[3::4]', 'nlsa': SMALL_NLSA})
    combined.load_state_dict(plain.state_dict())
    x = torch.rand(1, 3, 12, 13)
    assert isinstance(combined.generator, WithNLSA)
    assert isinstance(combined.generator, type(plain.generator))
    assert combined.generator(x).equal(plain.generator(x))


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds(path: Path) -> None:
    cfg = Config.fromfile(path)
    cfg.model.generator.update({'num_feat': 16} if cfg.model.generator.type == 'NLSN' else {})
    model = MODELS.build(cfg.model)
    assert isinstance(model.generator, NLSN if '_nlsn_' in path.stem else WithNLSA)
    with torch.no_grad():
        assert model.generator.eval()(torch.rand(1, 3, 12, 13)).shape == (1, 3, 24, 26)


@pytest.fixture
def mmagics_data(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with photographs where mmagic's own configs have DIV2K and Set5."""
    monkeypatch.chdir(tmp_path)
    source = workplace / 'datasets' / 'benchmark' / 'Set5'
    for gt, lq in (
        ('data/DIV2K/DIV2K_train_HR_sub', 'data/DIV2K/DIV2K_train_LR_bicubic/X2_sub'),
        ('data/Set5/GTmod12', 'data/Set5/LRbicx2'),
    ):
        for folder in (gt, lq):
            Path(folder).mkdir(parents=True)
        for path in source.glob('LR_bicubic/X2/*x2.png'):
            lr = cv2.imread(str(path))
            name = path.name.replace('x2.png', '.png')
            hr = cv2.imread(str(source / 'HR' / name))
            cv2.imwrite(f'{gt}/{name}', hr[: 2 * lr.shape[0], : 2 * lr.shape[1]])
            cv2.imwrite(f'{lq}/{name}', lr)


@pytest.mark.parametrize('config', [*CONFIGS, *SHOWN], ids=lambda config: getattr(config, 'stem', 'of the page'))
@pytest.mark.usefixtures('mmagics_data')
def test_a_config_trains_saves_and_goes_on(config: Path | str) -> None:
    cfg = Config.fromfile(config) if isinstance(config, Path) else Config.fromstring(config, '.py')
    small = {'num_feat': 8, 'num_block': 8} if cfg.model.generator.type == 'NLSN' else {'nlsa': SMALL_NLSA}
    cfg.model.generator.update(small)
    if 'arch' in cfg.model.generator:
        cfg.model.generator.arch.mid_channels = 8
    cfg.train_dataloader.update(batch_size=2, num_workers=0)
    cfg.val_dataloader.update(num_workers=0)
    cfg.train_cfg.update(max_iters=2, val_interval=2)
    cfg.default_hooks.checkpoint.update(interval=2)
    cfg.work_dir = 'run'
    Runner.from_cfg(cfg).train()
    state = torch.load('run/iter_2.pth', weights_only=True)
    assert state['message_hub']['runtime_info']['best_score'] > 0
    cfg.train_cfg.max_iters = 3
    cfg.resume = True
    Runner.from_cfg(cfg).train()
    assert torch.load('run/iter_3.pth', weights_only=True)['meta']['iter'] == 3
