"""`nlsn modules`: lists where in a network WithNLSA can put an attention."""

from __future__ import annotations

import argparse
import re
from typing import Any

from tabulate import tabulate

from nlsn_plugin.archs.bases import build_base, completed
from nlsn_plugin.archs.places import Place, explore, matching
from nlsn_plugin.cli.parser import sentence
from nlsn_plugin.engine.options.words import pairs

TEXT = 'modules of a network after which WithNLSA can put an attention'
USUAL = {'num_in_ch': 3, 'num_out_ch': 3}
"""Values for arguments that some networks of BasicSR need and have no default for."""


def add(commands: Any) -> None:
    """Add the command to the subparsers `commands`."""
    parser = commands.add_parser(
        'modules',
        help=TEXT,
        description=f'{sentence(TEXT)}, with the shape of their output for a small input. A name with * stands for '
        'all that differ from it in numbers alone; it can be written so under `after:`.',
        epilog="Example: nlsn modules RCAN num_feat=64 num_group=10; then after: [conv_first, 'body.*[1::2]']",
    )
    parser.add_argument('arch', metavar='ARCH', help='name of the network in the registry of BasicSR or mmengine')
    parser.add_argument('pairs', nargs='*', default=[], metavar='KEY=VALUE', help='its arguments')
    parser.add_argument('--all', action='store_true', help='list each by itself')
    parser.add_argument('--probe', type=int, nargs=3, metavar=('C', 'H', 'W'), help='the input (default: a small one)')
    parser.set_defaults(run=modules)


def modules(args: argparse.Namespace) -> None:
    arch = completed({'type': args.arch, **pairs(args.pairs)}, USUAL)
    net = build_base(arch)
    trial = explore(net, arch, args.probe)
    found = list(trial.places.values())
    if args.all:
        headers, rows = ['after', 'class', 'output'], [[place.name, place.kind, place.shape] for place in found]
    else:
        headers, rows = ['after', 'modules', 'class', 'output'], grouped(found, list(dict(net.named_modules())))
    print(f'{args.arch} on an input of shape {trial.shape}, in order of execution:\n')
    print(tabulate(rows, headers, tablefmt='github', disable_numparse=True))
    if trial.others:
        print(f'\n{len(trial.others)} other modules do not give an image of features: no attention can follow them.')


def grouped(places: list[Place], names: list[str]) -> list[list[Any]]:
    """Group places into rows: one for those of the same class and shape whose names differ only in numbers."""
    groups: dict[tuple[str, str, tuple[int, ...]], list[str]] = {}
    for place in places:
        numberless = re.sub(r'(?<![^.])\d+(?![^.])', '*', place.name)
        groups.setdefault((numberless, place.kind, place.shape), []).append(place.name)
    rows: list[list[Any]] = []
    for (_, kind, shape), members in groups.items():
        by_end: dict[str, list[str]] = {}
        for name in members:
            by_end.setdefault(name.rpartition('.')[2], []).append(name)
        if pattern := pattern_of(members, names):
            rows.append([pattern, len(members), kind, shape])
        elif len(by_end) < len(members) and all(pattern_of(part, names) for part in by_end.values()):
            rows += [[pattern_of(part, names), len(part), kind, shape] for part in by_end.values()]
        else:
            shown = members if len(members) < 4 else [members[0], members[1], '...', members[-1]]
            rows.append([', '.join(shown), len(members), kind, shape])
    return rows


def pattern_of(members: list[str], names: list[str]) -> str | None:
    """The pattern, with * where `members` differ, if among `names` it matches just these; else None."""
    columns = zip(*(name.split('.') for name in members))
    pattern = '.'.join(column[0] if len(set(column)) == 1 else '*' for column in columns)
    return pattern if set(matching(pattern, dict.fromkeys(names, ''))) == set(members) else None
