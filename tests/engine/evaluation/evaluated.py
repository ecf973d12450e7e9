"""What tests of the evaluator evaluate: a small network and two small photographs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import torch

from nlsn_plugin import NLSN
from nlsn_plugin.data.benchmark_sets import open_set
from nlsn_plugin.data.images import read_image
from nlsn_plugin.engine.evaluation import scoring
from nlsn_plugin.engine.evaluation.contestants import Contestant, from_words
from nlsn_plugin.engine.evaluation.scoring import Settings

SMALL = {'num_feat': 8, 'num_block': 8, 'n_hashes': 2, 'chunk_size': 16}


def write_weights(folder: Path) -> Path:
    """Of a small NLSN x2 that hashes visibly otherwise from seed to seed."""
    torch.manual_seed(0)
    net = NLSN(**SMALL)
    for name, parameter in net.named_parameters():
        if 'conv_match' in name or 'conv_assembly' in name:
            parameter.data *= 10
    path = folder / 'small.pth'
    torch.save({'params': net.state_dict()}, path)
    return path


def write_two(folder: Path, photographs: Path) -> Path:
    """A colour and a gray photograph of 48x48 pixels."""
    for name in ('chelsea', 'camera'):
        image = read_image(photographs / f'{name}.png', keep_gray=True)
        cv2.imwrite(str(folder / f'{name}.png'), image[:48, :48])
    return folder


def contestant(weights: Path, *words: str) -> Contestant:
    """The small network, and more words."""
    arguments = [f'{key}={value}' for key, value in SMALL.items()]
    return Contestant(from_words(['NLSN', str(weights), *arguments, *words], 2), 'cpu')


def evaluate(contestants: Sequence[Contestant], folder: Path, output: Path, **settings: object) -> scoring.Results:
    """On one folder of images, called Set5."""
    settings = {'cost_size': None, **settings}
    sets = {2: [open_set('Set5', folder, 2, workers=1)]}
    return scoring.run(contestants, sets, Settings(**settings), output)
