"""Checks of arguments: one line naming the argument, its value and what is allowed."""

from __future__ import annotations

import difflib
import inspect
import math
import operator
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from numbers import Real
from typing import Any

from nlsn_plugin.errors import ArgumentError

LARGEST_SEED = 2**63 - 1
MOST_NAMES = 20
"""That a message lists."""


def whole(name: str, value: Any, least: int | None = None) -> int:
    """Return `value` as an int if it is a whole number (of at least `least`), which True and '2' are not."""
    expected = 'a whole number' + (f' of at least {least}' if least is not None else '')
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or (least is not None and number < least):
        raise ArgumentError(f'{name}={value!r} is not allowed: {expected} is expected')
    return number


def count(name: str, value: Any, least: int | None = None) -> int:
    """`whole`, which takes whole floats too: option files write 2.0e+5."""
    return whole(name, int(value) if isinstance(value, float) and value.is_integer() else value, least)


def seed(name: str, value: Any) -> int:
    """Return `value` if it is one that PyTorch's generators take."""
    number = whole(name, value, least=0)
    if number > LARGEST_SEED:
        raise ArgumentError(f'{name}={number} is not allowed: a whole number of at most {LARGEST_SEED} is expected')
    return number


def real(name: str, value: Any) -> float:
    """Return `value` as a float if it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        hint = ' (in YAML write 0.1, or !!float 1e-1)' if isinstance(value, str) else ''
        raise ArgumentError(f'{name}={value!r} is not allowed: a number is expected{hint}')
    number = float(value)
    if not math.isfinite(number):
        raise ArgumentError(f'{name}={value!r} is not allowed: a finite number is expected')
    return number


def boolean(name: str, value: Any) -> bool:
    """Return `value` if it is True or False."""
    if not isinstance(value, bool):
        raise ArgumentError(f'{name}={value!r} is not allowed: true or false is expected')
    return value


def divisor(name: str, value: Any, of_name: str, of: int) -> int:
    """Return `value` if it is a whole number that divides `of`."""
    number = whole(name, value, least=1)
    if of % number:
        nearest = min((d for d in range(1, of + 1) if of % d == 0), key=lambda d: abs(d - number))
        raise ArgumentError(f'{name}={number} does not divide {of_name}={of}: the nearest that does is {nearest}')
    return number


def one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> Any:
    """Return `value` if it is among `allowed`."""
    if not isinstance(value, Hashable) or value not in allowed:  # NumPy's arrays, which are not, are equal to no name
        raise ArgumentError(f'{name}={value!r} is not allowed: choose one of {", ".join(map(repr, allowed))}')
    return value


def sequence(name: str, value: Any) -> Sequence[Any]:
    """Return `value` if it is a list or a tuple."""
    if not isinstance(value, (list, tuple)):
        raise ArgumentError(f'{name}={value!r} is not allowed: a list is expected')
    return value


def mapping(name: str, value: Any) -> dict[Any, Any]:
    """Return `value` if it is a dict."""
    if not isinstance(value, dict):
        raise ArgumentError(f'{name}={value!r} is not allowed: names and values are expected')
    return value


IGNORES_KWARGS = ('basicsr.archs.', 'basicsr.metrics.')
"""Modules whose `**kwargs` nobody reads."""


def misfits(called: Callable[..., Any], arguments: Iterable[str], given: int = 0) -> Iterator[tuple[str | None, str]]:
    """Arguments (besides the first `given`) that a class or function does not take, or needs and has not (None)."""
    parameters = inspect.signature(called).parameters
    takes_any = [name for name, parameter in parameters.items() if parameter.kind is parameter.VAR_KEYWORD]
    if takes_any and not called.__module__.startswith(IGNORES_KWARGS):
        return
    known = [name for name in list(parameters)[given:] if name not in takes_any]
    for key in arguments:
        if key not in known:
            yield key, f'{called.__name__} takes no {key}{nearest(str(key), known)}'
    for key in known:
        parameter = parameters[key]
        is_needed = parameter.default is parameter.empty and parameter.kind is not parameter.VAR_POSITIONAL
        if is_needed and key not in arguments:
            yield None, f'{called.__name__} needs {key}'


def nearest(name: str, among: Iterable[str]) -> str:
    """A hint at the name that may have been meant."""
    known = sorted(among)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f': did you mean {close[0]}?'
    if len(known) > MOST_NAMES:
        close = difflib.get_close_matches(name, known, n=5, cutoff=0)
        return f': the nearest of {len(known)} are {", ".join(close)}'
    return f': there are {", ".join(known)}' if known else ''
