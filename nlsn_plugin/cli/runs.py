"""`nlsn train` and `nlsn test`, with BasicSR's own command line; `nlsn check-resume` and `nlsn options`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from nlsn_plugin import checks
from nlsn_plugin.cli.parser import sentence
from nlsn_plugin.compat import load_toolbox
from nlsn_plugin.files import check_json, write_text

TRAIN = 'train a network as an option file says'
TEST = 'test a network on benchmark sets as an option file says'
CHECK_RESUME = 'kill and resume a run again and again, and check that it ends like an undisturbed one'
OPTIONS = 'list the keys that an option file may have'
OPTION_FILE = 'option file, or the name of a shipped one'


def add(commands: Any) -> None:
    """Add the commands to the subparsers `commands`."""
    parser = commands.add_parser('train', help=TRAIN, description=f'{sentence(TRAIN)}.')
    add_run(parser)
    parser.add_argument('--auto_resume', action='store_true', help='go on from the newest state of the experiment')
    parser.add_argument('--debug', action='store_true', help='validate and save every 8 updates, print each')
    parser.set_defaults(run=train)

    parser = commands.add_parser('test', help=TEST, description=f'{sentence(TEST)}.')
    add_run(parser)
    for option in ('--auto_resume', '--debug'):  # BasicSR's test.py takes them too
        parser.add_argument(option, action='store_true', help=argparse.SUPPRESS)
    parser.set_defaults(run=test)

    parser = commands.add_parser('check-resume', help=CHECK_RESUME, description=f'{sentence(CHECK_RESUME)}.')
    parser.add_argument('-opt', required=True, help=OPTION_FILE)
    parser.add_argument('--kills', type=int, default=30, help='number of kills (default: 30)')
    parser.add_argument('--seed', type=int, default=0, help='seed of the random moments of the kills (default: 0)')
    parser.add_argument('--force_yml', nargs='+', metavar='KEY=VALUE', default=[], help='set options')
    parser.set_defaults(run=check_resume)

    parser = commands.add_parser('options', help=OPTIONS, description=f'{sentence(OPTIONS)}.')
    parser.add_argument('--test', action='store_true', help='option files for testing, rather than for training')
    parser.add_argument('--json-schema', type=Path, help='write the schema here, for editors that complete from it')
    parser.set_defaults(run=show_options)


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the options of BasicSR's command line that training and testing share."""
    parser.add_argument('-opt', required=True, help=OPTION_FILE)
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm'], default='none', help='job launcher')
    parser.add_argument('--archive', action='store_true', help='move an older run of this name aside and begin anew')
    # Older launchers pass it, and BasicSR's own command line takes it. It is ignored: the environment says the same.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument('--force_yml', nargs='+', metavar='KEY=VALUE', help='set options, such as train:total_iter=100')


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
        write_text(args.json_schema, json.dumps(options.model_json_schema(), indent=1) + '\n')
    else:
        print('\n'.join(schema.documented(options)))
