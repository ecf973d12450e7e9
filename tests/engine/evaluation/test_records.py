"""What was measured stays on disk, whatever becomes of the run that measures on."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from nlsn_plugin.engine.evaluation.records import Records
from nlsn_plugin.errors import SaveError


def test_a_disk_that_is_full_takes_nothing_of_what_was_kept(tmp_path: Path) -> None:
    path = tmp_path / 'records.jsonl'
    records = Records(path)
    for number in range(300):
        records.add(f'{number}', {'psnr_y': float(number)})
    with path.open('a') as file:
        file.write('{"key": "cut sh')
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(SaveError, match=r'records\.jsonl could not be saved: .*; what was saved before is intact'):
            Records(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert len(Records(path).found) == 300
    assert not path.read_text().endswith('cut sh')


def test_what_is_whole_is_not_written_anew(tmp_path: Path) -> None:
    path = tmp_path / 'records.jsonl'
    Records(path).add('a', {'psnr_y': 1.0})
    before = path.stat().st_ino
    assert Records(path).found == {'a': {'key': 'a', 'psnr_y': 1.0}}
    assert path.stat().st_ino == before
