"""The command line's parser. It reports a mistake in one line, with the nearest valid choice."""

from __future__ import annotations

import argparse
import re
from typing import NoReturn

from nlsn_plugin.checks import nearest

INVALID_CHOICE = re.compile(r"(.*invalid choice: )'?(.*?)'? \(choose from (.*)\)", re.DOTALL)


class Parser(argparse.ArgumentParser):
    """ArgumentParser that prints no usage above an error."""

    def error(self, message: str) -> NoReturn:
        """Print the error in one line, with the nearest valid choice, and exit with 2."""
        if found := INVALID_CHOICE.fullmatch(message):
            before, word, listed = found.groups()
            choices = [choice.strip("' ") for choice in listed.split(',')]
            message = f"{before}'{word}'{nearest(word, choices)}"  # quoted as by Python 3.14, numbers too
        self.exit(2, f'{self.prog}: {message} ({self.prog} --help says more)\n')


def sentence(text: str) -> str:
    """Capitalise the first letter; unlike str.capitalize, leave the others as they are."""
    return text[:1].upper() + text[1:]
