"""Modules of the user's, whose import registers networks, models, data sets, losses and metrics in a toolbox."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from nlsn_plugin.errors import OptionError, first_line

imported: list[str] = []
"""What was imported so far, for other processes to do the same."""


def import_modules(names: Sequence[str], said: str, folders: Iterable[Path]) -> None:
    """Import modules by their dotted names, of `folders` too; what is installed goes before.

    Args:
        names: of modules.
        said: what names them, for messages.
        folders: where they are looked for last.

    Raises:
        OptionError: there is no such module, or it fails.
    """
    if not names:
        return
    looked_in = list(dict.fromkeys(str(folder.resolve()) for folder in folders))
    sys.path += [folder for folder in looked_in if folder not in sys.path]
    for name in names:
        if name.endswith('.py') or not all(part.isidentifier() for part in name.split('.')):
            raise OptionError(f'{said}: {name!r} is no name of a module: for my/nets.py write my.nets')
        try:
            importlib.import_module(name)
        except Exception as error:
            if isinstance(error, ModuleNotFoundError) and error.name and f'{name}.'.startswith(f'{error.name}.'):
                looked = ', '.join(looked_in)
                raise OptionError(f'{said}: there is no module {error.name}, installed or in {looked}') from error
            raise OptionError(f'{said}: importing {name} fails: {first_line(error)}') from error
        if name not in imported:
            imported.append(name)
