"""Networks as graphs for other runtimes, ONNX files or programs of torch.export, compared with the networks themselves.

A graph takes any number of images of any height and width, or one image of one size. `ops/traceable.py` makes it
possible.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from math import isqrt
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from nlsn_plugin import __version__
from nlsn_plugin.errors import FAILURES, ExportError, MissingToolboxError, UserError, first_line
from nlsn_plugin.files import write_whole
from nlsn_plugin.layers.nlsa import attentions_of
from nlsn_plugin.models.building import channels_of, scale_of
from nlsn_plugin.models.checkpoint import Metadata
from nlsn_plugin.ops import MAX_BUCKETS

LEAST_OPSET = 18
"""The lowest opset allowed: that of the operators that PyTorch's exporter writes."""

TOLERANCE = 1e-3
"""Largest difference allowed between graph and network, for images in [0, 1]."""

SHARE = 1e-3
"""Share of pixels that may differ by more: where two vertices are equally near, rounding decides the pixel's hash."""

LARGEST = 40_000
"""Number of pixels up to which graph and network are also compared where all MAX_BUCKETS buckets are in use."""

INPUT, OUTPUT = 'lq', 'sr'
DIMENSIONS = {0: 'batch', 2: 'height', 3: 'width'}
EXTRA_FILE = 'nlsn.json'
"""Name of the extra file in which a program of torch.export keeps the metadata."""

Size = tuple[int, int]
Run = Callable[[Tensor], Tensor]


def export(
    net: nn.Module,
    path: Path,
    metadata: Metadata,
    *,
    onnx: bool,
    size: Size | None = None,
    opset: int = LEAST_OPSET,
    replaces: bool = True,
    say: Callable[[str], object] = print,
) -> None:
    """Write a network as a graph, after checking that the graph computes what the network computes.

    Args:
        net: the network, in eval mode, on the CPU.
        path: the file to write.
        metadata: {'type': ..., 'arguments': {...}}, kept in the file.
        onnx: whether to write an ONNX file; otherwise a program of torch.export.
        size: height and width of the one image that the graph takes; None for any number of images of any size.
        opset: opset of the ONNX file.
        replaces: whether a file that is there by then is replaced.
        say: called with each line that tells what was done.

    Raises:
        MissingToolboxError: PyTorch is too old, or what PyTorch needs to write ONNX is not installed.
        ExportError: the network has no such graph, or the graph computes something else; then no file is written.
        SaveError: the file cannot be written.
    """
    check_installed(onnx)
    if onnx:
        check_opset(opset)
    about = {**metadata, 'upscale': scale_of(net), 'producer': f'nlsn_plugin {__version__}'}
    program = trace(net, size)
    model = as_onnx(program, opset, about, size) if onnx else None

    def save(file: Path) -> None:
        if model is None:
            write_program(program, file, about)
        else:
            file.write_bytes(model.SerializeToString())
        if run := loaded(file, onnx, say):
            compare(net, run, shapes_to_compare(net, size), say)

    write_whole(path, save, replaces)
    kind = f'ONNX, opset {opset}' if onnx else f'torch.export of PyTorch {torch.__version__}'
    taken = 'any batch, height and width' if size is None else f'1 image of {size[0]}x{size[1]}'
    say(f'written: {path}, {kind}, {path.stat().st_size / 1e6:.1f} MB, for {taken}')


def check_installed(onnx: bool) -> None:
    """Refuse, before the work, an export for which PyTorch is too old or packages are missing.

    Raises:
        MissingToolboxError: see `export`.
    """
    if not hasattr(torch.compiler, 'is_exporting'):
        raise MissingToolboxError(f'export needs PyTorch 2.7 or later: this is {torch.__version__}')
    missing = [name for name in ('onnx', 'onnxscript') if onnx and find_spec(name) is None]
    if missing:
        raise MissingToolboxError(f'--onnx needs {" and ".join(missing)}: pip install {" ".join(missing)} onnxruntime')


def check_opset(opset: int) -> None:
    """Refuse an opset below LEAST_OPSET, or one that the installed onnx does not know.

    Raises:
        ExportError: see `export`.
    """
    import onnx

    latest = onnx.defs.onnx_opset_version()
    if not LEAST_OPSET <= opset <= latest:
        raise ExportError(f'--opset {opset} is not allowed: onnx {onnx.__version__} takes {LEAST_OPSET} to {latest}')


def trace(net: nn.Module, size: Size | None = None) -> ExportedProgram:
    """Trace a network in eval mode into a graph, for one image of `size` or for any number of images of any size.

    Raises:
        ExportError: the network cannot be traced, or depends on the image's size in a way that a graph cannot express.
        ArgumentError: an attention of the network draws random numbers.
    """
    edge = -(-isqrt(4 * chunk_size_of(net)) // 8) * 8  # several chunks; a multiple of 8, which some networks need
    shape = (2, edge, edge + 8) if size is None else (1, *size)
    dimensions = {number: Dim(name) for number, name in DIMENSIONS.items()} if size is None else None
    try:
        with torch.no_grad():
            program = torch.export.export(net, (image(net, shape),), dynamic_shapes=(dimensions,), strict=False)
    except UserError:
        raise
    except FAILURES as error:
        taken = 'any height and width: try --size H W' if size is None else f'{size[0]}x{size[1]}'
        raise ExportError(f'{type(net).__name__} has no graph for {taken} ({first_line(error)})') from error
    for node in program.graph.nodes:
        node.meta.pop('stack_trace', None)  # it names files of this machine
    return program


def as_onnx(program: ExportedProgram, opset: int, about: dict[str, Any], size: Size | None) -> Any:
    """Convert a program to an onnx.ModelProto, with `about` in its metadata.

    Raises:
        ExportError: the exporter lacks an operator, or writes another opset.
    """
    import onnx

    try:
        written: Any = torch.onnx.export(  # an ONNXProgram, since no path is given
            program,
            (),
            dynamo=True,
            opset_version=opset,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=(DIMENSIONS,) if size is None else None,
            verbose=False,
        )
    except RuntimeError as error:
        raise ExportError(f'PyTorch {torch.__version__} cannot write this as ONNX: {first_line(error)}') from error
    model = written.model_proto
    found = {entry.domain: entry.version for entry in model.opset_import}['']
    if found != opset:
        raise ExportError(f'--opset {opset}: PyTorch {torch.__version__} writes {found} instead')
    model.producer_name, model.producer_version = 'nlsn_plugin', __version__
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}
    onnx.helper.set_model_props(model, texts)
    return model


def write_program(program: ExportedProgram, file: Path, about: dict[str, Any]) -> None:
    with file.open('wb') as opened:
        try:
            torch.export.save(program, opened, extra_files={EXTRA_FILE: json.dumps(about)})
        except ValueError as error:  # raised before PyTorch 2.8 for constants that are not finite
            raise ExportError(f'PyTorch {torch.__version__} cannot write this graph: {first_line(error)}') from error


def loaded(file: Path, onnx: bool, say: Callable[[str], object]) -> Run | None:
    """Load what was written, as a function to run; without a runtime for it say so and return None."""
    if not onnx:
        with file.open('rb') as opened:
            return torch.export.load(opened).module()
    if find_spec('onnxruntime') is None:
        say('not compared with PyTorch: pip install onnxruntime')
        return None
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    try:
        session = onnxruntime.InferenceSession(file.read_bytes(), providers=['CPUExecutionProvider'])
    except (errors.Fail, errors.InvalidGraph, errors.NotImplemented) as error:
        raise ExportError(f'ONNX Runtime {onnxruntime.__version__} does not load it: {first_line(error)}') from error
    say(f'compared in ONNX Runtime {onnxruntime.__version__}:')
    return lambda x: torch.from_numpy(session.run([OUTPUT], {INPUT: x.numpy()})[0])


def compare(net: nn.Module, run: Run, shapes: Sequence[tuple[int, int, int]], say: Callable[[str], object]) -> None:
    """Run network and graph on images of each shape (N, H, W), and compare their outputs.

    Raises:
        ExportError: more than SHARE of the pixels differ by more than TOLERANCE, or some are not finite.
    """
    for shape in shapes:
        x = image(net, shape)
        with torch.no_grad():
            difference = (run(x) - net(x)).abs().amax(dim=1)  # for each pixel
        largest, share = float(difference.max()), float((difference > TOLERANCE).float().mean())
        line = f'{"x".join(map(str, shape))}: largest difference {largest:.1e}'
        if not difference.isfinite().all() or share > SHARE:
            raise ExportError(f'the graph differs from the network, at {line}, {share:.2%} of pixels by > {TOLERANCE}')
        say(f'  {line}' + (f', {share:.2%} of pixels by more than {TOLERANCE}' if share else ''))


def shapes_to_compare(net: nn.Module, size: Size | None) -> list[tuple[int, int, int]]:
    """Shapes (N, H, W) to compare on: fewer pixels than a chunk, whole chunks, a padded chunk, all the buckets."""
    if size is not None:
        return [(1, *size)]
    chunk_size = chunk_size_of(net)
    edge = max(1, isqrt(chunk_size - 1))  # edge^2 < k
    side = max(number for number in range(1, isqrt(chunk_size) + 1) if chunk_size % number == 0)
    shapes = [(1, edge, edge), (1, 2 * side, 2 * chunk_size // side), (2, edge + 1, 3 * edge + 5)]
    edge = isqrt(MAX_BUCKETS * chunk_size) + 1
    return shapes + [(1, edge, edge + 1)] * (edge**2 < LARGEST)


def chunk_size_of(net: nn.Module) -> int:
    """The largest chunk size of a network's attentions; that of the paper if it has none."""
    return max((layer.chunk_size for layer in attentions_of(net)), default=144)


def image(net: nn.Module, shape: tuple[int, int, int]) -> Tensor:
    """Images for a network, [N, C, H, W], of a shape (N, H, W): smooth with some noise, the same at each call."""
    images, height, width = shape
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(images, channels_of(net), height // 8 + 2, width // 8 + 2, generator=generator)
    smooth = F.interpolate(coarse, (height, width), mode='bilinear')
    return (smooth + 0.02 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1)
