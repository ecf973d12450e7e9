"""YAML without objects, in which each value that does not read is an error with its line."""

from __future__ import annotations

from typing import Any

import yaml


class Loader(yaml.SafeLoader):
    """SafeLoader that raises a YAMLError for values such as 2024-30-11, which looks like a date and is none.

    SafeLoader itself raises what int(), datetime.date() and the like do, without a line.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, ValueError) as error:
            kind = node.tag.rpartition(':')[2]
            said = f"{node.value} does not read as {kind}: write '{node.value}' if it is text"
            raise yaml.constructor.ConstructorError(problem=said, problem_mark=node.start_mark) from error


def load(text: str) -> Any:
    """Read YAML, without executing anything.

    Raises:
        yaml.YAMLError: it is no YAML, or a value in it does not read.
    """
    return yaml.load(text, Loader=Loader)
