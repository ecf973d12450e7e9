"""Of a file that has weights and their moving average, the average is what is used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import nlsn_plugin
from nlsn_plugin import NLSN
from nlsn_plugin.cli import main


@pytest.fixture
def both(tmp_path: Path) -> Path:
    """Weights, and an average that is zero: all that it makes is its mean colour."""
    torch.manual_seed(0)
    net = NLSN(num_feat=8, num_block=1)
    params, names = net.state_dict(), dict(net.named_parameters())
    average = {name: torch.zeros_like(w) if name in names else w for name, w in params.items()}
    torch.save({'params': params, 'params_ema': average}, tmp_path / 'both.pth')
    return tmp_path / 'both.pth'


def test_it_enlarges(both: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    assert np.ptp(nlsn_plugin.upscale(image, weights=both), axis=(0, 1)).max() == 0


@pytest.mark.skipif(not hasattr(torch.compiler, 'is_exporting'), reason='export needs PyTorch 2.7 or later')
def test_it_is_exported(both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(both.parent)
    main(['export', 'both.pth', '-o', 'net.pt2', '--torch-export', '--size', '9', '7'])
    y = torch.export.load('net.pt2').module()(torch.rand(1, 3, 9, 7))
    assert torch.equal(y, y[:, :, :1, :1].expand_as(y))
