"""Graphs for other runtimes: each against the network itself, at sizes that differ in how they are chunked."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import golden, like_the_released, official, python, relative_error
from torch import Tensor, nn
from torch.export import ExportedProgram

from nlsn_plugin import NLSN, NonLocalSparseAttention, ops
from nlsn_plugin.engine import export
from nlsn_plugin.errors import ArgumentError, ExportError, MissingToolboxError

if not hasattr(torch.compiler, 'is_exporting'):
    pytest.skip(f'export needs PyTorch 2.7 or later: this is {torch.__version__}', allow_module_level=True)

ARGUMENTS = {'num_feat': 8, 'num_block': 1, 'n_hashes': 2, 'chunk_size': 16, 'upscale': 2, 'res_scale': 1.0}
ABOUT = {'type': 'NLSN', 'arguments': ARGUMENTS, 'upscale': 2}
SHAPES = [
    (1, 1, 1),
    (1, 3, 5),  # fewer pixels than a chunk
    (1, 4, 4),  # one chunk
    (1, 1, 17),  # a tail of one pixel
    (1, 7, 9),  # an odd quotient, a padded tail
    (3, 8, 6),  # whole chunks, several images
    (1, 45, 45),  # 126 buckets
    (1, 46, 47),  # 128 buckets, for more chunks than that
    (2, 61, 53),
]


@pytest.fixture(scope='module')
def net() -> NLSN:
    torch.manual_seed(0)
    return NLSN(**ARGUMENTS).eval()


@pytest.fixture(scope='module')
def program(net: NLSN) -> ExportedProgram:
    return export.trace(net)


@pytest.fixture(scope='module')
def onnx_file(program: ExportedProgram, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip('onnxscript')
    path = tmp_path_factory.mktemp('onnx') / 'net.onnx'
    path.write_bytes(export.as_onnx(program, export.LEAST_OPSET, ABOUT, None).SerializeToString())
    return path


@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_one_onnx_file_equals_the_network_at_every_size(
    shape: tuple[int, int, int], net: NLSN, onnx_file: Path
) -> None:
    pytest.importorskip('onnxruntime')
    run = export.loaded(onnx_file, onnx=True, say=print)
    assert run is not None
    x = torch.rand(shape[0], 3, *shape[1:], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(run(x), net(x), rtol=0, atol=1e-5)


def test_the_onnx_file_says_what_it_is(onnx_file: Path) -> None:
    import onnx

    model = onnx.load(onnx_file)
    onnx.checker.check_model(model, full_check=True)
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(about['arguments']) == ARGUMENTS
    assert (about['type'], about['upscale'], model.producer_name) == ('NLSN', '2', 'nlsn_plugin')
    taken, made = model.graph.input[0], model.graph.output[0]
    sizes = [dim.dim_param or dim.dim_value for dim in taken.type.tensor_type.shape.dim]
    assert (taken.name, made.name, sizes) == ('lq', 'sr', ['batch', 3, 'height', 'width'])
    assert {entry.domain for entry in model.opset_import} <= {''}
    assert b'nlsn_plugin/ops' not in onnx_file.read_bytes()  # no paths of the machine


def test_a_program_runs_without_this_package(net: NLSN, program: ExportedProgram, tmp_path: Path) -> None:
    export.write_program(program, tmp_path / 'net.pt2', ABOUT)
    images = {str(shape): torch.rand(shape[0], 3, *shape[1:]) for shape in SHAPES}
    torch.save(images, tmp_path / 'images.pt')
    python(
        f"""
import sys, json, torch
sys.modules['nlsn_plugin'] = None
said = {{'nlsn.json': ''}}
run = torch.export.load({str(tmp_path / 'net.pt2')!r}, extra_files=said).module()
images = torch.load({str(tmp_path / 'images.pt')!r})
with torch.no_grad():
    made = {{name: run(x) for name, x in images.items()}}
torch.save((made, json.loads(said['nlsn.json'])), {str(tmp_path / 'made.pt')!r})
"""
    ).check_returncode()
    made, said = torch.load(tmp_path / 'made.pt')
    assert said == ABOUT
    for name, x in images.items():
        with torch.no_grad():
            torch.testing.assert_close(made[name], net(x), rtol=0, atol=1e-5)


def test_a_graph_of_one_size_equals_the_released_network(tmp_path: Path) -> None:
    pytest.importorskip('onnxscript')
    pytest.importorskip('onnxruntime')
    config, arrays = golden('nlsn_x2_small')
    net = like_the_released(config)
    net.load_state_dict(official('nlsn_x2_small'))
    x = torch.tensor(arrays['x'])
    height, width = x.shape[-2:]
    torch.manual_seed(int(arrays['seed']))  # the rotations that the released network drew, in place of the banks
    for layer in net.modules():
        if isinstance(layer, NonLocalSparseAttention):
            half = ops.count_buckets(height * width, layer.chunk_size) // 2
            layer.rotation_bank = ops.draw_rotations(layer.channels // layer.reduction, layer.n_hashes, half)
    lines: list[str] = []
    about = {'type': 'NLSN', 'arguments': {}}
    export.export(net, tmp_path / 'net.onnx', about, onnx=True, size=(height, width), say=lines.append)
    run = export.loaded(tmp_path / 'net.onnx', onnx=True, say=print)
    assert run is not None
    assert relative_error(run(x).numpy(), arrays['y']) < 1e-5
    assert lines[-1].endswith(f'for 1 image of {height}x{width}')


class Shift(nn.Module):
    """A network whose graph computes something else, by as much as it is told."""

    upscale = 1

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = shift
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + (self.shift if torch.compiler.is_exporting() else 0)


@pytest.mark.parametrize('shift', [0.01, float('nan')])
def test_a_graph_that_differs_leaves_no_file_and_the_old_one_alone(shift: float, tmp_path: Path) -> None:
    path = tmp_path / 'net.pt2'
    path.write_text('before')
    said = r'the graph differs from the network, at 1x11x11: largest difference|PyTorch 2\.7\S* cannot write this graph'
    with pytest.raises(ExportError, match=said):
        export.export(Shift(shift).eval(), path, {'type': 'Shift', 'arguments': {}}, onnx=False)
    assert [file.name for file in tmp_path.iterdir()] == ['net.pt2']
    assert path.read_text() == 'before'


def test_pixels_that_were_hashed_otherwise_are_told_and_not_refused() -> None:
    net = Shift(0).eval()

    def run(x: Tensor) -> Tensor:
        y = net(x).detach().clone()
        y[0, :, 0, 0] += 0.01
        return y

    lines: list[str] = []
    export.compare(net, run, [(1, 40, 50)], lines.append)
    assert lines == ['  1x40x50: largest difference 1.0e-02, 0.05% of pixels by more than 0.001']
    with pytest.raises(ExportError, match=r'0\.25% of pixels'):
        export.compare(net, run, [(1, 20, 20)], lines.append)


def test_a_network_that_depends_on_the_size_otherwise_has_graphs_of_one_size() -> None:
    torch.manual_seed(0)
    net = NLSN(num_feat=8, num_block=1, attention='local').eval()
    with pytest.raises(ExportError, match='NLSN has no graph for any height and width: try --size H W'):
        export.trace(net)
    x = torch.rand(1, 3, 25, 14)
    with torch.no_grad():
        torch.testing.assert_close(export.trace(net, (25, 14)).module()(x), net(x))


def test_a_network_that_fails_on_a_size_is_one_line() -> None:
    from basicsr.archs.rrdbnet_arch import RRDBNet

    net = RRDBNet(3, 3, scale=2, num_feat=4, num_block=1, num_grow_ch=4).eval()
    with pytest.raises(ExportError, match=r'^RRDBNet has no graph for 25x25 \(AssertionError\)$'):
        export.trace(net, (25, 25))


def test_windows_have_graphs_of_one_size() -> None:
    torch.manual_seed(0)
    layer = NonLocalSparseAttention(3, 1, 16, reduction=1, window=6).eval()
    with pytest.raises(ArgumentError, match='window=6 cannot be exported for any height and width'):
        export.trace(layer)
    x = torch.rand(1, 3, 13, 14)
    with torch.no_grad():
        torch.testing.assert_close(export.trace(layer, (13, 14)).module()(x), layer(x))


@pytest.mark.parametrize('chunk_size', [1, 7, 16, 144])
def test_the_sizes_compared_are_of_every_kind(chunk_size: int) -> None:
    few, whole, padded, many = (
        height * width / chunk_size
        for _, height, width in export.shapes_to_compare(NonLocalSparseAttention(4, chunk_size=chunk_size), None)
    )
    assert few < 1 or chunk_size == 1
    assert whole == 4
    assert padded % 1 or chunk_size == 1
    assert many > ops.MAX_BUCKETS
    assert export.shapes_to_compare(NonLocalSparseAttention(4), (5, 6)) == [(1, 5, 6)]


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lines: list[str] = []
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    assert export.loaded(tmp_path / 'net.onnx', onnx=True, say=lines.append) is None
    assert lines == ['not compared with PyTorch: pip install onnxruntime']
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    export.check_installed(onnx=False)
    with pytest.raises(MissingToolboxError, match='--onnx needs onnxscript: pip install onnxscript'):
        export.check_installed(onnx=True)
    monkeypatch.delattr(torch.compiler, 'is_exporting')
    with pytest.raises(MissingToolboxError, match=r'export needs PyTorch 2\.7 or later: this is'):
        export.check_installed(onnx=False)


@pytest.mark.parametrize('opset', [17, 99])
def test_an_opset_that_there_is_not_is_refused(opset: int) -> None:
    pytest.importorskip('onnx')
    with pytest.raises(ExportError, match=rf'--opset {opset} is not allowed: onnx \S+ takes 18 to \d\d'):
        export.check_opset(opset)
