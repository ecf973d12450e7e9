"""The user's own modules, which register networks, models, data sets, losses and metrics when they are imported."""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import nn

from nlsn_plugin.errors import OptionError, first_line

imported: list[str] = []
"""Names of the modules imported so far, so that other processes can import the same."""


def import_modules(names: Sequence[str], said: str, folders: Iterable[Path]) -> None:
    """Import modules by their dotted names, from `folders` too; installed modules take precedence.

    Args:
        names: dotted names of the modules.
        said: the option or key that names them, for messages.
        folders: appended to sys.path.

    Raises:
        OptionError: there is no such module, or its import fails.
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


def digest_of_code(net: nn.Module) -> str | None:
    """SHA-256 of the user's source files that define classes of a network's modules; None if there are none."""
    packages = {name.partition('.')[0] for name in imported}
    classes = {cls for module in net.modules() for cls in type(module).__mro__}
    own = sorted({cls.__module__ for cls in classes if cls.__module__.partition('.')[0] in packages})
    files = [Path(sys.modules[name].__file__ or os.devnull) for name in own]
    return hashlib.sha256(b'\0'.join(file.read_bytes() for file in files)).hexdigest() if own else None
