"""`nlsn benchmark`: compares networks on benchmark sets."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from nlsn_plugin import checks
from nlsn_plugin.compat import load_toolbox
from nlsn_plugin.errors import UserError
from nlsn_plugin.files import check_folder

TEXT = 'PSNR, SSIM, time and memory of networks on benchmark sets, beside bicubic'


def add(commands: Any) -> None:
    """Add the command to the subparsers `commands`."""
    parser = commands.add_parser(
        'benchmark',
        help=TEXT,
        description=f'{TEXT}. What was measured before a stop is not measured again.',
        epilog='Example: nlsn benchmark --net NLSN nlsn_x2.pt --net EDSR edsr_x2.pth num_feat=256 num_block=32 '
        'res_scale=0.1 --sets Set5 Set14 --scale 2',
    )
    networks = parser.add_argument_group('networks')
    networks.add_argument(
        '-opt',
        dest='option_files',
        nargs='+',
        action='extend',
        help='option files, or names of shipped ones; of one for training, the weights that its run saved last',
    )
    networks.add_argument(
        '--net',
        nargs='+',
        action='append',
        metavar='WORD',
        help='TYPE WEIGHTS [KEY=VALUE ...]: a registered network and its arguments; label=... names it in the tables, '
        'param_key=... says what to take from the file (default: params_ema, else params)',
    )
    networks.add_argument(
        '--scale', type=int, nargs='+', action='extend', choices=[2, 3, 4], help='of --net, or of bicubic (default: 2)'
    )
    networks.add_argument(
        '--n-hashes', type=int, nargs='+', action='extend', help="rounds of hashing (default: the networks' own)"
    )
    networks.add_argument('--seeds', type=int, help='seeds of hashing: their mean and spread (default: 1)')
    networks.add_argument('--tile', type=int, help='enlarge in tiles of so many LR pixels')
    networks.add_argument('--tile-overlap', type=int, help='LR pixels that tiles share (default: 16)')
    networks.add_argument('--self-ensemble', action='store_true', help='mean over eight orientations')
    networks.add_argument('--device', choices=['cpu', 'cuda'], help='(default: cuda if there is a GPU)')
    images = parser.add_argument_group('images')
    images.add_argument(
        '--sets',
        nargs='+',
        action='extend',
        metavar='SET',
        help='names below --data, other folders, or NAME=FOLDER (default: the five)',
    )
    images.add_argument('--data', type=Path, help='folder of the sets (default: datasets/benchmark)')
    images.add_argument('--lr', help="'bicubic' to make LR images, or their folder with {set} and {scale} in its name")
    figures = parser.add_argument_group('figures')
    figures.add_argument('--protocol', default='basicsr', help='basicsr, matlab or vdsr (default: basicsr)')
    figures.add_argument('--gray', choices=['rgb', 'raw'], help="how gray files are scored (default: the protocol's)")
    figures.add_argument('--border', type=int, help='pixels shaved (default: the scale)')
    figures.add_argument('--cost-size', type=int, nargs=2, metavar=('H', 'W'), help='LR image for time and memory')
    figures.add_argument('--no-cost', action='store_true', help='measure neither time nor memory')
    figures.add_argument('--compare-with-paper', nargs='?', const='NLSN', metavar='METHOD', help='show Table 1 beside')
    figures.add_argument('--visuals', type=int, default=3, help='images of each set on the page (default: 3)')
    figures.add_argument('--output', type=Path, default=Path('results/benchmark'), help='(default: results/benchmark)')
    parser.set_defaults(run=benchmark)


def benchmark(args: argparse.Namespace) -> None:
    load_toolbox('basicsr')

    from nlsn_plugin.data.benchmark_sets import BICUBIC, find_sets, open_set
    from nlsn_plugin.engine.devices import device_of
    from nlsn_plugin.engine.evaluation import page, reports, scoring
    from nlsn_plugin.engine.evaluation.contestants import Contestant, Inference
    from nlsn_plugin.engine.names import readable
    from nlsn_plugin.metrics.protocols import find_protocol
    from nlsn_plugin.paper import table1

    refuse_what_does_nothing(args)
    protocol = find_protocol(args.protocol, args.gray)
    if protocol.bicubic == 'y' and args.lr not in (None, BICUBIC):
        raise UserError(
            f'--protocol {args.protocol} computes bicubic from the HR images, not from --lr: choose another protocol'
        )
    recipes, scales = named_networks(args)
    folders = find_sets(args.sets, args.data)
    if absent := [name for name in table1.SETS if args.sets is None and name not in folders]:
        print(f'not there, and left out: {", ".join(absent)}')
    if args.compare_with_paper:
        table1.check(args.compare_with_paper, scales, folders)
    device = device_of(args.device)
    check_folder(args.output)
    contestants = [Contestant(recipe, device) for recipe in recipes]
    refuse_without_hashing(args, any(contestant.attentions for contestant in contestants))
    settings = scoring.Settings(
        protocol,
        args.border,
        Inference(args.tile, overlap(args), args.self_ensemble),
        list(dict.fromkeys(args.n_hashes or [None])),
        args.seeds or 1,
        device,
        None if args.no_cost or not recipes else args.cost_size or [128, 128],
    )
    sets = {scale: [open_set(name, folder, scale, args.lr) for name, folder in folders.items()] for scale in scales}
    results = scoring.run(contestants, sets, settings, args.output)
    results = {'command': shlex.join(['nlsn', *args.words]), **results}
    tables = reports.tables(results, args.compare_with_paper)
    reports.write(results, tables, args.output)
    written = page.write(results, tables, args.output, args.visuals)
    print(readable(f'\n{reports.markdown(tables)}\nSide by side: {written}'))


def named_networks(args: argparse.Namespace) -> tuple[list[Any], list[int]]:
    """Return the recipes of all networks, and the scales to measure at."""
    from nlsn_plugin.data.benchmark_sets import BICUBIC
    from nlsn_plugin.engine.evaluation.contestants import from_option_file, from_words

    scales = list(dict.fromkeys(args.scale or [2]))
    if args.net and len(scales) > 1:
        raise UserError('--net takes one scale: give one --scale, or upscale=... in each --net')
    recipes = [from_option_file(name) for name in args.option_files or []]
    recipes += [from_words(words, scales[0]) for words in args.net or []]
    if args.scale and args.option_files and not args.net:
        raise UserError('--scale comes from the option files: leave it out')
    if args.scale and recipes and not any(recipe.scale in scales for recipe in recipes):
        raise UserError(f'none of the networks has --scale {scales[0]}: leave it out')
    named = [(recipe.label, recipe.scale) for recipe in recipes]
    for number, (label, scale) in enumerate(named):
        if label == BICUBIC:
            raise UserError(
                f'a network cannot be called {BICUBIC}, as the first row is: name it by label=... in its --net'
            )
        if (label, scale) in named[:number]:
            raise UserError(
                f'two networks are called {label} at x{scale}: name one otherwise, by label=... in its --net'
            )
    return recipes, sorted({recipe.scale for recipe in recipes}) or scales


def refuse_what_does_nothing(args: argparse.Namespace) -> None:
    """Refuse options that are out of range, or that have no effect beside the others."""
    for option, least in (('--tile', 1), ('--tile-overlap', 0), ('--seeds', 1), ('--border', 0), ('--visuals', 0)):
        value = getattr(args, option[2:].replace('-', '_'))
        if value is not None:
            checks.whole(option, value, least)
    for rounds in args.n_hashes or []:
        checks.whole('--n-hashes', rounds, least=1)
    for edge in args.cost_size or []:
        checks.whole('--cost-size', edge, least=16)
    if args.tile_overlap is not None and args.tile is None:
        raise UserError('--tile-overlap is for tiles: add --tile, or leave it out')
    if args.tile is not None and args.tile <= overlap(args):
        raise UserError(f'--tile {args.tile} is not more than --tile-overlap {overlap(args)}')
    if args.no_cost and args.cost_size:
        raise UserError('--cost-size and --no-cost: leave one out')
    if args.net or args.option_files:
        return
    of_networks = ('n_hashes', 'seeds', 'tile', 'self_ensemble', 'device', 'cost_size', 'no_cost')
    for option in of_networks:
        if getattr(args, option):
            raise UserError(f'--{option.replace("_", "-")} is for networks: add -opt FILE or --net TYPE WEIGHTS')


def overlap(args: argparse.Namespace) -> int:
    return 16 if args.tile_overlap is None else int(args.tile_overlap)


def refuse_without_hashing(args: argparse.Namespace, hashing: bool) -> None:
    for option in ('n_hashes', 'seeds'):
        if getattr(args, option) and not hashing:
            raise UserError(f'--{option.replace("_", "-")} does nothing: none of the networks hashes; leave it out')
