"""An installed package works without the clone, and the oldest packages that it is tried with are those it lets in."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from conftest import ROOT


def test_an_installed_package_finds_its_option_files_from_anywhere(tmp_path: Path) -> None:
    source, site = tmp_path / 'source', tmp_path / 'site'
    source.mkdir()
    for name in ('nlsn_plugin', 'options'):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('setup.py', 'pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-build-isolation']
    subprocess.run([*pip, '--target', str(site), str(source)], check=True, timeout=300)
    shipped, own = site / 'nlsn_plugin' / 'options', ROOT / 'options'
    found, expected = (sorted(path.relative_to(folder) for path in folder.rglob('*.yml')) for folder in (shipped, own))
    assert found == expected
    templates = ('engine/templates/gallery.html', 'engine/templates/before_after.html')
    weights = [f'weights/nlsn_small_x{scale}.safetensors' for scale in (2, 3, 4)]
    for data in (*templates, *weights, 'paper/table1.csv'):
        assert (site / 'nlsn_plugin' / data).is_file()

    result = subprocess.run(
        [sys.executable, '-m', 'nlsn_plugin', 'train', '-opt', 'train_NLSN_x3'],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(site)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 1
    assert f'nlsn: {site / "nlsn_plugin" / "options" / "train_NLSN_x3.yml"}: there is no ' in result.stderr


def test_the_oldest_packages_are_those_that_setup_lets_in() -> None:
    setup = re.sub(r'EXPORT = .*|\'dev\': .*', '', (ROOT / 'setup.py').read_text())
    allowed = dict(re.findall(r"'([a-z-]+)>=([\d.]+)[';]", setup))
    pinned = dict(re.findall(r'^([a-z-]+)==([\d.]+)$', (ROOT / 'tests' / 'oldest.txt').read_text(), re.MULTILINE))
    assert 'torch' in allowed
    assert allowed.keys() == pinned.keys()
    for name, version in allowed.items():
        assert f'{pinned[name]}.'.startswith(f'{version}.')
