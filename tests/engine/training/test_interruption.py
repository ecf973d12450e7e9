from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from nlsn_plugin.engine.training.interruption import SIGNALS

SAVES = (
    'import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); '
    "print('ready', flush=True); time.sleep(60)"
)
RUNS = f"""
import sys
from nlsn_plugin.engine.training.interruption import run_interruptibly
sys.exit(run_interruptibly([sys.executable, '-c', {SAVES!r}]))
"""


@pytest.mark.parametrize('number', SIGNALS)
def test_a_command_that_runs_another_hands_on_the_signals(number: signal.Signals) -> None:
    """Also where it inherited that Ctrl-C is ignored, as what a script starts in the background does."""
    ignoring = ['sh', '-c', 'trap "" INT; exec "$@"', 'sh', sys.executable, '-c', RUNS]
    with subprocess.Popen(ignoring, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == 'ready\n'
        process.send_signal(number)
        assert process.wait(timeout=60) == 75
