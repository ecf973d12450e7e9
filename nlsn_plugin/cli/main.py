"""The command `nlsn`: its parser, and the handling of errors, with one line for those that the user can put right."""

from __future__ import annotations

import argparse
import errno
import multiprocessing
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from nlsn_plugin import __version__
from nlsn_plugin.cli import (
    benchmark,
    convert,
    export,
    gallery,
    install_basicsr,
    measure,
    modules,
    paper,
    prepare,
    runs,
    show_buckets,
    train_mmengine,
    upscale,
)
from nlsn_plugin.cli.parser import Parser
from nlsn_plugin.cli.streams import while_output_is_taken
from nlsn_plugin.custom_imports import import_modules
from nlsn_plugin.engine.training.interruption import ignore_signals
from nlsn_plugin.errors import InterruptedRunError, UserError

COMMANDS = (
    runs,
    prepare,
    upscale,
    gallery,
    convert,
    export,
    benchmark,
    paper,
    show_buckets,
    train_mmengine,
    modules,
    measure,
    install_basicsr,
)
"""Modules that add the commands, in the order in which `nlsn --help` lists them."""


IMPORT = 'import this Python module of your own first, so that what it registers is found (may be repeated)'
OF_THE_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
"""Error numbers for a path of the user's that may not be read or written, or cannot exist."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line `arguments`, by default the process's own.

    A user's mistake ends the process with status 1, or 2 where the words do not parse; an interrupted run with 75.
    """
    if sys.platform == 'linux' and multiprocessing.get_start_method(allow_none=True) is None:
        # The default before Python 3.14. With the fork server that 3.14 uses, PyTorch's workers would outlive a killed
        # process: they watch for the end of their parent, which is then the server, and the server waits for them.
        multiprocessing.set_start_method('fork')
    words = sys.argv[1:] if arguments is None else list(arguments)
    with while_output_is_taken():
        run(parsed(words))


def run(args: argparse.Namespace) -> None:
    """Run a parsed command line."""
    try:
        import_modules(args.imports, '--import', [Path.cwd()])
        args.run(args)
    except UserError as error:
        if os.environ.get('NLSN_TRACE'):
            raise
        if isinstance(error, InterruptedRunError):
            ignore_signals()  # all is saved: another signal must not change the status
        print(f'nlsn: {error}', file=sys.stderr)
        sys.exit(error.status)
    except OSError as error:
        if error.errno not in OF_THE_PLACE or error.filename is None or os.environ.get('NLSN_TRACE'):
            raise
        print(f'nlsn: {error.filename}: {error.strerror}', file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def parsed(words: list[str]) -> argparse.Namespace:
    """Parse a command line, in which the KEY=VALUE words of a command that takes them may stand anywhere."""
    parser = build_parser()
    args, others = parser.parse_known_args(words, argparse.Namespace(words=words))
    if not hasattr(args, 'pairs') or any(word.startswith('-') or '=' not in word for word in others):
        return parser.parse_args(words, argparse.Namespace(words=words))  # which names the words it does not know
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
    for module in COMMANDS:
        module.add(commands)
    for command in commands.choices.values():
        command.add_argument('--import', dest='imports', action='append', default=[], metavar='MODULE', help=IMPORT)
    return parser
