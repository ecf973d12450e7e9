"""`nlsn gallery`: writes a page of pictures before and after."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from nlsn_plugin.cli.parser import sentence
from nlsn_plugin.errors import UserError
from nlsn_plugin.files import check_writable, exists

TEXT = 'a page of pictures before and after, with a slider over each'


def add(commands: Any) -> None:
    """Add the command to the subparsers `commands`."""
    parser = commands.add_parser(
        'gallery',
        help=TEXT,
        description=f'{sentence(TEXT)}: one file of HTML, which needs neither a server nor the internet. A pair that '
        'cannot be shown is reported and left out; the exit status is 1 then.',
        epilog='Pairs are found by name: photo.png and photo_x2.png, the same name in before/ and after/, a picture of '
        '--originals and one of FOLDER; or bicubic and each network, in what nlsn benchmark wrote.',
    )
    parser.add_argument('folder', type=Path, metavar='FOLDER', help='of results of nlsn upscale, or nlsn benchmark')
    parser.add_argument('--originals', type=Path, metavar='FOLDER', help='the pictures before, if they lie elsewhere')
    parser.add_argument('-o', '--output', type=Path, metavar='PAGE', help='(default: FOLDER/before_after.html)')
    parser.add_argument('--force', action='store_true', help='overwrite a page that is there')
    parser.set_defaults(run=gallery)


def gallery(args: argparse.Namespace) -> None:
    from nlsn_plugin.engine.names import one_line
    from nlsn_plugin.engine.upscaling import before_after

    page = args.output or args.folder / 'before_after.html'
    pairs = before_after.find_pairs(args.folder, args.originals)
    if page.suffix.lower() not in ('.html', '.htm'):
        raise UserError(f'-o {page}: the name of a page ends in .html')
    check_writable(page, whole=True)
    if exists(page) and not args.force:
        raise UserError(f'{page} is there already: --force overwrites it')

    def report(line: str) -> None:
        print(one_line(f'nlsn: {line}'), file=sys.stderr)

    count = before_after.write(pairs, page, report, replaces=args.force)
    if count:
        size = f'{page.stat().st_size / 1e6:.1f} MB'
        print(one_line(f'{count} {"pair" if count == 1 else "pairs"}: {page} ({size})'))
    if count < len(pairs):
        sys.exit(1)
