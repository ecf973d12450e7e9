"""`nlsn export`: writes a network as a graph, for ONNX Runtime or for PyTorch without this package."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nlsn_plugin import checks
from nlsn_plugin.cli.parser import sentence
from nlsn_plugin.engine.options.words import pairs
from nlsn_plugin.errors import ArgumentError

TEXT = 'a network as an ONNX file, or as a program of torch.export'


def add(commands: Any) -> None:
    """Add the command to the subparsers `commands`."""
    parser = commands.add_parser(
        'export',
        help=TEXT,
        description=f'{sentence(TEXT)}, for images of any number, height and width. It is compared with the '
        'network before the file is there.',
        epilog='Example: nlsn export nlsn_x2.safetensors -o nlsn_x2.onnx --onnx',
    )
    parser.add_argument('weights', type=Path, metavar='WEIGHTS', help='file of weights, as for nlsn convert')
    parser.add_argument(
        'pairs',
        nargs='*',
        default=[],
        metavar='KEY=VALUE',
        help='arguments of the network that WEIGHTS does not say; type=... too',
    )
    parser.add_argument('-o', '--output', type=Path, required=True, help='file to write')
    form = parser.add_mutually_exclusive_group(required=True)
    form.add_argument('--onnx', action='store_true', help='write ONNX')
    form.add_argument('--torch-export', action='store_true', help='write what torch.export.load reads')
    parser.add_argument(
        '--size', type=int, nargs=2, metavar=('H', 'W'), help='of the only image it takes (default: any)'
    )
    parser.add_argument('--opset', type=int, help='of ONNX, 18 or later (default: 18)')
    parser.add_argument(
        '--param-key', default='params_ema', help='which weights of it, if several (default: params_ema, else params)'
    )
    parser.add_argument('--force', action='store_true', help='replace the file that is there')
    parser.set_defaults(run=export)


def export(args: argparse.Namespace) -> None:
    from nlsn_plugin.engine import conversion
    from nlsn_plugin.engine.export import LEAST_OPSET, export
    from nlsn_plugin.engine.names import readable
    from nlsn_plugin.models.building import network_of, scale_of
    from nlsn_plugin.models.checkpoint import read_stored
    from nlsn_plugin.models.description import describe

    if args.opset is not None and not args.onnx:
        raise ArgumentError('--opset is of ONNX: leave it or --torch-export out')
    height, width = (checks.whole('--size', edge, least=1) for edge in args.size or (1, 1))
    given = pairs(args.pairs)
    kind = given.pop('type', None)
    stored = read_stored(args.weights, args.param_key)
    conversion.check_target(args.weights, args.output, args.force)
    ending = '.onnx' if args.onnx else '.pt2'
    if args.output.suffix != ending:
        raise ArgumentError(f'{args.output}: the ending {ending} is expected')
    description = describe(stored, args.weights, given, kind)
    net = network_of(description, stored.weights, args.weights)

    def say(line: str) -> None:
        print(readable(line))

    say('\n'.join([f'{args.weights}: {description.type} x{scale_of(net)}', *conversion.listed(description)]))
    size = (height, width) if args.size else None
    opset = LEAST_OPSET if args.opset is None else args.opset
    export(net, args.output, description.metadata, onnx=args.onnx, size=size, opset=opset, replaces=args.force, say=say)
