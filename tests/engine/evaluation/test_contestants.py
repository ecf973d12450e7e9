"""Networks to evaluate, by their words."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from evaluated import SMALL, contestant, write_weights

from nlsn_plugin.archs.with_nlsa_arch import WithNLSA
from nlsn_plugin.engine.evaluation import scoring
from nlsn_plugin.engine.evaluation.contestants import Contestant, Inference, Recipe, from_words
from nlsn_plugin.engine.evaluation.scoring import Settings
from nlsn_plugin.errors import UserError
from nlsn_plugin.models.checkpoint import read_weights
from nlsn_plugin.models.formats import save_network


@pytest.fixture(scope='module')
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp('weights'))


@pytest.mark.parametrize(
    ('layout', 'ending'), [('safetensors', '.safetensors'), ('mmengine', '.pth'), ('basicsr', '.pth')]
)
def test_files_with_metadata_need_no_arguments_and_refuse_others(
    layout: str, ending: str, weights: Path, tmp_path: Path
) -> None:
    path = tmp_path / f'net{ending}'
    save_network(read_weights(weights), path, {'type': 'NLSN', 'arguments': SMALL}, layout=layout)
    named = Contestant(from_words(['NLSN', str(path)], 3), 'cpu')
    assert named.recipe.scale == 2  # the file's
    lr = np.random.default_rng(0).integers(0, 256, (12, 13, 3), np.uint8)
    assert np.array_equal(named.enlarge(lr, Inference()), contestant(weights).enlarge(lr, Inference()))
    assert from_words(['NLSN', str(path), 'n_hashes=2', 'eval_seed=3'], 2).arguments['eval_seed'] == 3
    for word, message in (
        ('n_hashes=8', r'n_hashes=8 contradicts .*net\..*, whose metadata say n_hashes=2'),
        ('chunk_size=144', r'chunk_size=144 contradicts .*, whose metadata say chunk_size=16'),
        ('res_scale=1', r'res_scale=1 contradicts .*, whose metadata say res_scale=0.1'),
    ):
        with pytest.raises(UserError, match=message):
            from_words(['NLSN', str(path), word], 2)
    with pytest.raises(UserError, match=r'EDSR contradicts .*, whose metadata say NLSN'):
        from_words(['EDSR', str(path)], 2)


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['NLSN'], r'--net NLSN: TYPE WEIGHTS \[KEY=VALUE \.\.\.\] is expected'),
        (['NLSM', 'w.pth'], 'no NLSM: did you mean NLSN'),
        (['NLSN', 'w.pth', 'num_feats=8'], 'NLSN takes no num_feats: did you mean num_feat'),
        (['NLSN', 'w.pth', 'num_feat=0'], 'num_feat: 0 is not allowed'),
        (['NLSN', 'w.pth', 'num_feat=[1'], r'num_feat=\[1: \[1 is no value'),
        (['EDSR', 'w.pth', 'upscale=two'], "upscale='two' is not allowed"),
    ],
)
def test_mistakes_in_words_are_named(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_words(words, 2)


def test_weights_that_cannot_be_taken_are_named(weights: Path) -> None:
    with pytest.raises(UserError, match=r'there is no file .*smal\.pth .did you mean .*small\.pth'):
        contestant(weights.with_name('smal.pth'))
    with pytest.raises(UserError, match=r'small\.pth does not fit NLSN.*The arguments have to be those'):
        contestant(weights, 'num_feat=16')
    with pytest.raises(UserError, match='with eval_seed null each evaluation hashes differently'):
        contestant(weights, 'eval_seed=null')


def test_a_network_of_another_scale_is_named() -> None:
    path = GOLDEN / 'nlsn_x3_small_official_state_dict.pt'
    recipe = from_words(['NLSN', str(path), 'num_feat=16', 'num_block=8', 'upscale=3'], 2)
    assert recipe.scale == 3
    with pytest.raises(UserError, match=r'NLSN made \[1, 3, 72, 72\] of \[1, 3, 24, 24\]: \[1, 3, 48, 48\] is'):
        Contestant(replace(recipe, scale=2), 'cpu').enlarge(np.zeros((24, 24, 3), np.uint8), Inference())


def test_a_path_may_have_an_equals_sign(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'lr=1e-4').mkdir()
    shutil.copy(weights, tmp_path / 'lr=1e-4')
    monkeypatch.chdir(tmp_path)
    assert contestant(Path('lr=1e-4', weights.name)).recipe.weights == 'lr=1e-4/small.pth'


def test_a_value_may_be_longer_than_a_name_of_a_file(weights: Path) -> None:
    word = 'res_scale=0.1' + 300 * '0'
    assert from_words(['NLSN', str(weights), word], 2).arguments['res_scale'] == 0.1


@pytest.mark.parametrize(
    'error',
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"), torch.cuda.OutOfMemoryError('no')],
)
def test_a_lack_of_memory_is_told_with_what_helps(error: Exception, weights: Path) -> None:
    def fail(module: object, inputs: object) -> None:
        raise error

    found = contestant(weights)
    found.net.register_forward_pre_hook(fail)
    with pytest.raises(UserError, match=r'^NLSN has too little memory for \[1, 3, 24, 24\]: try --tile 256$'):
        found.enlarge(np.zeros((24, 24, 3), np.uint8), Inference())


def test_the_average_is_taken_unless_a_word_says_otherwise(weights: Path) -> None:
    words = ['NLSN', str(weights), *(f'{key}={value}' for key, value in SMALL.items())]
    assert from_words(words, 2).param_key == 'params_ema'
    assert from_words([*words, 'param_key=params'], 2).param_key == 'params'


def test_an_empty_label_is_none(weights: Path) -> None:
    words = ['NLSN', str(weights), *(f'{key}={value}' for key, value in SMALL.items())]
    assert from_words([*words, 'label='], 2).label == 'NLSN'
    assert from_words([*words, 'label=2024'], 2).label == '2024'


def test_a_seed_is_of_all_attentions(tmp_path: Path) -> None:
    network = contestant(write_weights(tmp_path))
    assert len(network.attentions) > 1
    network.hash_by(3, 70)
    assert [a.eval_seed for a in network.attentions] == [70 + n for n in range(len(network.attentions))]


def test_attentions_that_differ_hash_as_in_the_network_unless_told_otherwise(tmp_path: Path) -> None:
    """Attentions after a network that has attentions of its own, with other rounds and with seeds from 0 again."""
    arguments = {'arch': {'type': 'NLSN', **SMALL}, 'after': 'body.3', 'nlsa': {'n_hashes': 8, 'chunk_size': 16}}
    torch.manual_seed(0)
    weights = tmp_path / 'more.pth'
    torch.save({'params': WithNLSA(**arguments).state_dict()}, weights)
    network = Contestant(Recipe('more', 'WithNLSA', arguments, 2, str(weights), 'params'), 'cpu')
    own = [(layer.n_hashes, layer.eval_seed) for layer in network.attentions]
    assert {n_hashes for n_hashes, _ in own} == {2, 8}
    assert [seed for _, seed in own].count(0) == 2
    _, row = scoring.rows([network], [2], Settings())
    for n_hashes, seed, expected in (
        (row.n_hashes, row.seeds[0], own),
        (3, 5, [(3, seed + 5) for _, seed in own]),
        (None, None, own),
    ):
        network.hash_by(n_hashes, seed)
        assert [(layer.n_hashes, layer.eval_seed) for layer in network.attentions] == expected
