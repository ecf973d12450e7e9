"""The JSON log of a run that goes on from an earlier iteration than it had reached."""

from __future__ import annotations

import errno
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from basicsr.utils import get_root_logger

from nlsn_plugin.engine.training.journal import Events, Journal


def journal(folder: Path, iteration: int, validates_again: bool = False) -> Journal:
    opt = {'rank': 0, 'name': 'a', 'path': {'experiments_root': str(folder)}, 'train': {'total_iter': 9}}
    opt |= {'logger': {'print_freq': 1, 'use_tb_logger': False}}
    return Journal(opt, iteration, None, validates_again)


def test_what_a_log_has_of_iterations_that_are_made_again_is_dropped(tmp_path: Path) -> None:
    written = journal(tmp_path, 0)
    for iteration in (4, 8, 9):
        written.write({'kind': 'train', 'iter': iteration, 'l_pix': math.nan if iteration == 4 else 0.5})
    journal(tmp_path, 8)
    lines = (tmp_path / 'log.jsonl').read_text().splitlines()

    def refuse(word: str) -> None:
        raise AssertionError(word)

    found = [json.loads(line, parse_constant=refuse) for line in lines]
    assert found == [{'kind': 'train', 'iter': 4}, {'kind': 'train', 'iter': 8, 'l_pix': 0.5}]


def test_what_a_log_has_of_a_validation_that_is_made_again_is_dropped(tmp_path: Path) -> None:
    written = journal(tmp_path, 0)
    for name in ('Set5', 'Set14'):
        written.validation(4, name, {'psnr': 30.0})
    written.write({'kind': 'train', 'iter': 8})
    written.validation(8, 'Set5', {'psnr': 31.0})
    journal(tmp_path, 8, validates_again=True)
    found = [json.loads(line) for line in (tmp_path / 'log.jsonl').read_text().splitlines()]
    assert [(line['kind'], line['iter']) for line in found] == [('validation', 4), ('validation', 4), ('train', 8)]


def test_nothing_is_left_at_the_last_update_however_slow(tmp_path: Path) -> None:
    written, said = journal(tmp_path, 0), []
    written.message.logger = SimpleNamespace(info=said.append)
    written.message.start_time -= 1000
    written.progress(0, 9, [1e-4], 100.0, 0.1, {})
    assert '[eta: 0:00:00,' in said[0]


def test_curves_that_cannot_be_written_do_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def add_scalar(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, 'No space left on device')

    warnings: list[str] = []
    monkeypatch.setattr(get_root_logger(), 'warning', warnings.append)
    written = Events(SimpleNamespace(add_scalar=add_scalar, log_dir='tb_logger/a'))
    written.add_scalar('losses/l_pix', 0.5, 1)
    assert written.log_dir == 'tb_logger/a'
    assert warnings == ['tb_logger/a could not be written: No space left on device']
