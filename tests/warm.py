"""Commands in processes of their own that need not import what takes most of a short command's time.

A process that has imported it and done nothing else forks for each of them.
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
"""What commands import."""
OTHERS = ('torch._dynamo', 'scipy.stats')
"""What is not this project's, nor a toolbox's, of what takes long."""
READ_LATE = ('GLOO_', 'LOCAL_RANK', 'MASTER_', 'NLSN_', 'PATH', 'PYTEST_CURRENT_TEST', 'PYTHONIOENCODING', 'RANK')
READ_LATE += ('SLURM_', 'WORLD_SIZE', '_')
"""How the variables begin that nobody reads on import, or that libraries note there for themselves, with an underscore,
as PyTorch's compiler does."""


class Process:
    """A process that was forked for a command; to be used as a `subprocess.Popen`.

    It leads a session, and so a group of processes, of its own.

    Attributes:
        stdout, stderr: pipes from it, where there are such.
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
        for pipe in filter(None, (self.stdout, self.stderr)):  # or it may wait for somebody who reads them
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
        """Also what it has started, if that has not left its group."""
        with contextlib.suppress(ProcessLookupError):
            if self.poll() is None:
                os.killpg(self.pid, signal.SIGKILL)


def answer(answers: IO[str]) -> int:
    """The next number from a process that forks, or from one that it forked."""
    line = answers.readline()
    if not line:
        start_server.cache_clear()  # for the tests that follow
        raise AssertionError('the process that forks for commands has itself ended')
    return int(line)


def start(
    words: Iterable[object],
    cwd: Path | None = None,
    *,
    stdin: Any = subprocess.DEVNULL,  # a file; the others may be pipes, subprocess.PIPE
    stdout: Any = None,
    stderr: Any = None,
    env: dict[str, str] | None = None,
    imported: tuple[str, ...] = COMMANDS,
) -> Process | subprocess.Popen[str]:
    """Run an interpreter on `words`, as `subprocess.Popen` does: forked, unless something is another there that is read
    on import."""
    words = [str(word) for word in words]
    env = {**os.environ} if env is None else env
    streams = {'stdin': stdin, 'stdout': stdout, 'stderr': stderr}
    server, given = (None, {}) if torch.cuda.is_available() else start_server(imported)  # CUDA bears no fork
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
        with contextlib.suppress(BrokenPipeError):  # there will be no answer
            server.sendall(len(request).to_bytes(4, 'big'))
            socket.send_fds(server, [request[:1]], [*descriptors, answering])
            server.sendall(request[1:])
    return Process(words, answers, pipes)


def run_warm(
    words: Iterable[object], cwd: Path | None = None, *, timeout: float, imported: tuple[str, ...] = COMMANDS
) -> subprocess.CompletedProcess[str]:
    """Run an interpreter on `words`, as `subprocess.run` does, its output captured."""
    with tempfile.TemporaryFile('w+') as out, tempfile.TemporaryFile('w+') as error:
        with start(words, cwd, stdout=out, stderr=error, imported=imported) as process:
            status = process.wait(timeout)
        for file in (out, error):
            file.seek(0)
        return subprocess.CompletedProcess(process.args, status, out.read(), error.read())


@functools.cache
def start_server(imported: tuple[str, ...]) -> tuple[socket.socket, dict[str, str]]:
    """The process that forks, by the socket that it listens to, and what it was started with."""
    ours, its = socket.socketpair()
    command = [sys.executable, __file__, str(its.fileno()), *imported]
    null = subprocess.DEVNULL
    process = subprocess.Popen(command, pass_fds=[its.fileno()], stdin=null, stdout=null, start_new_session=True)
    its.close()

    def stop() -> None:
        ours.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:  # somebody has inherited the socket
            process.kill()

    atexit.register(stop)
    return ours, decisive(os.environ)


def decisive(environment: Any) -> dict[str, str]:
    """What may be read on import."""
    return {name: value for name, value in environment.items() if not name.startswith(READ_LATE)}


def serve(asked: socket.socket) -> None:
    """Fork for each request, until nobody can ask any more."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait for the others
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
    """So many bytes, or none if there are no more."""
    while size and (part := asked.recv(size)):
        size -= len(part)
        yield part


def follow(descriptors: list[int], words: list[str], cwd: str, environment: dict[str, str]) -> None:
    """Fork once more, for what is asked, and tell that process's number and, later, status."""
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
    if 'numpy' in sys.modules:  # whose numbers would be alike in all of them
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
        gc.unfreeze()  # or Triton's bindings take for leaks what the interpreter does not give back in the end
    if status is None or isinstance(status, int):  # all else it has to print
        finish(status or 0)
    sys.exit(status)


def reopen(name: str, number: int, encoding: str, errors: str = '') -> None:
    """Make one of sys's streams anew: what it was made for may have been of another kind."""
    old, mode = getattr(sys, name), 'r' if name == 'stdin' else 'w'
    encoding = encoding or old.encoding
    if name == 'stderr':
        new = os.fdopen(number, mode, buffering=1, encoding=encoding, errors=old.errors, closefd=False)
    else:
        new = os.fdopen(number, mode, encoding=encoding, errors=errors or old.errors, closefd=False)
    setattr(sys, name, new)
    setattr(sys, f'__{name}__', new)


def become(words: list[str]) -> None:
    """Do what the interpreter does with `words`."""
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
    """End as the interpreter does, but for its last step, which gives back every object: in a fork, whose pages are
    copied for that, it takes longer than most commands. Return if an output does not take what is left for it."""
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
    gc.freeze()  # or each fork copies the pages of all that is there, in search of what nobody needs any more
    serve(socket.socket(fileno=int(sys.argv[1])))
