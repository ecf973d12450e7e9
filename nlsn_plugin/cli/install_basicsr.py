"""`nlsn install-basicsr`: installs basicsr 1.4.2, also where `pip install basicsr` fails.

There is no wheel, and on Python 3.13 and later the source distribution cannot be built: its setup.py reads the version
by `exec` into `locals()`, which no longer works there. This command fetches the official source distribution by pip (so
that its mirrors, proxies and certificates apply), checks its SHA-256, repairs those lines, drops the build requirements
that the build does not use (among them torch, several GB), and lets pip build and install it.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from nlsn_plugin.cli.parser import sentence
from nlsn_plugin.errors import UserError

TEXT = 'install basicsr 1.4.2, on Python 3.13 and later too'
VERSION = '1.4.2'
SHA256 = 'b89b595a87ef964cda9913b4d99380ddb6554c965577c0c10cb7b78e31301e87'
REPAIRS = (
    (
        "        exec(compile(f.read(), version_file, 'exec'))\n    return locals()['__version__']",
        '        scope = {}\n'
        "        exec(compile(f.read(), version_file, 'exec'), scope)\n"
        "    return scope['__version__']",
    ),
    ("        setup_requires=['cython', 'numpy', 'torch'],\n", ''),
)


def add(commands: Any) -> None:
    """Add the command to the subparsers `commands`."""
    parser = commands.add_parser('install-basicsr', help=TEXT, description=f'{sentence(TEXT)}.')
    parser.set_defaults(run=lambda args: install_basicsr())


def install_basicsr() -> None:
    """Install basicsr unless it is installed.

    Raises:
        UserError: pip could not fetch, build or install it.
    """
    try:
        print(f'basicsr {importlib.metadata.version("basicsr")} is installed already.')
        return
    except importlib.metadata.PackageNotFoundError:
        pass
    with tempfile.TemporaryDirectory() as folder:
        source = fetch(Path(folder))
        repair(source / 'setup.py')
        if subprocess.run([sys.executable, '-m', 'pip', 'install', str(source)]).returncode:
            raise UserError('pip could not build or install basicsr; its own words stand above')
    print(f'Installed basicsr {VERSION}.')


def fetch(folder: Path) -> Path:
    """Have pip fetch and unpack the source distribution; return the unpacked folder.

    pip then runs setup.py, which fails on Python 3.13 and later; --no-clean keeps what was unpacked before.

    Raises:
        UserError: pip could not fetch it.
    """
    requirement = folder / 'requirement.txt'
    requirement.write_text(f'basicsr=={VERSION} --hash=sha256:{SHA256}\n')
    unpacked = folder / 'unpacked'
    unpacked.mkdir()
    options = ['--no-deps', '--no-binary=basicsr', '--no-build-isolation', '--no-clean', f'--dest={folder}']
    result = subprocess.run(
        [sys.executable, '-m', 'pip', 'download', *options, f'--requirement={requirement}'],
        env={**os.environ, 'TMPDIR': str(unpacked)},  # where pip unpacks
        capture_output=True,
        text=True,
    )
    found = list(unpacked.glob('*/*/setup.py'))
    if len(found) != 1:
        raise UserError(f'pip could not fetch basicsr {VERSION}:\n{result.stdout}{result.stderr}')
    return found[0].parent


def repair(setup: Path) -> None:
    """Apply REPAIRS to a setup.py.

    Raises:
        UserError: the file is not as expected.
    """
    text = setup.read_text(encoding='utf-8')
    for old, new in REPAIRS:
        if text.count(old) != 1:
            raise UserError(f'basicsr {VERSION} is not as expected: {old!r} is not in its setup.py')
        text = text.replace(old, new)
    setup.write_text(text, encoding='utf-8')
