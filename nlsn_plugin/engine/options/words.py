"""Options given as KEY=VALUE words of a command line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml

from nlsn_plugin.engine.options.values import load
from nlsn_plugin.errors import ArgumentError


def pairs(words: Iterable[str]) -> dict[str, Any]:
    """Parse KEY=VALUE words, with values in YAML.

    Raises:
        ArgumentError: a word is not of this form, or its value is not YAML.
    """
    found = {}
    for word in words:
        key, sign, value = word.partition('=')
        if not key.isidentifier() or not sign:
            raise ArgumentError(f'{word}: KEY=VALUE is expected, such as num_feat=64')
        try:
            found[key] = load(value)
        except yaml.YAMLError as error:
            raise ArgumentError(f'{word}: {value} is no value') from error
    return found
