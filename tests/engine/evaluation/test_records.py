"""What was measured stays on disk, whatever becomes of the run that measures on."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluated import contestant, evaluate, write_two, write_weights

from nlsn_plugin.engine.evaluation import costs, scoring
from nlsn_plugin.engine.evaluation.contestants import Contestant, Inference
from nlsn_plugin.engine.evaluation.records import Records
from nlsn_plugin.engine.evaluation.scoring import Settings
from nlsn_plugin.errors import SaveError
from nlsn_plugin.metrics.protocols import PROTOCOLS


def test_a_disk_that_is_full_takes_nothing_of_what_was_kept(tmp_path: Path) -> None:
    path = tmp_path / 'records.jsonl'
    records = Records(path)
    for number in range(300):
        records.add(f'{number}', {'psnr_y': float(number)})
    with path.open('a') as file:
        file.write('{"key": "cut sh')
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(SaveError, match=r'records\.jsonl could not be saved: .*; what was saved before is intact'):
            Records(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert len(Records(path).found) == 300
    assert not path.read_text().endswith('cut sh')


def test_what_is_whole_is_not_written_anew(tmp_path: Path) -> None:
    path = tmp_path / 'records.jsonl'
    Records(path).add('a', {'psnr_y': 1.0})
    before = path.stat().st_ino
    assert Records(path).found == {'a': {'key': 'a', 'psnr_y': 1.0}}
    assert path.stat().st_ino == before


@pytest.fixture(scope='module')
def evaluated(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> tuple[Path, Path]:
    """The weights of a network, and a folder of two photographs."""
    folder = tmp_path_factory.mktemp('two')
    return write_weights(folder.parent), write_two(folder, photographs)


@pytest.mark.parametrize('change', ['arguments', 'weights', 'param_key', 'protocol'])
def test_figures_of_another_network_or_protocol_are_not_taken_for_these(
    change: str, evaluated: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, two = evaluated
    params, file = torch.load(weights)['params'], tmp_path / 'net.pth'
    averaged = {name: 0.5 * weight for name, weight in params.items()}
    torch.save({'params': params, 'params_ema': averaged}, file)
    calls = []

    def counted(self: Contestant, lr: np.ndarray, inference: Inference) -> np.ndarray:
        calls.append(lr)
        return lr[..., :3].repeat(2, 0).repeat(2, 1) if lr.ndim == 3 else np.dstack([lr] * 3).repeat(2, 0).repeat(2, 1)

    monkeypatch.setattr(Contestant, 'enlarge', counted)
    evaluate([contestant(file)], two, tmp_path / 'out')
    if change == 'weights':
        torch.save({'params': averaged, 'params_ema': params}, file)
    words = {'arguments': ['res_scale=0.5'], 'param_key': ['param_key=params']}.get(change, [])
    settings = {'protocol': PROTOCOLS['matlab']} if change == 'protocol' else {}
    evaluate([contestant(file, *words)], two, tmp_path / 'out', **settings)
    assert len(calls) == 4


@pytest.mark.parametrize('change', ['arguments', 'n_hashes', 'size', 'inference', 'machine', 'environment'])
def test_costs_of_another_network_size_or_machine_are_not_taken_for_these(
    change: str, evaluated: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, two = evaluated
    calls: list[Any] = []
    monkeypatch.setattr(costs, 'measure', lambda *arguments: calls.append(arguments) or {'lr_size': [16, 16]})
    usual: dict[str, Any] = {'cost_size': (16, 16)}
    evaluate([contestant(weights)], two, tmp_path, **usual)
    evaluate([contestant(weights)], two, tmp_path, **usual)
    assert len(calls) == 1
    usual |= {
        'n_hashes': {'n_hashes': [4]},
        'size': {'cost_size': (16, 24)},
        'inference': {'inference': Inference(tile=20, tile_overlap=4)},
    }.get(change, {})
    if change == 'machine':
        monkeypatch.setattr(scoring, 'describe_machine', lambda device: {'threads': 0})
    if change == 'environment':
        monkeypatch.setenv('NLSN_BACKEND', 'reference')
    evaluate([contestant(weights, *(['res_scale=0.5'] if change == 'arguments' else []))], two, tmp_path, **usual)
    assert len(calls) == 2


def test_costs_with_and_without_onednn_are_kept_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network = contestant(write_weights(tmp_path))
    records = Records(tmp_path / 'records.jsonl')
    entry = scoring.Entry('NLSN', 2, network, 2, [0])
    monkeypatch.setattr(costs, 'measure', lambda *arguments: {})
    for onednn, measures in ((False, True), (False, False), (True, True), (True, False)):
        monkeypatch.setattr(scoring, 'onednn_multiplies', lambda x, onednn=onednn: onednn)
        scoring.cost_of(entry, network, Settings(), records)
        assert ('measuring time' in capsys.readouterr().out) == measures
        assert scoring.describe(Settings(), [2]).get('onednn_matmul', False) == onednn
