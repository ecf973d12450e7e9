"""mmengine's config files: found, read, and changed from the command line."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from mmengine.config import Config
from mmengine.runner import Runner

from nlsn_plugin import checks
from nlsn_plugin.engine.options.documents import shipped_options
from nlsn_plugin.errors import FAILURES, OptionError, UserError, first_line
from nlsn_plugin.files import is_file
from nlsn_plugin.models.checkpoint import nearest_file

FAULTS = (*FAILURES, SyntaxError, yaml.YAMLError)
"""Errors that reading a config may raise: it is a program, any line of which may fail."""
READ_BESIDES = (
    'activation_checkpointing',
    'compile',
    'efficient_conv_bn_eval',
    'find_unused_parameters',
    'model_wrapper_cfg',
    'sync_bn',
)
"""Keys of a config that Runner reads besides those named like its own parameters."""


def read(name: str, options: dict[str, Any]) -> Config:
    """Read a config, and set in it what the command line sets.

    Raises:
        UserError: there is no such config, it does not load, or an option would set something that nothing reads.
    """
    path = find_config(name)
    try:
        cfg = Config.fromfile(path)
    except UserError:
        raise
    except FAULTS as error:
        raise OptionError(fault(path, error)) from error
    known = {*cfg, *READ_BESIDES, *inspect.signature(Runner).parameters} - {'cfg'}
    for key in options:
        if key.split('.')[0] not in known:
            raise OptionError(f'--cfg-options {key}: nothing reads {key.split(".")[0]}{nearest_key(key, cfg)}')
    try:
        cfg.merge_from_dict(options)
    except (AttributeError, LookupError, TypeError) as error:
        obstacles = [f'{key}: {text}' for key in options for text in obstacle(cfg, key)]
        said = obstacles or [f'{", ".join(options)} cannot be set: {first_line(error)}']
        raise OptionError(f'--cfg-options {said[0]}') from error
    return cfg


def find_config(name: str) -> Path:
    """The config of this path, or else the shipped one of this name (`options/mmengine/` and `.py` may be left out)."""
    path = Path(name)
    if is_file(path):
        return path
    shipped = {path.stem: path for path in sorted((shipped_options() / 'mmengine').glob('*.py'))}
    if path.stem in shipped:
        return shipped[path.stem]
    raise UserError(f'there is no config {name}{checks.nearest(path.stem, shipped)}')


def fault(path: Path, error: Exception) -> str:
    """Why a config does not load, and at which line of it, of its bases or of what it imports."""
    if isinstance(error, ImportError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # mmengine's own says where it looked, but not for what
    if isinstance(error, FileNotFoundError) and error.filename:
        return f'{path}: there is no file {error.filename}{nearest_file(Path(error.filename))}'
    if isinstance(error, SyntaxError):
        return f'{path}, or a base of it, line {error.lineno}: {error.msg}: {(error.text or "").strip()}'
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f'{path}, line {error.problem_mark.line + 1}: {error.problem}'
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name == '<module>']
    place = f'{lines[-1].filename}, line {lines[-1].lineno}' if lines else path
    return f'{place}: {type(error).__name__}: {first_line(error)}'


def names_of(value: Any, above: str = '') -> Iterator[str]:
    """Yield all keys in a config, those of nested entries joined by dots."""
    entries: Any = {}
    if isinstance(value, Mapping):
        entries = value
    elif isinstance(value, list):
        entries = dict(enumerate(value))
    for key, entry in entries.items():
        yield f'{above}{key}'
        yield from names_of(entry, f'{above}{key}.')


def nearest_key(key: str, cfg: Config) -> str:
    """A hint at the key of a config that may have been meant: one with this name elsewhere, or one spelt similarly."""
    names = list(names_of(cfg._cfg_dict))
    last = key.split('.')[-1]
    same = [name for name in names if name.endswith(f'.{last}')] if last == key else []
    close = same or get_close_matches(key, names, n=1)
    if not close:
        alike = get_close_matches(last, {name.split('.')[-1] for name in names}, n=1)
        close = [name for name in names if name.split('.')[-1] in alike]
    return f': did you mean {" or ".join(close[:3])}?' if close else f': there are {", ".join(sorted(cfg))}'


def obstacle(cfg: Config, key: str) -> Iterator[str]:
    """Yield, if there is one, the entry of a config on the way to `key` that cannot hold the rest of the key."""
    value: Any = cfg._cfg_dict
    way: list[str] = []
    for name in key.split('.'):
        if isinstance(value, list):
            if not name.isdigit() or int(name) >= len(value):
                yield f'{".".join(way)} is a list of {len(value)}: a number below that is expected, not {name}'
                return
            value = value[int(name)]
        elif isinstance(value, Mapping):
            if name not in value:
                return
            value = value[name]
        else:
            yield f'{".".join(way)} is {value!r}, with no {name} in it'
            return
        way.append(name)
