from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from conftest import GOLDEN, golden, relative_error

from nlsn_plugin import NLSNModel
from nlsn_plugin.errors import CheckpointError

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


def test_weights_of_another_scale_are_an_error_by_default() -> None:
    with pytest.raises(CheckpointError, match='does not fit NLSN, 2 of'):
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
