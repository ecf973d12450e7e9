from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import run

from nlsn_plugin.garbage import uncollected


@pytest.mark.parametrize('switch', [gc.enable, gc.disable])
def test_nothing_is_collected_within_and_then_as_before(switch: Callable[[], None]) -> None:
    switch()
    was_on = gc.isenabled()
    try:
        with contextlib.suppress(KeyError), uncollected():
            assert not gc.isenabled()
            raise KeyError
        assert gc.isenabled() == was_on
    finally:
        gc.enable()


def test_a_command_collects_what_it_makes_and_looks_for_nothing_among_what_it_imported(tmp_path: Path) -> None:
    code = (
        'import gc, sys\n'
        'from nlsn_plugin.cli import main\n'
        'try:\n'
        "    main(['--version'])\n"
        'except SystemExit:\n'
        '    print(gc.isenabled(), gc.get_freeze_count() > 100_000, len(gc.get_objects()) < 20_000)\n'
    )
    assert run('-c', code, cwd=tmp_path).stdout.splitlines()[1] == 'True True True'
