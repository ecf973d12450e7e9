from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from warm import start

from nlsn_plugin.engine.training.interruption import SIGNALS, Interruption, interruptible

SAVES = (
    'import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); '
    "print('ready', flush=True); time.sleep(60)"
)
RUNS = """
import sys
from nlsn_plugin.engine.training.interruption import run_interruptibly
for command in sys.argv[1:]:
    print(*run_interruptibly([sys.executable, '-c', command]), flush=True)
"""


def test_a_command_that_runs_another_hands_on_all_signals() -> None:
    """Also where it inherited that Ctrl-C is ignored, as what a script starts in the background does."""
    commands = [SAVES] * len(SIGNALS)
    ignoring = ['sh', '-c', 'trap "" INT; exec "$@"', 'sh', sys.executable, '-c', RUNS, *commands]
    with subprocess.Popen(ignoring, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for number in SIGNALS:
            assert process.stdout.readline() == 'ready\n'
            process.send_signal(number)
            assert process.stdout.readline() == '75 True\n'
        assert process.wait(timeout=60) == 0


def test_under_nohup_the_terminal_may_go() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible() as interruption:
            signal.raise_signal(signal.SIGHUP)
            assert not interruption.wanted()
            signal.raise_signal(signal.SIGTERM)
            assert interruption.wanted()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_second_ctrl_c_ends_at_once_whatever_came_before() -> None:
    interruption = Interruption()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        interruption.note(number, None)
        assert interruption.wanted()
        assert interruption.signal == signal.SIGTERM
    with pytest.raises(KeyboardInterrupt):
        interruption.note(signal.SIGINT, None)


def test_a_command_that_is_asked_too_late_or_never_is_told_from_the_other() -> None:
    ends = SAVES.replace('75', '0')
    with start(['-c', RUNS, ends, 'pass'], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == 'ready\n'
        process.terminate()
        assert process.stdout.readline() == '0 True\n'
        assert process.stdout.readline() == '0 False\n'
        assert process.wait(timeout=60) == 0
