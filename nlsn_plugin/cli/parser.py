"""The command line's parser: one line for a mistake, with the nearest valid choice."""

from __future__ import annotations

import argparse
import re
from typing import NoReturn

from nlsn_plugin.checks import nearest

INVALID_CHOICE = re.compile(r"(.*invalid choice: )'?(.*?)'? \(choose from (.*)\)", re.DOTALL)


class Parser(argparse.ArgumentParser):
    """argparse's, without the usage above each mistake."""

    def error(self, message: str) -> NoReturn:
        """Exit with 2."""
        if found := INVALID_CHOICE.fullmatch(message):
            before, word, listed = found.groups()
            choices = [choice.strip("' ") for choice in listed.split(',')]
            message = f"{before}'{word}'{nearest(word, choices)}"  # with quotes as Python 3.14 has them, numbers too
        self.exit(2, f'{self.prog}: {message} ({self.prog} --help says more)\n')


def sentence(text: str) -> str:
    """With a capital letter, and all others as they are."""
    return text[:1].upper() + text[1:]
