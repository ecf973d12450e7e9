"""README and docs are right: their Python runs, their commands parse, their option files pass, their links lead
somewhere; and the README's data preparation makes what the shipped option files name."""

from __future__ import annotations

import gc
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from pages import Example, commands, examples, option_files, paths

from nlsn_plugin.cli import main
from nlsn_plugin.cli.main import parsed
from nlsn_plugin.engine.options.documents import Document, find_option_file
from nlsn_plugin.engine.options.reading import checked

PAGES = [str(path.relative_to(ROOT)) for path in paths()]
OTHER_PROGRAMS = ('python3', 'pip', 'pytest', 'apt-get', 'git', 'cp', 'mkdir')
"""What commands may begin with besides `nlsn` and `python tools/...`."""


def test_nothing_is_left_to_fill_in() -> None:
    readme = (ROOT / 'README.md').read_text(encoding='utf-8')
    assert set(re.findall(r'\b[A-Z]{3,}_[A-Z_]+\b', readme)) == {'NLSN_BACKEND', 'NLSN_FORCE_YML'}


@pytest.mark.usefixtures('as_before')
@pytest.mark.parametrize('example', examples('python'), ids=str)
def test_python_runs(example: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if example.page == 'docs/export.md' and not hasattr(torch.compiler, 'is_exporting'):
        pytest.skip('export needs PyTorch 2.7 or later')
    monkeypatch.chdir(tmp_path)
    exec(compile(example.text, example.page, 'exec'), {'__name__': '__main__'})
    gc.collect()  # a Runner keeps itself alive in a circle, and so the processes of its loaders


@pytest.mark.parametrize('example', commands(), ids=lambda example: f'{example.page}: {example.text}')
def test_commands_are_ones_there_are(example: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    option_files(example.page, tmp_path)
    monkeypatch.chdir(tmp_path)
    words = shlex.split(example.text)
    program = Path(words[0]).name
    if program == 'python' and words[1].startswith('tools/'):
        assert (ROOT / words[1]).is_file()
        name = Path(words[1]).name
        if name not in ('train.py', 'test.py'):
            return
        words = [name.removesuffix('.py'), *words[2:]]
    elif program == 'nlsn':
        words = words[1:]
    else:
        assert program in OTHER_PROGRAMS
        return
    args = parsed(words)
    if hasattr(args, 'opt'):
        assert find_option_file(args.opt).is_file()


@pytest.mark.usefixtures('as_before')
@pytest.mark.parametrize('page', PAGES)
def test_option_files_pass(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in option_files(page, tmp_path):
        document = Document(path)
        checked(document, is_train='train' in document.options)


def test_data_preparation_makes_what_the_option_files_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photographs: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (shlex.split(example.text) for example in commands('README.md')):
        if words[:2] == ['nlsn', 'prepare']:
            for option in {'--input', '--validation'} & set(words):
                shutil.copytree(photographs, words[words.index(option) + 1])
            main(words[1:])
    for scale in (2, 3, 4):
        text = (ROOT / 'options' / f'train_NLSN_x{scale}.yml').read_text()
        roots = re.findall(r'dataroot_\w+: (.+)', text)
        assert len(roots) == 4
        assert all(Path(root).exists() for root in roots)


@pytest.mark.parametrize('page', PAGES)
def test_links_into_the_repository_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding='utf-8')
    targets = [target.split('#')[0] for target in re.findall(r'\]\((.+?)\)', text) if '://' not in target]
    assert targets or page != 'README.md'
    assert all(((ROOT / page).parent / target).exists() for target in targets)
    named = re.findall(r'`((?:nlsn_plugin|options|tests|tools|docs)/[\w/.]*)`', text)
    assert all((ROOT / path).exists() for path in named)
