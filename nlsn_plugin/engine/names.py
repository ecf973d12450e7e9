"""Names of files as printable text."""

from __future__ import annotations

import re

CONTROL = re.compile('[\\x00-\\x1f\\x7f-\\x9f]')
"""Matches characters that a terminal obeys, newlines among them; names of files may contain them."""


def readable(text: str) -> str:
    """Replace what is not UTF-8 in a file's name by replacement characters, so that it can be printed and written."""
    return text.encode('utf-8', 'surrogateescape').decode('utf-8', 'replace')


def one_line(text: str) -> str:
    """Make text readable, and escape characters that would begin a new line or control a terminal."""
    return CONTROL.sub(lambda match: match[0].encode('unicode_escape').decode(), readable(text))
