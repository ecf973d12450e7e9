"""Toolboxes absent or broken: the plugin imports all the same, and says what is wrong when one is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import python

ABSENT = """
import importlib.abc, sys
class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {hidden!r}:
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)
sys.meta_path.insert(0, Hidden())
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in {hidden!r} else real(name, package)
"""


def test_basicsr_imports_after_the_plugin_and_in_spawned_workers(tmp_path: Path) -> None:
    script = tmp_path / 'main.py'
    script.write_text("""
import multiprocessing
import nlsn_plugin
from basicsr.data.degradations import random_add_gaussian_noise
if __name__ == '__main__':
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        print(pool.apply(random_add_gaussian_noise.__name__.upper))
""")
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert result.stdout.strip() == 'RANDOM_ADD_GAUSSIAN_NOISE', result.stderr


@pytest.mark.parametrize(
    ('toolbox', 'use', 'advice'),
    [
        ('basicsr', 'nlsn_plugin.NLSNModel', 'type `nlsn install-basicsr`'),
        ('mmengine', "nlsn_plugin.compat.load_toolbox('mmengine')", 'type `pip install mmengine`'),
    ],
)
def test_an_absent_toolbox_is_missed_only_on_use(toolbox: str, use: str, advice: str) -> None:
    code = (
        ABSENT.format(hidden=[toolbox])
        + f"""
import nlsn_plugin, torch
assert list(nlsn_plugin.toolbox_problems) == [{toolbox!r}]
assert nlsn_plugin.NonLocalSparseAttention(8)(torch.rand(1, 8, 4, 4)).shape == (1, 8, 4, 4)
try:
    {use}
except ImportError as error:
    print(error)
"""
    )
    result = python(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f'{toolbox} is not installed: {advice}')
    assert 'Warning' not in result.stderr


@pytest.mark.parametrize(
    'command', ['train -opt quickstart_NLSN_x2', 'test -opt test_NLSN_x2', 'prepare --input a --output b']
)
def test_a_command_without_basicsr_says_in_one_line_what_to_type(command: str) -> None:
    code = ABSENT.format(hidden=['basicsr']) + f'from nlsn_plugin.cli import main; main({command.split()!r})'
    result = python(code)
    assert result.returncode == 1
    assert result.stderr.startswith('nlsn: basicsr is not installed: type `nlsn install-basicsr`')
    assert result.stderr.count('\n') == 1


@pytest.mark.parametrize(
    ('source', 'reason'),
    [
        ('import not_there_at_all', "No module named 'not_there_at_all'"),
        (
            "raise RuntimeError('operator torchvision::nms does not exist')",
            'pip install --force-reinstall torch torchvision',
        ),
        ("raise ValueError('numpy.dtype size changed')", 'ValueError: numpy.dtype size changed'),
        ('', "No module named 'basicsr.utils'"),
        ('a b', 'SyntaxError: invalid syntax'),
        ("raise ImportError('libGL.so.1: cannot open shared object file')", 'apt-get install -y libgl1 libglib2.0-0'),
    ],
)
def test_a_broken_basicsr_reports_its_own_reason_and_the_fix(tmp_path: Path, source: str, reason: str) -> None:
    (tmp_path / 'basicsr').mkdir()
    (tmp_path / 'basicsr' / '__init__.py').write_text(source)
    result = python('import nlsn_plugin; nlsn_plugin.NLSNModel', tmp_path)
    assert result.returncode == 1
    assert 'nlsn_plugin registers nothing there: basicsr is installed but does not import' in result.stderr
    last = result.stderr.splitlines()[-1]
    assert 'MissingToolboxError' in last
    assert reason in last


def test_a_mere_folder_named_basicsr_is_no_basicsr(tmp_path: Path) -> None:
    (tmp_path / 'basicsr' / 'experiments').mkdir(parents=True)
    code = (
        ABSENT.format(hidden=[])
        + """
import importlib.machinery
spec = importlib.machinery.ModuleSpec('basicsr', None, is_package=True)
importlib.util.find_spec = lambda name, package=None: spec if name == 'basicsr' else real(name, package)
import nlsn_plugin
print(nlsn_plugin.toolbox_problems['basicsr'])
"""
    )
    result = python(code, tmp_path)
    assert result.stdout.startswith('basicsr is not installed'), result.stderr


def test_a_star_import_works_without_basicsr() -> None:
    code = ABSENT.format(hidden=['basicsr']) + 'from nlsn_plugin import *; print(NLSN.__name__)'
    assert python(code).stdout.strip() == 'NLSN'


def test_layers_and_networks_need_neither_toolbox() -> None:
    code = (
        ABSENT.format(hidden=['basicsr', 'mmengine', 'cv2', 'torchvision'])
        + """
from nlsn_plugin import NLSN
import torch
print(NLSN(num_feat=8, num_block=1)(torch.rand(1, 3, 4, 4)).shape)
from nlsn_plugin.models.inference import window_of  # as spandrel's loader does
assert window_of({'type': 'NLSN'}) == 1
"""
    )
    result = python(code)
    assert str(torch.Size([1, 3, 8, 8])) in result.stdout, result.stderr
