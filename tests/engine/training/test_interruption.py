from __future__ import annotations

import subprocess
import sys

from nlsn_plugin.engine.training.interruption import SIGNALS

SAVES = (
    'import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); '
    "print('ready', flush=True); time.sleep(60)"
)
RUNS = f"""
import sys
from nlsn_plugin.engine.training.interruption import SIGNALS, run_interruptibly
for _ in SIGNALS:
    print(run_interruptibly([sys.executable, '-c', {SAVES!r}]), flush=True)
"""


def test_a_command_that_runs_another_hands_on_all_signals() -> None:
    """Also where it inherited that Ctrl-C is ignored, as what a script starts in the background does."""
    ignoring = ['sh', '-c', 'trap "" INT; exec "$@"', 'sh', sys.executable, '-c', RUNS]
    with subprocess.Popen(ignoring, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for number in SIGNALS:
            assert process.stdout.readline() == 'ready\n'
            process.send_signal(number)
            assert process.stdout.readline() == '75\n'
        assert process.wait(timeout=60) == 0
