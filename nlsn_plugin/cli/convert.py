"""`nlsn convert`: converts weights between kinds of files."""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path
from typing import Any

from nlsn_plugin.archs import NLSN
from nlsn_plugin.cli.parser import sentence
from nlsn_plugin.compat import load_toolbox
from nlsn_plugin.engine.options.words import pairs
from nlsn_plugin.errors import UserError
from nlsn_plugin.models.recognition import untold

TEXT = "weights between the authors' .pt, BasicSR's .pth, safetensors and mmengine's .pth"


def add(commands: Any) -> None:
    """Add the command to the subparsers `commands`."""
    parser = commands.add_parser(
        'convert',
        help=TEXT,
        description=f'{sentence(TEXT)}, tensor for tensor. OUT appears only after both networks have been '
        'built and compared.',
        epilog='Example: nlsn convert net_g_latest.pth nlsn_x2.safetensors -opt train_NLSN_x2',
    )
    parser.add_argument('source', type=Path, metavar='IN', help='file of weights; its kind is seen from its content')
    parser.add_argument('target', type=Path, metavar='OUT', help='file to write')
    parser.add_argument(
        'pairs',
        nargs='*',
        default=[],
        metavar='KEY=VALUE',
        help='arguments of the network that IN does not say; type=... too',
    )
    parser.add_argument(
        '--to',
        choices=['authors', 'basicsr', 'safetensors', 'mmengine'],
        help="(default: by OUT's ending: .pt authors, .pth basicsr, .safetensors)",
    )
    parser.add_argument(
        '-opt',
        dest='option_file',
        metavar='FILE',
        help='option file whose network_g gives the arguments; KEY=VALUE ... take precedence',
    )
    parser.add_argument(
        '--param-key', default='params_ema', help='which weights of IN, if several (default: params_ema, else params)'
    )
    parser.add_argument('--half', action='store_true', help='parameters in float16: half the size, and not lossless')
    parser.add_argument(
        '--embed', action='store_true', help='keep the arguments as a tensor too, for spandrel (safetensors)'
    )
    parser.add_argument(
        '--prefix', default='', help="before all names, such as generator. for mmagic's models (mmengine)"
    )
    parser.add_argument('--force', action='store_true', help='replace OUT')
    parser.set_defaults(run=convert)


def convert(args: argparse.Namespace) -> None:
    from nlsn_plugin.engine import conversion
    from nlsn_plugin.engine.names import readable

    given = {**network_g(args.option_file), **pairs(args.pairs)}
    kind = given.pop('type', None)
    wish = conversion.Wish(args.to, args.half, args.embed, args.prefix, args.force)
    print(readable('\n'.join(conversion.convert(args.source, args.target, wish, kind, given, args.param_key))))


def network_g(option_file: str | None) -> dict[str, Any]:
    """Type and arguments of the network of an option file; {} without one.

    For an NLSN, defaults are filled in for arguments that the file leaves out and that weights do not show.
    """
    if option_file is None:
        return {}
    load_toolbox('basicsr')
    from nlsn_plugin.engine.options.documents import Document, find_option_file
    from nlsn_plugin.engine.options.reading import take_in_modules

    path = find_option_file(option_file)
    document = Document(path)
    take_in_modules(document)
    network = document.options.get('network_g')
    if not isinstance(network, dict):
        raise UserError(f'{path} has no network_g')
    if network.get('type') != 'NLSN':
        return dict(network)
    defaults = {name: parameter.default for name, parameter in inspect.signature(NLSN).parameters.items()}
    unsaid = ['attention', *untold(network.get('attention', defaults['attention']))]
    return {**{name: defaults[name] for name in unsaid}, **network}
