"""Commands in processes of their own that need not import the package, which takes most of a short command's time.

A process that has imported it and done nothing else forks for each of them.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

ENVIRONMENT = 'PYTEST_CURRENT_TEST'
"""The variable that is another in each test, and decides nothing."""


def run_warm(words: list[str], cwd: Path, timeout: float) -> subprocess.CompletedProcess[str] | None:
    """Run an interpreter on `words`, as `subprocess.run` does; None if it has to start anew, in another environment."""
    server, environment = start()
    if environment != decisive():
        return None
    with tempfile.TemporaryDirectory() as folder:
        out, error = Path(folder, 'out'), Path(folder, 'error')
        assert server.stdin
        assert server.stdout
        server.stdin.write(json.dumps([words, str(cwd), str(out), str(error)]) + '\n')
        server.stdin.flush()
        watch = threading.Timer(timeout, os.killpg, (server.pid, signal.SIGKILL))
        watch.start()
        try:
            status = server.stdout.readline()
        finally:
            watch.cancel()
        if not status:
            start.cache_clear()  # for the tests that follow
            raise AssertionError(f'{words}: not ended within {timeout} s, or the process that forks has itself ended')
        return subprocess.CompletedProcess(words, int(status), out.read_text(), error.read_text())


@functools.cache
def start() -> tuple[subprocess.Popen[str], dict[str, str]]:
    """The process that forks, in a group with what it forks, and its environment."""
    words, pipe = [sys.executable, __file__], subprocess.PIPE
    server = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, start_new_session=True)
    atexit.register(server.communicate)  # which closes its input, and so ends it
    return server, decisive()


def decisive() -> dict[str, str]:
    """The environment, but for what libraries note there for themselves, as PyTorch's compiler does."""
    return {name: value for name, value in os.environ.items() if name != ENVIRONMENT and not name.startswith('_')}


def serve() -> None:
    """Fork for each line of standard input, and print its status."""
    import nlsn_plugin.cli
    import nlsn_plugin.engine.training.run  # noqa: F401

    for line in sys.stdin:
        words, cwd, out, error = json.loads(line)
        child = os.fork()
        if child == 0:
            become(words, cwd, out, error)
            return
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def become(words: list[str], cwd: str, out: str, error: str) -> None:
    """Do what the interpreter does with `words`."""
    writing = os.O_CREAT | os.O_WRONLY
    for number, (path, mode) in enumerate([(os.devnull, os.O_RDONLY), (out, writing), (error, writing)]):
        os.dup2(os.open(path, mode), number)
    os.chdir(cwd)
    if words[0] == '-c':
        sys.path[0] = ''
        sys.argv = ['-c', *words[2:]]
        exec(compile(words[1], '<string>', 'exec'), {'__name__': '__main__'})
    elif words[0] == '-m':
        sys.path[0] = cwd
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name='__main__', alter_sys=True)
    else:
        sys.path[0] = str(Path(words[0]).parent)
        sys.argv = words
        runpy.run_path(words[0], run_name='__main__')


if __name__ == '__main__':
    serve()
