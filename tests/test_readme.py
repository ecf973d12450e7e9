"""The README is right: its Python runs, its commands parse, its data preparation works, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from conftest import ROOT

from nlsn_plugin.cli import main
from nlsn_plugin.cli.main import build_parser
from nlsn_plugin.engine.documents import find_option_file

README = (ROOT / 'README.md').read_text(encoding='utf-8')


def blocks(language: str) -> list[str]:
    return re.findall(rf'```{language}\n(.*?)```', README, flags=re.DOTALL)


def commands() -> list[list[str]]:
    """Every command of every bash block, its words, without its folder."""
    lines = [line for block in blocks('bash') for line in block.splitlines()]
    return [shlex.split(part) for line in lines for part in line.split(' && ')]


def test_nothing_is_left_to_fill_in() -> None:
    assert set(re.findall(r'\b[A-Z]{3,}_[A-Z_]+\b', README)) == {
        'NLSN_BACKEND',
        'NLSN_FORCE_YML',
        'THP_MEM_ALLOC_ENABLE',
    }


@pytest.mark.parametrize('code', blocks('python'))
def test_python_runs(code: str) -> None:
    exec(compile(code, 'README.md', 'exec'), {})


@pytest.mark.parametrize('words', commands(), ids=' '.join)
def test_commands_are_ones_there_are(words: list[str]) -> None:
    program = Path(words[0]).name
    if program == 'python' and words[1].startswith('tools/'):
        assert (ROOT / words[1]).is_file()
        words = [{'train.py': 'train', 'test.py': 'test'}[Path(words[1]).name], *words[2:]]
    elif program == 'nlsn':
        words = words[1:]
    else:
        assert program in ('python3', 'pip', 'pytest')
        return
    args = build_parser().parse_args(words)
    if hasattr(args, 'opt'):
        assert find_option_file(args.opt).is_file()


def test_data_preparation_makes_what_the_option_files_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photographs: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in commands():
        if words[:2] == ['nlsn', 'prepare']:
            for option in {'--input', '--validation'} & set(words):
                shutil.copytree(photographs, words[words.index(option) + 1])
            main(words[1:])
    for scale in (2, 3, 4):
        text = (ROOT / 'options' / f'train_NLSN_x{scale}.yml').read_text()
        roots = re.findall(r'dataroot_\w+: (.+)', text)
        assert len(roots) == 4
        assert all(Path(root).exists() for root in roots)


def test_links_into_the_repository_lead_somewhere() -> None:
    targets = [target for target in re.findall(r'\]\((.+?)\)', README) if '://' not in target]
    assert targets
    assert all((ROOT / target).is_file() for target in targets)
    named = re.findall(r'`((?:nlsn_plugin|options|tests|tools)/[\w/.]*)`', README)
    assert all((ROOT / path).exists() for path in named)
