"""Classes that an option file names, and the arguments that it gives them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from nlsn_plugin import checks
from nlsn_plugin.archs.bases import registered_in_basicsr
from nlsn_plugin.engine.options.documents import Keys
from nlsn_plugin.errors import ArgumentError

Options = dict[str, Any]
Misfits = Iterator[tuple[Keys, str]]
"""The place of each mistake in an option file, and what is wrong there."""


def misfits_of_class(keys: Keys, name: str, arguments: Options | None, registry: Any) -> Misfits:
    """Yield a mistake if a registry does not have a class; otherwise those in its arguments, unless these are None."""
    found = registered_in_basicsr(registry, name)
    if found is None:
        place = keys if arguments is None else (*keys, 'type')
        yield place, f'no {name}{checks.nearest(name, registry.keys())}'
    elif arguments is not None:
        yield from misfits_of_call(keys, found, without_type(arguments))


def misfits_of_call(keys: Keys, called: Callable[..., Any], arguments: Options, given: int = 0) -> Misfits:
    """Yield arguments that a class or function does not take, or needs and lacks; its first `given` are supplied."""
    for key, text in checks.misfits(called, arguments, given):
        yield (keys if key is None else (*keys, key)), text


def misfits_of_values(
    keys: Keys, arguments: Options, allowed: Mapping[str, Callable[[str, Any], object]] | None = None
) -> Misfits:
    """Yield numbers that YAML takes for text, and values that the checks in `allowed`, by argument name, refuse."""
    for key, value in arguments.items():
        misspelt = [part for part in (value if isinstance(value, list) else [value]) if is_misspelt(part)]
        if misspelt:
            hint = '(in YAML write 0.0001, or !!float 1e-4)' if math.isfinite(float(misspelt[0])) else 'and no number'
            yield (*keys, key), f'{misspelt[0]!r} is text {hint}'
        elif allowed and key in allowed:
            try:
                allowed[key](key, value)
            except ArgumentError as error:
                yield (*keys, key), str(error).removeprefix(f'{key}=')


def is_misspelt(value: Any) -> bool:
    """Whether a value is a number that YAML has taken for text, as it does 1e-4."""
    if not isinstance(value, str):
        return False
    try:
        float(value)
    except ValueError:
        return False
    return True


def networks_of(opt: Options) -> list[str]:
    """The keys of an option file's networks: network_g, network_d and the like."""
    return [key for key in opt if key.startswith('network_') and opt[key]]


def resumed_networks(opt: Options) -> list[str]:
    """The networks whose weights a resumed run takes from its own files: all but path: ignore_resume_networks."""
    ignored = opt['path'].get('ignore_resume_networks') or ()
    return [name for name in networks_of(opt) if name not in ignored]


def without_type(options: Options) -> Options:
    """The arguments of a class, without the `type` that names it."""
    return {key: value for key, value in options.items() if key != 'type'}
