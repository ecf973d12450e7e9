"""Checks of arguments. Each error is one line that names the argument, its value and what is allowed."""

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
"""How many names a message lists at most."""


def whole(name: str, value: Any, least: int | None = None) -> int:
    """Return `value` as an int if it is a whole number (of at least `least`); True and '2' are refused."""
    expected = 'a whole number' + (f' of at least {least}' if least is not None else '')
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or (least is not None and number < least):
        raise ArgumentError(f'{name}={value!r} is not allowed: {expected} is expected')
    return number


def count(name: str, value: Any, least: int | None = None) -> int:
    """Like `whole`, but accept whole floats too: option files write 2.0e+5."""
    return whole(name, int(value) if isinstance(value, float) and value.is_integer() else value, least)


def seed(name: str, value: Any) -> int:
    """Return `value` as an int if it is a seed that PyTorch's generators take: 0 to LARGEST_SEED."""
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
    if not isinstance(value, Hashable) or value not in allowed:  # NumPy arrays do not hash, nor compare to a name
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
"""Packages whose classes and functions take `**kwargs` and ignore them."""


def misfits(called: Callable[..., Any], arguments: Iterable[str], given: int = 0) -> Iterator[tuple[str | None, str]]:
    """Yield what keeps a class or function from being called with these arguments, as (argument, message).

    Arguments that it does not take come under their name, and those that it needs and does not get under None. The
    first `given` parameters are left out.
    """
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
    """The end of a message: the name that may have been meant, or those that there are."""
    known = sorted(among)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f': did you mean {close[0]}?'
    if len(known) > MOST_NAMES:
        close = difflib.get_close_matches(name, known, n=5, cutoff=0)
        return f': the nearest of {len(known)} are {", ".join(close)}'
    return f': there are {", ".join(known)}' if known else ''
