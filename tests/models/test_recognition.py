"""An NLSN's arguments are found again from its weights, whatever it was built with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import GOLDEN_NETWORKS, golden, official

from nlsn_plugin import NLSN
from nlsn_plugin.errors import CheckpointError
from nlsn_plugin.models.recognition import contradiction, infer, is_nlsn

SMALL: dict[str, Any] = {'num_feat': 8, 'num_block': 8}
VARIANTS: list[dict[str, Any]] = [
    {},
    {'upscale': 1},
    {'upscale': 3},
    {'upscale': 4},
    {'upscale': 8},
    {'num_feat': 12},
    {'num_feat': 16, 'reduction': 2},
    {'reduction': 8},
    {'reduction': 1},
    {'num_block': 1},
    {'num_block': 7},
    {'num_block': 16},
    {'num_block': 32, 'num_feat': 4},
    {'attention_at': [8]},
    {'attention_at': [4]},
    {'attention_at': [0, 1, 2, 3]},
    {'num_block': 16, 'attention_at': [8]},
    {'attention': 'none'},
    {'attention': 'nla', 'attention_options': {'shared': False}},
    {'attention': 'nla', 'attention_options': {'shared': False}, 'attention_at': [3, 5]},
    {'num_in_ch': 1, 'num_out_ch': 1, 'rgb_mean': [0.5]},
    {'num_in_ch': 4, 'num_out_ch': 4, 'rgb_mean': [0.1, 0.2, 0.3, 0.4]},
    {'img_range': 255.0},
    {'img_range': 255.0, 'rgb_mean': [0.1, 0.2, 0.9]},
    {'rgb_mean': [0.0, 0.0, 0.0]},
    {'rgb_mean': [1.0, 1.0, 1.0]},
]


def named(arguments: dict[str, Any]) -> str:
    return ','.join(f'{name}={value}' for name, value in arguments.items()) or 'released'


@pytest.mark.parametrize('arguments', VARIANTS, ids=named)
def test_arguments_come_back_and_build_the_same_network(arguments: dict[str, Any]) -> None:
    arguments = {**SMALL, **arguments}
    weights = NLSN(**arguments).state_dict()
    found = infer(weights, 'net.pth')
    assert {name: found[name] for name in arguments if name in found} == {
        name: value for name, value in arguments.items() if name in found
    }
    assert set(arguments) <= set(found) | {'reduction'}
    again = NLSN(**found)
    again.load_state_dict(weights, strict=True)
    assert again.sub_mean.bias.equal(weights['sub_mean.bias'])
    assert is_nlsn(weights) == (arguments.get('attention') != 'none')


@pytest.mark.parametrize('name', GOLDEN_NETWORKS)
def test_the_released_codes_files_are_recognised(name: str) -> None:
    config, _ = golden(name)
    found = infer(official(name), name)
    assert (found['num_feat'], found['num_block'], found['upscale']) == (
        config['n_feats'],
        config['n_resblocks'],
        config['scale'],
    )
    assert found['rgb_mean'] == [0.4488, 0.4371, 0.4040]
    assert found['img_range'] == config['rgb_range']
    assert found['attention_at'] is None


@pytest.mark.parametrize('attention', ['local', 'random', 'nla'])
def test_attentions_with_the_same_names_are_taken_for_nlsa(attention: str) -> None:
    assert infer(NLSN(**SMALL, attention=attention).state_dict(), 'net.pth')['attention'] == 'nlsa'


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda w: w.clear(), 'net.pth holds no NLSN: head.0.weight.* it begins with nothing'),
        (lambda w: w.pop('head.0.weight'), 'net.pth holds no NLSN: head.0.weight, body'),
        (lambda w: w.pop('body.3.body.0.weight'), 'body.3 is neither a residual block nor an attention'),
        (lambda w: w.pop('body.10.weight'), 'body.10 is no convolution'),
        (lambda w: w.update({'head.0.weight': torch.ones(3)}), 'net.pth holds no NLSN: not enough values'),
        (lambda w: w.update({'nlsa.body-3.conv_match.0.weight': torch.ones(3)}), 'holds a WithNLSA.*nlsn convert'),
        (
            lambda w: (
                w.update({name.replace('body.0', 'body.1'): w[name] for name in list(w) if 'body.0.conv' in name})
                or [w.pop(name) for name in list(w) if name.startswith('body.1.body')]
            ),
            'two attentions in a row',
        ),
    ],
)
def test_what_is_no_nlsn_is_refused_with_the_reason(change: Any, message: str) -> None:
    weights = dict(NLSN(**SMALL).state_dict())
    change(weights)
    with pytest.raises(CheckpointError, match=message) as error:
        infer(weights, 'net.pth')
    assert '\n' not in str(error.value)


def test_a_mean_contradicts_the_weights_unless_rounding_tells_it_from_theirs() -> None:
    found = infer(NLSN(**SMALL).state_dict(), 'net.pth')
    red, green, blue = found['rgb_mean']
    assert not contradiction(found, 'rgb_mean', [red, green + 5e-4, blue])
    assert contradiction(found, 'rgb_mean', [red, green + 5e-3, blue])
