"""What is known of the best network when a run goes on."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from nlsn_plugin.engine.training import checkpoints


@pytest.mark.parametrize(('better', 'worst'), [('higher', -math.inf), ('lower', math.inf)])
def test_a_best_network_that_is_gone_is_beaten_by_any(better: str, worst: float, tmp_path: Path) -> None:
    opt = {'path': {'models': str(tmp_path)}, 'datasets': {'train': {}, 'val': {'name': 'Set5'}}}
    opt['val'] = {'metrics': {'m': {}}}
    state = {'best_metric_results': {'Set5': {'m': {'better': better, 'val': 3.0, 'iter': 6}}}}
    assert checkpoints.known_best(opt, state)['Set5']['m'] == {'better': better, 'val': worst, 'iter': -1}
    (tmp_path / 'net_g_best.pth').touch()
    assert checkpoints.known_best(opt, state) == state['best_metric_results']
