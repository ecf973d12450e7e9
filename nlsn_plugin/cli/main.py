"""The command `nlsn`: one parser for all it does, and one line for whatever the user can put right."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from nlsn_plugin import __version__, checks
from nlsn_plugin.cli import (
    benchmarks,
    convert,
    evaluate,
    export,
    gallery,
    modules,
    paper,
    show_buckets,
    train_mmengine,
    upscale,
)
from nlsn_plugin.cli.install_basicsr import install_basicsr
from nlsn_plugin.cli.parser import Parser, sentence
from nlsn_plugin.cli.streams import until_nobody_reads
from nlsn_plugin.compat import load_toolbox
from nlsn_plugin.engine.training.interruption import ignore_signals
from nlsn_plugin.errors import InterruptedRunError, UserError
from nlsn_plugin.models.writing import check_json


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line `arguments`, by default the process's own; exit with 1 on a user's mistake."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    with until_nobody_reads():
        run(parsed(words))


def run(args: argparse.Namespace) -> None:
    """Run a parsed command line."""
    try:
        args.run(args)
    except UserError as error:
        if os.environ.get('NLSN_TRACE'):
            raise
        if isinstance(error, InterruptedRunError):
            ignore_signals()
        print(f'nlsn: {error}', file=sys.stderr)
        sys.exit(error.status)
    except KeyboardInterrupt:
        sys.exit(130)


def parsed(words: list[str]) -> argparse.Namespace:
    """A command line; KEY=VALUE words of a command that takes them may stand anywhere in it."""
    parser = build_parser()
    args, others = parser.parse_known_args(words, argparse.Namespace(words=words))
    if not hasattr(args, 'pairs') or any(word.startswith('-') or '=' not in word for word in others):
        return parser.parse_args(words, argparse.Namespace(words=words))  # says what it does not know
    args.pairs += others
    return args


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog='nlsn',
        description='Non-Local Sparse Network: super-resolution training and testing on BasicSR.',
        epilog='Set NLSN_TRACE=1 to see where an error arose.',
    )
    parser.add_argument('--version', action='version', version=f'nlsn_plugin {__version__}')
    commands = parser.add_subparsers(required=True, metavar='COMMAND')
    for name, run, text in (
        ('train', train, 'train a network by an option file'),
        ('test', test, 'test a network on benchmark sets by an option file'),
    ):
        add_run_arguments(commands.add_parser(name, help=text, description=sentence(text) + '.'), run)
    add_prepare_arguments(
        commands.add_parser(
            'prepare',
            help='make training or test data from a folder of images',
            description='Make training data (LMDBs of sub-images) or test data (folders) from a folder of HR images; '
            'LR images are made by MATLAB-style bicubic.',
        )
    )
    text = 'kill a run again and again, and see whether it ends as if it had not been'
    command = commands.add_parser('check-resume', help=text, description=sentence(text) + '.')
    command.add_argument('-opt', required=True, help='option file, or the name of a shipped one')
    command.add_argument('--kills', type=int, default=30, help='how often (default: 30)')
    command.add_argument('--seed', type=int, default=0, help='of the moments (default: 0)')
    command.add_argument('--force_yml', nargs='+', metavar='KEY=VALUE', default=[], help='set options')
    command.set_defaults(run=check_resume)
    text = 'what an option file may say'
    command = commands.add_parser('options', help=text, description=sentence(text) + '.')
    command.add_argument('--test', action='store_true', help='option files for testing, rather than for training')
    command.add_argument('--json-schema', type=Path, help='write the schema here, for editors that complete from it')
    command.set_defaults(run=show_options)
    upscale.add(commands)
    gallery.add(commands)
    convert.add(commands)
    export.add(commands)
    evaluate.add(commands)
    paper.add(commands)
    show_buckets.add(commands)
    train_mmengine.add(commands)
    modules.add(commands)
    benchmarks.add(commands)
    text = 'install basicsr 1.4.2, on Python 3.13 and later too'
    command = commands.add_parser('install-basicsr', help=text, description=sentence(text) + '.')
    command.set_defaults(run=lambda args: install_basicsr())
    return parser


def add_run_arguments(parser: argparse.ArgumentParser, run: object) -> None:
    """BasicSR's command line."""
    parser.add_argument('-opt', required=True, help='option file, or the name of a shipped one')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm'], default='none', help='job launcher')
    parser.add_argument('--auto_resume', action='store_true', help='go on from the newest state of the experiment')
    parser.add_argument('--archive', action='store_true', help='move an older run of this name aside and begin anew')
    parser.add_argument('--debug', action='store_true', help='validate and save every 8 updates, print each')
    parser.add_argument('--local_rank', type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument('--force_yml', nargs='+', metavar='KEY=VALUE', help='set options, such as train:total_iter=100')
    parser.set_defaults(run=run)


def add_prepare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--input', type=Path, nargs='+', help='folders of HR images')
    parser.add_argument('--output', type=Path, help='folder to write to')
    parser.add_argument('--scale', type=int, nargs='+', choices=[2, 3, 4], help='reductions (default: 2)')
    parser.add_argument('--test', action='store_true', help='make test data: whole images in HR/ and LR_bicubic/')
    parser.add_argument(
        '--validation', type=Path, nargs='+', help='folders to validate on, such as Set5/HR: made beside, in benchmark/'
    )
    parser.add_argument('--lr', help='folder of given LR images, such as DIV2K_train_LR_bicubic/X{scale}')
    parser.add_argument('--name', help='what the LMDBs are called (default: DIV2K_train)')
    parser.add_argument('--crop-size', type=int, help='edge of an HR sub-image, pixels (default: 480)')
    parser.add_argument('--step', type=int, help='distance of HR sub-images, pixels (default: 240)')
    parser.add_argument('--storage', choices=['png', 'raw'], help='raw: larger, and nothing to decode (default: png)')
    parser.add_argument('--workers', type=int, help='processes (default: one for each core)')
    parser.add_argument(
        '--check', type=Path, nargs='+', metavar='LMDB', help='check LMDBs, or folders of LMDBs, instead'
    )
    parser.set_defaults(run=prepare)


# The commands import what they run only once BasicSR is known to be there: those modules need it.


def train(args: argparse.Namespace) -> None:
    load_toolbox('basicsr')
    from nlsn_plugin.engine.training.run import train

    train(args)


def test(args: argparse.Namespace) -> None:
    load_toolbox('basicsr')
    from nlsn_plugin.engine.training.run import test

    test(args)


def check_resume(args: argparse.Namespace) -> None:
    load_toolbox('basicsr')
    from nlsn_plugin.engine.training import resume_check

    kills = checks.whole('--kills', args.kills, least=1)
    resume_check.run(args.opt, kills, args.seed, args.force_yml)


def show_options(args: argparse.Namespace) -> None:
    from nlsn_plugin.engine.options import schema

    options = schema.TestOptions if args.test else schema.TrainingOptions
    if args.json_schema:
        check_json(args.json_schema)
        args.json_schema.write_text(json.dumps(options.model_json_schema(), indent=1) + '\n')
    else:
        print('\n'.join(schema.documented(options)))


def prepare(args: argparse.Namespace) -> None:
    load_toolbox('basicsr')
    from nlsn_plugin.data.images import list_images
    from nlsn_plugin.data.prepare import prepare_test_data, prepare_training_data

    given = {key: value for key, value in vars(args).items() if value is not None and value is not False}
    for option in {'crop_size', 'step'} & given.keys():
        checks.whole(f'--{option.replace("_", "-")}', given[option], least=1)
    if '/' in given.get('name', ''):
        raise UserError(f'--name {args.name}: a name without folders is expected')
    workers = checks.whole('--workers', args.workers, least=1) if args.workers is not None else None
    others: tuple[str, ...]
    if args.check:
        others = ('input', 'output', 'scale', 'test', 'validation', 'lr', 'name', 'crop_size', 'step', 'storage')
        refuse_options(given, others, 'is for making data: leave it or --check out')
        from nlsn_plugin.data.lmdb_check import check

        print('\n'.join(check(args.check, workers)))
        return
    for option in ('input', 'output'):
        if option not in given:
            raise UserError(f'--{option} is missing: nlsn prepare --input FOLDER --output FOLDER')
    scales = args.scale or [2]
    if args.test:
        others = ('validation', 'name', 'crop_size', 'step', 'storage')
        refuse_options(given, others, 'is for training data: leave it or --test out')
        made = prepare_test_data(args.input, args.output, scales, args.lr, workers)
    else:
        validation = [folder.resolve() for folder in args.validation or []]
        for folder in validation:
            list_images([folder])  # is there, before hours of work
        chosen = {key: given[key] for key in ('name', 'crop_size', 'step', 'storage', 'lr') if key in given}
        made = prepare_training_data(args.input, args.output, scales=scales, workers=workers, **chosen)
        for folder in validation:
            name = folder.parent.name if folder.name == 'HR' else folder.name
            made += prepare_test_data(folder, args.output.parent / 'benchmark' / name, scales, workers=workers)
    print('ready: ' + '\n       '.join(map(str, made)))


def refuse_options(given: Iterable[str], others: Iterable[str], advice: str) -> None:
    """Refuse what would be read and do nothing."""
    for option in others:
        if option in given:
            raise UserError(f'--{option.replace("_", "-")} {advice}')
