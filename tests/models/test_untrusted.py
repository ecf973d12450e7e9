"""Files of strangers: nothing that they name is executed, and what is wrong with them is one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from nlsn_plugin import NLSN
from nlsn_plugin.archs.bases import base_class
from nlsn_plugin.errors import ArgumentError, CheckpointError, UserError
from nlsn_plugin.models.checkpoint import EMBEDDED, METADATA_KEY
from nlsn_plugin.models.formats import load_network

CALL = {'type': 'os.system', 'command': 'echo executed > executed'}
NETWORK = {'type': 'NLSN', 'num_feat': 4, 'num_block': 1}
HOSTILE = {
    'the class': {'type': 'os.system', 'arguments': {'command': CALL['command']}},
    'the base network': {'type': 'WithNLSA', 'arguments': {'arch': CALL, 'after': 'body.0'}},
    'a part of the network': {'type': 'SuperResolutionModel', 'arguments': {'generator': NETWORK, 'pixel_loss': CALL}},
    'a part of the base network': {
        'type': 'WithNLSA',
        'arguments': {
            'arch': {'type': 'SuperResolutionModel', 'generator': NETWORK, 'pixel_loss': CALL},
            'after': 'body.0',
        },
    },
    'in a list': {'type': 'EDSR', 'arguments': {'num_in_ch': [[CALL]], 'num_out_ch': 3}},
}


@pytest.fixture(autouse=True)
def _nothing_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / 'executed').exists()


@pytest.mark.parametrize('place', HOSTILE)
@pytest.mark.parametrize('layout', ['safetensors', 'embedded', 'basicsr', 'mmengine'])
def test_what_metadata_name_is_not_executed(place: str, layout: str) -> None:
    metadata, weights = HOSTILE[place], {'a': torch.zeros(1)}
    if layout == 'safetensors':
        save_file(weights, 'hostile', {METADATA_KEY: json.dumps(metadata)})
    elif layout == 'embedded':
        save_file({**weights, EMBEDDED: as_tensor(metadata)}, 'hostile')
    elif layout == 'basicsr':
        torch.save({'params': weights, METADATA_KEY: metadata}, 'hostile')
    else:
        torch.save({'state_dict': weights, 'meta': {METADATA_KEY: metadata}}, 'hostile')
    with pytest.raises(UserError, match=r'^hostile: |^arch: ') as caught:
        load_network('hostile')
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('place', HOSTILE)
def test_spandrel_does_not_execute_it_either(place: str) -> None:
    spandrel = pytest.importorskip('spandrel')
    state_dict = {'a': torch.zeros(1), EMBEDDED: as_tensor(HOSTILE[place])}
    with pytest.raises((UserError, spandrel.UnsupportedModelError)):
        spandrel.ModelLoader().load_from_state_dict(state_dict)


@pytest.mark.parametrize(
    'name', ['os.system', 'torch.nn.Conv2d', 'nlsn_plugin.archs.NLSN', 'builtins.eval', 'mmengine.']
)
def test_a_name_with_dots_is_no_way_to_what_is_not_registered(name: str) -> None:
    with pytest.raises(ArgumentError, match=f'^no network {name}'):
        base_class(name)


def test_what_is_registered_is_found_with_and_without_its_scope() -> None:
    assert base_class('NLSN') is base_class('mmengine.NLSN') is NLSN
    assert issubclass(base_class('SwinIR'), nn.Module)


def test_metadata_as_deep_as_they_like() -> None:
    save_file({'a': torch.zeros(1)}, 'deep', {METADATA_KEY: '[' * 200_000})
    with pytest.raises(CheckpointError, match=r"^deep: its metadata 'nlsn' is no JSON: "):
        load_network('deep')


@pytest.mark.parametrize('name', ['tail.1.weight', 'add_mean.bias', 'body.0.conv_match.0.weight'])
def test_tensors_without_dimensions(name: str) -> None:
    weights = {**NLSN(num_feat=8, num_block=1).state_dict(), name: torch.tensor(1.0)}
    torch.save({'params': weights}, 'odd.pth')
    with pytest.raises(CheckpointError, match=r'^odd\.pth ') as caught:
        load_network('odd.pth')
    assert '\n' not in str(caught.value)


def as_tensor(metadata: dict[str, Any]) -> Tensor:
    return torch.tensor(list(json.dumps(metadata).encode()), dtype=torch.uint8)
