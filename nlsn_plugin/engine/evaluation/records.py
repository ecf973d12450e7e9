"""Records that an evaluation keeps on disk: figures, by digests of all that they depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nlsn_plugin.data.workshop import named
from nlsn_plugin.files import whole_lines, write_whole

Record = dict[str, Any]


class Records:
    """Records in a file of JSON lines, by keys, each of which is the digest of all that its record depends on.

    Args:
        path: the file, which may exist; lines that were cut short, or that are no such records, are dropped from it.

    Attributes:
        found: the records, by key.

    Raises:
        SaveError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with named(path):
            lines = (line for line in whole_lines(path) if isinstance(line, dict))
            self.found: dict[str, Record] = {line['key']: line for line in lines if isinstance(line.get('key'), str)}
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = ''.join(json.dumps(record) + '\n' for record in self.found.values())
            if not path.exists() or path.read_text() != kept:
                write_whole(path, lambda temporary: temporary.write_text(kept))

    def add(self, key: str, record: Record) -> None:
        self.found[key] = {'key': key, **record}
        with named(self.path), self.path.open('a') as file:
            file.write(json.dumps(self.found[key]) + '\n')


def digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def plain(label: str) -> str:
    """Make a label fit for a file name: all but letters, digits, '-' and '.' become '_'."""
    return ''.join(letter if letter.isalnum() or letter in '-.' else '_' for letter in label)
