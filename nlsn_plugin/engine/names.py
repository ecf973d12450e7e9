"""Names of files as text."""

from __future__ import annotations

import re

CONTROL = re.compile('[\\x00-\\x1f\\x7f-\\x9f]')
"""Characters that a terminal obeys, a new line among them; names of files may have them."""


def readable(text: str) -> str:
    """With marks where a file's name is no UTF-8, so that it can be printed, and written."""
    return text.encode('utf-8', 'surrogateescape').decode('utf-8', 'replace')


def one_line(text: str) -> str:
    """Readable, with Python's escapes for what would begin another line, or tell a terminal what to do."""
    return CONTROL.sub(lambda match: match[0].encode('unicode_escape').decode(), readable(text))
