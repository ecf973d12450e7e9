"""The README and the pages in docs/, and the examples in them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from conftest import ROOT


@dataclass(frozen=True)
class Example:
    """A code block of a page, or one command of it.

    Attributes:
        page: path of the page in the repository.
        number: number of the block among the page's blocks of its language, from 1.
        text: the text between the fences, or the command.
    """

    page: str
    number: int
    text: str

    def __str__(self) -> str:
        return f'{self.page}-{self.number}'


def paths() -> list[Path]:
    """Paths of all pages, the README first."""
    return [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]


def examples(language: str, page: str | None = None) -> list[Example]:
    """Code blocks of a language, of one page or of all pages."""
    found = []
    for path in paths():
        name = str(path.relative_to(ROOT))
        texts = re.findall(rf'^```{language}\n(.*?)^```', path.read_text(encoding='utf-8'), re.DOTALL | re.MULTILINE)
        if page in (None, name):
            found += [Example(name, number, text) for number, text in enumerate(texts, 1)]
    return found


def commands(page: str | None = None) -> list[Example]:
    """Commands of all bash blocks, of one page or of all pages.

    A backslash at the end of a line continues it, `#` begins a comment, and commands joined by `&&` are separate.
    """
    found = []
    for block in examples('bash', page):
        for line in block.text.replace('\\\n', ' ').splitlines():
            parts = ' '.join(map(shlex.quote, shlex.split(line, comments=True))).split(" '&&' ")
            found += [Example(block.page, block.number, part) for part in parts if part]
    return found


def option_files(page: str, folder: Path) -> list[Path]:
    """Write the option files that a page shows, and the modules that they name; return the paths of the option files.

    These are the YAML and Python blocks whose first line is `# NAME.yml` or `# NAME.py`.
    """
    written = []
    for block in [*examples('python', page), *examples('yaml', page)]:
        if name := re.match(r'# (\S+\.(yml|py))$', block.text.splitlines()[0]):
            path = folder / name[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
            written.append(path)
    return [path for path in written if path.suffix == '.yml']
