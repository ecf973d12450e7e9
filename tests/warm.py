"""Commands in processes of their own, without the imports that take most of a short command's time.

A server process does these imports and nothing else, and forks for each command.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import torch

COMMANDS = ('nlsn_plugin.cli', 'nlsn_plugin.engine.training.run')
"""Modules that the package's commands import."""
OTHERS = ('torch._dynamo', 'scipy.stats')
"""Modules that take long to import and belong neither to this project nor to a toolbox."""
READ_LATE = ('GLOO_', 'LOCAL_RANK', 'MASTER_', 'NLSN_', 'PATH', 'PYTEST_CURRENT_TEST', 'PYTHONIOENCODING', 'RANK')
READ_LATE += ('SLURM_', 'WORLD_SIZE', '_')
"""Prefixes of the environment variables that are not read on import, and so may differ from the server's. Those with an
underscore are set by libraries for their own use, as by PyTorch's compiler."""


class Process:
    """A process that was forked for a command, with the interface of `subprocess.Popen`.

    It leads a session, and so a process group, of its own.

    Attributes:
        args: the command line after the interpreter.
        stdout, stderr: pipes from the process; None where it writes elsewhere.
        returncode: exit status, negative for a signal; None until `poll` or `wait` has found that it ended.
        pid: number of the process.
    """

    def __init__(self, words: list[str], answers: int, pipes: dict[str, int]) -> None:
        self.args = words
        self.answers = os.fdopen(answers)
        self.stdout, self.stderr = (os.fdopen(pipes[name]) if name in pipes else None for name in ('stdout', 'stderr'))
        self.returncode: int | None = None
        self.pid = answer(self.answers)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is not None:
            self.kill()
        for pipe in filter(None, (self.stdout, self.stderr)):  # otherwise it may block on a full pipe for ever
            pipe.close()
        self.wait()
        self.answers.close()

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self.answers], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = answer(self.answers)
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self.poll() is None:
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the process, and those that it has started unless they have left its group."""
        with contextlib.suppress(ProcessLookupError):
            if self.poll() is None:
                os.killpg(self.pid, signal.SIGKILL)


def answer(answers: IO[str]) -> int:
    """Read the next number, a pid or an exit status, that the server's forks have written."""
    line = answers.readline()
    if not line:
        start_server.cache_clear()  # so that the tests that follow start another
        raise AssertionError('the process that forks for commands has itself ended')
    return int(line)


def start(
    words: Iterable[object],
    cwd: Path | None = None,
    *,
    stdin: Any = subprocess.DEVNULL,  # or a file; stdout and stderr may also be subprocess.PIPE
    stdout: Any = None,
    stderr: Any = None,
    env: dict[str, str] | None = None,
    imported: tuple[str, ...] = COMMANDS,
) -> Process | subprocess.Popen[str]:
    """Start an interpreter with `words` as its command line, like `subprocess.Popen`.

    It is forked from the server, unless there is a GPU or `env` differs from the server's environment in a variable
    that may be read on import.
    """
    words = [str(word) for word in words]
    env = {**os.environ} if env is None else env
    streams = {'stdin': stdin, 'stdout': stdout, 'stderr': stderr}
    server, given = (None, {}) if torch.cuda.is_available() else start_server(imported)  # CUDA does not survive a fork
    if server is None or decisive(env) != given:
        return subprocess.Popen([sys.executable, *words], cwd=cwd, env=env, text=True, **streams)
    with contextlib.ExitStack() as open_here:
        pipes, descriptors = {}, []
        for number, (name, stream) in enumerate(streams.items()):
            if stream == subprocess.PIPE:
                pipes[name], stream = os.pipe()
                open_here.callback(os.close, stream)
            elif stream == subprocess.DEVNULL:
                stream = open_here.enter_context(Path(os.devnull).open('r+b'))
            elif stream is None:
                stream = number
            descriptors.append(stream if isinstance(stream, int) else stream.fileno())
        answers, answering = os.pipe()
        open_here.callback(os.close, answering)
        request = json.dumps([words, str(cwd or Path.cwd()), env]).encode()
        with contextlib.suppress(BrokenPipeError):  # the server has ended, which `answer` reports
            server.sendall(len(request).to_bytes(4, 'big'))
            socket.send_fds(server, [request[:1]], [*descriptors, answering])
            server.sendall(request[1:])
    return Process(words, answers, pipes)


def run_warm(
    words: Iterable[object], cwd: Path | None = None, *, timeout: float, imported: tuple[str, ...] = COMMANDS
) -> subprocess.CompletedProcess[str]:
    """Run an interpreter with `words` as its command line, like `subprocess.run`, and capture its output."""
    with tempfile.TemporaryFile('w+') as out, tempfile.TemporaryFile('w+') as error:
        with start(words, cwd, stdout=out, stderr=error, imported=imported) as process:
            status = process.wait(timeout)
        for file in (out, error):
            file.seek(0)
        return subprocess.CompletedProcess(process.args, status, out.read(), error.read())


@functools.cache
def start_server(imported: tuple[str, ...]) -> tuple[socket.socket, dict[str, str]]:
    """Start the server; return the socket for requests to it, and the `decisive` part of its environment."""
    ours, its = socket.socketpair()
    command = [sys.executable, __file__, str(its.fileno()), *imported]
    null = subprocess.DEVNULL
    process = subprocess.Popen(command, pass_fds=[its.fileno()], stdin=null, stdout=null, start_new_session=True)
    its.close()

    def stop() -> None:
        ours.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:  # another process has inherited our end of the socket
            process.kill()

    atexit.register(stop)
    return ours, decisive(os.environ)


def decisive(environment: Any) -> dict[str, str]:
    """Select the environment variables that may be read on import."""
    return {name: value for name, value in environment.items() if not name.startswith(READ_LATE)}


def serve(asked: socket.socket) -> None:
    """Fork for each request, until the other end of the socket is closed."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nothing waits for the direct forks, so the system reaps them
    while size := b''.join(received(asked, 4)):
        first, descriptors, _, _ = socket.recv_fds(asked, 1, 4)
        rest = b''.join(received(asked, int.from_bytes(size, 'big') - 1))
        if os.fork() == 0:
            asked.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            follow(descriptors, *json.loads(first + rest))
            return
        for descriptor in descriptors:
            os.close(descriptor)


def received(asked: socket.socket, size: int) -> Iterator[bytes]:
    """Yield `size` bytes from the socket in parts, or fewer if it is closed before."""
    while size and (part := asked.recv(size)):
        size -= len(part)
        yield part


def follow(descriptors: list[int], words: list[str], cwd: str, environment: dict[str, str]) -> None:
    """Fork once more and run the command in that process; report its pid and, when it ends, its exit status."""
    *streams, answering = descriptors
    child = os.fork()
    if child:
        for stream in streams:
            os.close(stream)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with contextlib.suppress(BrokenPipeError):
            os.write(answering, f'{status}\n'.encode())
        os._exit(0)
    os.setsid()
    os.write(answering, f'{os.getpid()}\n'.encode())
    os.close(answering)
    if 'numpy' in sys.modules:  # otherwise its random numbers would be the same in all forks
        sys.modules['numpy'].random.seed()
    for number, (name, stream) in enumerate(zip(('stdin', 'stdout', 'stderr'), streams)):
        os.dup2(stream, number)
        os.close(stream)
        reopen(name, number, *environment.get('PYTHONIOENCODING', '').split(':'))
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    status: Any = None
    try:
        become(words)
    except SystemExit as end:
        status = end.code
    finally:
        gc.unfreeze()  # otherwise Triton's bindings report frozen objects as leaks at exit
    if status is None or isinstance(status, int):  # any other value is for sys.exit to print
        finish(status or 0)
    sys.exit(status)


def reopen(name: str, number: int, encoding: str, errors: str = '') -> None:
    """Replace one of sys's streams, since the descriptor may now be of another kind than at its creation."""
    old, mode = getattr(sys, name), 'r' if name == 'stdin' else 'w'
    encoding = encoding or old.encoding
    if name == 'stderr':
        new = os.fdopen(number, mode, buffering=1, encoding=encoding, errors=old.errors, closefd=False)
    else:
        new = os.fdopen(number, mode, encoding=encoding, errors=errors or old.errors, closefd=False)
    setattr(sys, name, new)
    setattr(sys, f'__{name}__', new)


def become(words: list[str]) -> None:
    """Run `words` as the interpreter would: -c CODE, -m MODULE, or a script, with arguments."""
    if words[0] == '-c':
        sys.path[0] = ''
        sys.argv = ['-c', *words[2:]]
        exec(compile(words[1], '<string>', 'exec'), {'__name__': '__main__'})
    elif words[0] == '-m':
        sys.path[0] = str(Path.cwd())
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name='__main__', alter_sys=True)
    else:
        sys.path[0] = str(Path(words[0]).parent)
        sys.argv = words
        runpy.run_path(words[0], run_name='__main__')


def finish(status: int) -> None:
    """End the process as the interpreter does, but without freeing every object.

    In a fork, freeing them copies their pages and takes longer than most commands. Returns only if stdout or stderr
    cannot be flushed.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and not stream.closed:
                stream.flush()
    except OSError:
        return
    os._exit(status)


if __name__ == '__main__':
    for module in sys.argv[2:]:
        importlib.import_module(module)
    gc.freeze()  # otherwise garbage collection in each fork touches, and so copies, the pages of all objects
    serve(socket.socket(fileno=int(sys.argv[1])))
