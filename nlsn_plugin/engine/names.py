"""Names of files as text."""

from __future__ import annotations


def readable(text: str) -> str:
    """With marks where a file's name is no UTF-8, so that it can be printed, and written."""
    return text.encode('utf-8', 'surrogateescape').decode('utf-8', 'replace')
