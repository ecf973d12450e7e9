from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import error_of

from nlsn_plugin import NLSN
from nlsn_plugin.cli import main
from nlsn_plugin.models.formats import save_network

if not hasattr(torch.compiler, 'is_exporting'):
    pytest.skip(f'export needs PyTorch 2.7 or later: this is {torch.__version__}', allow_module_level=True)

ARGUMENTS = {'num_feat': 8, 'num_block': 1, 'n_hashes': 2, 'chunk_size': 16}


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save_network(NLSN(**ARGUMENTS), 'net.pth')  # says neither n_hashes nor chunk_size
    return 'net.pth'


def test_an_onnx_file(weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip('onnxscript')
    onnxruntime = pytest.importorskip('onnxruntime')
    main(['export', weights, 'n_hashes=2', 'chunk_size=16', '-o', 'net.onnx', '--onnx'])
    *_, said, few, whole, padded, many, written = capsys.readouterr().out.splitlines()
    assert said == f'compared in ONNX Runtime {onnxruntime.__version__}:'
    for line, shape in zip((few, whole, padded, many), ('1x3x3', '1x8x8', '2x4x14', '1x46x47')):
        name, difference = line.split(': largest difference ')
        assert name == f'  {shape}'
        assert float(difference) < 1e-5
    assert written.startswith('written: net.onnx, ONNX, opset 18, ')
    assert written.endswith(', for any batch, height and width')
    about = onnxruntime.InferenceSession('net.onnx').get_modelmeta().custom_metadata_map
    assert '"chunk_size": 16' in about['arguments']
    assert about['upscale'] == '2'


def test_a_program_of_one_size(weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ['export', weights, 'n_hashes=2', 'chunk_size=16', '-o', 'net.pt2', '--torch-export', '--size', '9', '7']
    main(words)
    *_, compared, written = capsys.readouterr().out.splitlines()
    assert compared.startswith('  1x9x7: largest difference ')
    assert written.endswith(', for 1 image of 9x7')
    x = torch.rand(1, 3, 9, 7)
    assert torch.export.load('net.pt2').module()(x).shape == (1, 3, 18, 14)
    assert error_of(words, capsys) == 'nlsn: net.pt2 is there already: --force replaces it'


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--onnx', '--size', '0', '5'], '--size=0 is not allowed: a whole number of at least 1 is expected'),
        (['--torch-export', '--opset', '18'], '--opset is of ONNX: leave it or --torch-export out'),
        (['--onnx', '-o', 'none/net.onnx'], 'there is no folder none'),
        (['--onnx', '-o', '.'], '. is a folder: name the file in it'),
        (['--onnx', '-o', 'net.pt'], 'net.pt: the ending .onnx is expected'),
        (['--torch-export'], 'net.onnx: the ending .pt2 is expected'),
    ],
)
def test_mistakes_are_told_before_any_work(
    words: list[str], message: str, weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert error_of(['export', weights, '-o', 'net.onnx', *words], capsys) == f'nlsn: {message}'
    assert not Path('net.onnx').exists()


def test_an_opset_of_0_is_no_default(weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip('onnxscript')
    line = error_of(['export', weights, '-o', 'net.onnx', '--onnx', '--opset', '0'], capsys)
    assert line.startswith('nlsn: --opset 0 is not allowed: onnx ')
    assert not Path('net.onnx').exists()


@pytest.mark.parametrize(('ending', 'form'), [('pt2', '--torch-export'), ('onnx', '--onnx')])
def test_a_name_that_is_no_utf_8_is_printed_with_marks(
    ending: str, form: str, weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if ending == 'onnx':
        pytest.importorskip('onnxscript')
    copy, graph = os.fsdecode(b'caf\xe9.pth'), os.fsdecode(b'caf\xe9.' + ending.encode())
    try:
        shutil.copy(weights, copy)
    except OSError:
        pytest.skip('file names are UTF-8 here')
    main(['export', copy, 'n_hashes=2', 'chunk_size=16', '-o', graph, form, '--size', '9', '7'])
    said, *_, written = capsys.readouterr().out.splitlines()
    assert said == 'caf\ufffd.pth: NLSN x2'
    assert written.startswith(f'written: caf\ufffd.{ending}, ')


def test_arguments_and_weights_that_are_wrong(weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ['-o', 'net.onnx', '--onnx']
    assert 'did you mean n_hashes?' in error_of(['export', weights, 'n_hash=2', *words], capsys)
    assert 'did you mean net.pth?' in error_of(['export', 'nett.pth', *words], capsys)
    assert 'eval_seed=None cannot be exported' in error_of(['export', weights, 'eval_seed=null', *words], capsys)
    with pytest.raises(SystemExit):
        main(['export', weights, '-o', 'net.onnx'])
    assert 'one of the arguments --onnx --torch-export is required' in capsys.readouterr().err
