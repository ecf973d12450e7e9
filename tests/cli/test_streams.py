"""Readers of the output that have seen enough, as `head` has, and disks that are full."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import run
from warm import start


@pytest.mark.parametrize('closed', ['stdout', 'both'])
def test_a_command_that_nobody_reads_ends_without_a_word(closed: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    errors = subprocess.PIPE if closed == 'stdout' else writing
    with start(['-m', 'nlsn_plugin', 'modules', 'EDSR'], stdout=writing, stderr=errors) as process:
        os.close(writing)
        assert process.wait(timeout=120) == 141
        assert process.stderr is None or process.stderr.read() == ''


def test_another_pipe_that_breaks_is_a_defect_to_see(tmp_path: Path) -> None:
    words = (
        'import os, sys\n'
        'from nlsn_plugin.cli import main\n'
        'reading, writing = os.pipe()\n'
        'os.close(reading)\n'
        "sys.modules['nlsn_plugin.cli.main'].run = lambda args: os.write(writing, b'x')\n"
        "main(['modules', 'EDSR'])\n"
    )
    done = run('-c', words, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert 'BrokenPipeError' in done.stderr


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='writes to a disk that is always full')
def test_output_to_a_full_disk_is_one_line() -> None:
    with Path('/dev/full').open('w') as full:
        process = start(['-m', 'nlsn_plugin', 'options'], stdout=full, stderr=subprocess.PIPE)
    with process:
        assert process.wait(timeout=120) == 1
        assert process.stderr is not None
        assert process.stderr.read() == 'nlsn: nothing more can be written: No space left on device\n'


def test_what_is_said_into_closed_streams_goes_nowhere(photographs: Path, tmp_path: Path) -> None:
    command = [sys.executable, '-m', 'nlsn_plugin', 'upscale', str(photographs / 'coffee.png'), '-o', 'a.png']
    words = ['sh', '-c', 'exec "$@" >&- 2>&-', 'sh', *command]
    assert subprocess.run(words, cwd=tmp_path, timeout=120, check=False).returncode == 0
    assert (tmp_path / 'a.png').stat().st_size > 0
