from __future__ import annotations

import pytest
import torch
from conftest import python

import nlsn_plugin
from nlsn_plugin import NLSN, LocalWindowAttention, NonLocalAttention, NonLocalSparseAttention, registry


def test_basicsr_builds_the_network_and_the_layer() -> None:
    from basicsr.archs import build_network

    net = build_network({'type': 'NLSN', 'num_feat': 8, 'num_block': 1, 'upscale': 3})
    assert isinstance(net, NLSN)
    assert isinstance(build_network({'type': 'NLSA', 'channels': 8}), NonLocalSparseAttention)
    assert isinstance(build_network({'type': 'NLA', 'channels': 8, 'window': 5}), NonLocalAttention)
    assert isinstance(build_network({'type': 'LocalWindowAttention', 'channels': 8}), LocalWindowAttention)


def test_both_toolboxes_build_a_network_with_attentions() -> None:
    from basicsr.archs import build_network
    from mmengine.registry import MODELS

    options = {'type': 'WithNLSA', 'arch': {'type': 'NLSN', 'num_feat': 8, 'num_block': 1}, 'after': 'head'}
    for net in (build_network(options), MODELS.build(options)):
        assert isinstance(net, nlsn_plugin.WithNLSA)
        assert isinstance(net, NLSN)


def test_basicsr_has_the_model() -> None:
    from basicsr.utils.registry import MODEL_REGISTRY

    assert MODEL_REGISTRY.get('NLSNModel') is nlsn_plugin.NLSNModel


def test_mmengine_builds_the_network_and_the_layer_from_the_root_and_from_a_child() -> None:
    from mmengine.registry import MODELS, Registry

    layer = MODELS.build({'type': 'NLSA', 'channels': 64})
    assert layer(torch.rand(1, 64, 4, 4)).shape == (1, 64, 4, 4)
    child = Registry('models', parent=MODELS, scope='child')
    assert isinstance(child.build({'type': 'NLSN', 'num_feat': 8, 'num_block': 1}), NLSN)


def test_registering_again_changes_nothing_and_says_nothing(recwarn: pytest.WarningsRecorder) -> None:
    from basicsr.utils.registry import ARCH_REGISTRY

    before = dict(iter(ARCH_REGISTRY))
    assert registry.register_all() == {}
    assert dict(iter(ARCH_REGISTRY)) == before
    assert not [w for w in recwarn if 'nlsn_plugin' in str(w.message)]


def test_a_foreign_class_of_the_same_name_stays_and_the_way_around_is_told() -> None:
    result = python("""
import sys, types, warnings
import torchvision.transforms.functional as functional
stand_in = types.ModuleType('torchvision.transforms.functional_tensor')
stand_in.rgb_to_grayscale = functional.rgb_to_grayscale
sys.modules[stand_in.__name__] = stand_in
from basicsr.utils.registry import ARCH_REGISTRY
from mmengine.registry import MODELS
class NLSN: pass
NLSN.__module__ = 'other_plugin'
ARCH_REGISTRY.register(NLSN)
MODELS.register_module(module=NLSN)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    import nlsn_plugin
for warning in caught:
    if 'nlsn_plugin' in str(warning.message):
        print(warning.message)
assert ARCH_REGISTRY.get('NLSN') is NLSN
assert ARCH_REGISTRY.get('NLSN_nlsn_plugin') is nlsn_plugin.NLSN
assert MODELS.get('NLSN') is NLSN
assert MODELS.get('NLSN_nlsn_plugin') is nlsn_plugin.NLSN
nlsn_plugin.registry.register_all()
""")
    assert result.returncode == 0, result.stderr
    assert "BasicSR's arch registry already holds a 'NLSN', other_plugin.NLSN, which stays as it is" in result.stdout
    assert "mmengine's root MODELS registry already holds a 'NLSN'" in result.stdout
    assert "registered as 'NLSN_nlsn_plugin': write that for the type in your option file" in result.stdout
