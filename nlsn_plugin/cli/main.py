"""The command `nlsn`: one parser for all it does, and one line for whatever the user can put right."""

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
"""Each adds what it knows; `nlsn --help` lists them in this order."""


IMPORT = 'import this Python module of your own first, so that what it registers is found (may be repeated)'
OF_THE_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
"""What the system says of places that a user named, and that are not to be read, or written, or cannot be."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line `arguments`, by default the process's own; exit with 1 on a user's mistake."""
    if sys.platform == 'linux' and multiprocessing.get_start_method(allow_none=True) is None:
        # Python's own way before 3.14. Forked off its server, workers of PyTorch's would outlive a process that is
        # killed: they look whether the server is there, which waits for them.
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
            ignore_signals()  # all is saved, and the exit status is to say so
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
    for module in COMMANDS:
        module.add(commands)
    for command in commands.choices.values():
        command.add_argument('--import', dest='imports', action='append', default=[], metavar='MODULE', help=IMPORT)
    return parser
