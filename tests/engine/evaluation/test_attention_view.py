from __future__ import annotations

import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import GOLDEN, error_of

from nlsn_plugin import NLSN, NonLocalSparseAttention, WithNLSA
from nlsn_plugin.cli import main
from nlsn_plugin.engine.evaluation.attention_view import View, draw, features_of, view
from nlsn_plugin.models.formats import save_network


@pytest.mark.parametrize('neighbours', ['both', 'none'])
@pytest.mark.parametrize('size', [(12, 12), (13, 19)])
def test_the_weights_shown_are_those_that_the_layer_takes(neighbours: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = NonLocalSparseAttention(8, 3, 9, neighbours=neighbours).eval()
    x = torch.randn(1, 8, *size)
    attended = (layer(x) - x)[0]
    value = layer.conv_assembly(x)[0]
    for row, column in ((0, 0), (7, 5), (size[0] - 1, size[1] - 1)):
        seen = view(layer, x, row, column)
        torch.testing.assert_close((seen.sparse * value).sum((1, 2)), attended[:, row, column], rtol=1e-4, atol=1e-5)
        assert seen.sparse.sum() == pytest.approx(1, abs=1e-5)
        assert seen.dense.sum() == pytest.approx(1, abs=1e-5)
        assert seen.same_bucket[:, row, column].all()
        assert (seen.same_bucket.sum((1, 2)) == seen.bucket_sizes[:, row, column]).all()
    assert (seen.sparse > 0).sum() < seen.sparse.numel()


def test_any_layer_of_a_network() -> None:
    torch.manual_seed(0)
    net = NLSN(num_feat=8, num_block=16, n_hashes=2, chunk_size=16).eval()
    x = torch.rand(1, 3, 10, 12)
    layers = [module for module in net.modules() if isinstance(module, NonLocalSparseAttention)]
    for number in range(3):
        layer, features = features_of(net, x, number)
        assert layer is layers[number]
        assert features.shape == (1, 8, 10, 12)
    assert features_of(net, x, None)[0] is layers[-1]


def test_the_command_draws(
    tmp_path: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ['num_feat=8', 'num_block=8', 'n_hashes=5', 'chunk_size=64']
    torch.save(NLSN(num_feat=8, num_block=8, n_hashes=5, chunk_size=64).state_dict(), 'net.pt')
    network = ['--net', 'NLSN', 'net.pt', *arguments, 'param_key=null']
    words = ['show-buckets', str(photographs / 'coffee.png'), '--at', '20', '30', *network]
    main(words)
    assert 'drawn: buckets_coffee.png' in capsys.readouterr().out
    assert cv2.imread('buckets_coffee.png').std() > 20
    assert 'buckets_coffee.png is there already: --force overwrites it' in error_of(words, capsys)
    main([*words, '--force'])
    Path('buckets_coffee.png').unlink()
    place = words.index('--at')
    assert 'has 97x121 pixels' in error_of([*words[:place], '--at', '97', '0', *network], capsys)
    assert '--layer 7: the network has 2, 0 to 1' in error_of([*words, '--layer', '7'], capsys)
    assert 'name the network either by' in error_of(words[: place + 3], capsys)
    words = ['show-buckets', 'none.png', '--at', '0', '0', '-opt', 'a.yml', '--scale', '3']
    assert '--scale comes from the option file' in error_of(words, capsys)
    assert 'there is no image' in error_of(['show-buckets', 'none.png', '--at', '0', '0', *network], capsys)


@pytest.mark.parametrize(('size', 'rounds'), [((12, 10), 40), ((400, 2), 2), ((2, 400), 2)])
def test_the_picture_is_bounded_whatever_the_rounds_and_the_image(
    size: tuple[int, int], rounds: int, tmp_path: Path
) -> None:
    of_rounds, of_image = torch.ones(rounds, *size), torch.rand(*size)
    seen = View(of_rounds.bool(), of_rounds, of_image, of_image)
    draw(np.zeros((*size, 3), np.uint8), seen, 1, 1, 'a title', tmp_path / 'a.png')
    height, width = cv2.imread(str(tmp_path / 'a.png')).shape[:2]
    assert max(height, width) <= 2700


def test_a_name_that_looks_like_mathematics_is_drawn(
    tmp_path: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(photographs / 'coffee.png', '$\\frac$.png')
    weights = str(GOLDEN / 'nlsn_x2_small_official_state_dict.pt')
    main(['show-buckets', '$\\frac$.png', '--at', '20', '30', '--net', 'NLSN', weights, 'num_feat=16', 'num_block=8'])
    assert Path('buckets_$\\frac$.png').stat().st_size > 0


def test_a_name_that_is_no_utf_8_is_drawn_with_marks(
    tmp_path: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    image = os.fsdecode(b'caf\xe9.png')
    try:
        shutil.copy(photographs / 'coffee.png', image)
    except OSError:
        pytest.skip('file names are UTF-8 here')
    weights = str(GOLDEN / 'nlsn_x2_small_official_state_dict.pt')
    main(['show-buckets', image, '--at', '20', '30', '--net', 'NLSN', weights, 'num_feat=16', 'num_block=8'])
    assert 'drawn: buckets_caf\ufffd.png' in capsys.readouterr().out
    assert Path(f'buckets_{image}').stat().st_size > 0


def test_a_layer_of_another_resolution_than_the_image_is_refused(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arch = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1, 'upscale': 2}
    arguments = {'arch': arch, 'after': 'upsample', 'nlsa': {'chunk_size': 16}}
    save_network(WithNLSA(**arguments), Path('a.safetensors'), {'type': 'WithNLSA', 'arguments': arguments})
    words = ['show-buckets', str(photographs / 'coffee.png'), '--at', '20', '30', '--net', 'WithNLSA', 'a.safetensors']
    assert error_of(words, capsys) == (
        'nlsn: the layer works on [242, 194] pixels, the image has [121, 97]: choose another by --layer'
    )
