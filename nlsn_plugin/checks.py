"""Checks of arguments: one line naming the argument, its value and what is allowed."""

from __future__ import annotations

from nlsn_plugin.errors import ArgumentError


def positive_int(name: str, value: int) -> int:
    """Return `value` if it is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ArgumentError(f'{name}={value!r} is not allowed: a whole number of at least 1 is expected')
    return value


def divisor(name: str, value: int, of_name: str, of: int) -> int:
    """Return `value` if it divides `of`."""
    if of % positive_int(name, value):
        allowed = [d for d in range(1, of + 1) if of % d == 0]
        nearest = min(allowed, key=lambda d: abs(d - value))
        raise ArgumentError(f'{name}={value} does not divide {of_name}={of}: the nearest that does is {nearest}')
    return value


def one_of(name: str, value: object, allowed: tuple[object, ...]) -> object:
    """Return `value` if it is among `allowed`."""
    if value not in allowed:
        raise ArgumentError(f'{name}={value!r} is not allowed: choose one of {", ".join(map(repr, allowed))}')
    return value
