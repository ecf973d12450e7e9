"""Values in YAML that look like a date or a number, and are none."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import error_of
from option_file import write

from nlsn_plugin.engine.options.words import pairs
from nlsn_plugin.errors import ArgumentError


@pytest.mark.parametrize('value', ['2024-30-11', '!!int 2024x', '!!bool maybe', '!!timestamp noon'])
def test_a_value_that_does_not_read_is_one_line(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / 'a.yml', f'scale: 2\nname: {value}\n')
    assert f'nlsn: {path}, line 2: {value.split()[-1]} does not read as ' in error_of(['train', '-opt', path], capsys)
    on_the_line = error_of(['train', '-opt', 'train_NLSN_x2', '--force_yml', f'name={value}'], capsys)
    assert on_the_line == f'nlsn: --force_yml name={value}: {value} is no value'
    monkeypatch.setenv('NLSN_FORCE_YML', f"'name={value}'")
    in_the_environment = error_of(['train', '-opt', 'train_NLSN_x2'], capsys)
    assert in_the_environment == f'nlsn: NLSN_FORCE_YML name={value}: {value} is no value'


def test_a_word_whose_value_does_not_read_is_named() -> None:
    with pytest.raises(ArgumentError, match='res_scale=2024-30-11: 2024-30-11 is no value'):
        pairs(['res_scale=2024-30-11'])
    assert pairs(['num_feat=64', 'res_scale=0.1', 'type=NLSN', 'attention_at=[1, 2]']) == {
        'num_feat': 64,
        'res_scale': 0.1,
        'type': 'NLSN',
        'attention_at': [1, 2],
    }
