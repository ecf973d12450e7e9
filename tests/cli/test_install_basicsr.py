from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path

import pytest

from nlsn_plugin.cli.install_basicsr import fetch, install_basicsr, repair
from nlsn_plugin.errors import UserError

SETUP = """
version_file = 'version.py'
def get_version():
    with open(version_file, 'r') as f:
        exec(compile(f.read(), version_file, 'exec'))
    return locals()['__version__']
kwargs = dict(
        setup_requires=['cython', 'numpy', 'torch'],
        zip_safe=False)
"""


def test_the_mended_setup_reads_its_version_on_any_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path('version.py').write_text("__version__ = '1.4.2'\n")
    setup = tmp_path / 'setup.py'
    setup.write_text(SETUP)
    repair(setup)
    scope: dict[str, object] = {}
    exec(setup.read_text(), scope)
    assert scope['get_version']() == '1.4.2'
    assert scope['kwargs'] == {'zip_safe': False}


def test_a_setup_that_is_not_as_expected_is_left_alone(tmp_path: Path) -> None:
    setup = tmp_path / 'setup.py'
    setup.write_text('something else')
    with pytest.raises(UserError, match=r'basicsr 1\.4\.2 is not as expected: .* is not in its setup\.py'):
        repair(setup)
    assert setup.read_text() == 'something else'


def test_the_source_is_fetched_by_pip_checked_and_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / 'basicsr-1.4.2'
    source.mkdir()
    (source / 'setup.py').write_text(SETUP)
    (source / 'PKG-INFO').write_text('Metadata-Version: 2.1\nName: basicsr\nVersion: 1.4.2\n')
    index = tmp_path / 'index'
    index.mkdir()
    archive = index / 'basicsr-1.4.2.tar.gz'
    with tarfile.open(archive, 'w:gz') as tar:
        tar.add(source, source.name)
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('PIP_FIND_LINKS', str(index))
    for name in ('one', 'other'):
        (tmp_path / name).mkdir()

    with pytest.raises(UserError, match='DO NOT MATCH THE HASHES'):
        fetch(tmp_path / 'one')
    monkeypatch.setattr('nlsn_plugin.cli.install_basicsr.SHA256', hashlib.sha256(archive.read_bytes()).hexdigest())
    unpacked = fetch(tmp_path / 'other')
    assert (unpacked / 'setup.py').read_text() == SETUP
    repair(unpacked / 'setup.py')
    assert "scope['__version__']" in (unpacked / 'setup.py').read_text()


def test_where_pip_finds_nothing_its_words_are_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('PIP_FIND_LINKS', str(tmp_path))
    with pytest.raises(UserError, match='pip could not fetch basicsr'):
        fetch(tmp_path)


def test_an_installed_basicsr_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    install_basicsr()
    assert 'basicsr 1.4.2 is installed already' in capsys.readouterr().out
