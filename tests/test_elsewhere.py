"""Where a system lacks what Linux has: Windows's and macOS's way to start processes, no fcntl, resource, or SIGUSR1.

What is missing there is taken away here; that is no run on those systems.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from conftest import experiment, write_options

LACKING = """
import asyncio, fcntl, multiprocessing.context, multiprocessing.popen_spawn_posix, multiprocessing.resource_tracker
import os, psutil, select, signal, subprocess, sys, types  # those that look at the system have done so

class Absent:
    names = ('fcntl', 'grp', 'pwd', 'resource', 'termios')

    def find_spec(self, name, path=None, target=None):
        if name in self.names:
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)

sys.meta_path.insert(0, Absent())
msvcrt = sys.modules['msvcrt'] = types.ModuleType('msvcrt')
msvcrt.LK_NBLCK = 2
msvcrt.locking = lambda file, mode, size, lock=fcntl.lockf, how=fcntl.LOCK_EX | fcntl.LOCK_NB: lock(file, how)
for name in Absent.names:
    sys.modules.pop(name, None)
type(psutil.Process().memory_info()).peak_wset = property(lambda found: found.rss)
for module, names in ((signal, ['SIGHUP', 'SIGPIPE', 'SIGUSR1', 'SIGUSR2']),
                      (os, ['fork', 'killpg', 'sched_getaffinity', 'setsid', 'sysconf']), (select, ['poll'])):
    for name in names:
        delattr(module, name)
for way in ('fork', 'forkserver'):
    del multiprocessing.context._concrete_contexts[way]
multiprocessing.get_all_start_methods = lambda: ['spawn']
multiprocessing.set_start_method('spawn')
"""
COMMANDS = """
import os, sys
import torch

del os.register_at_fork  # by PyTorch, too, if it is not Windows by name

if __name__ == '__main__':
    from nlsn_plugin.cli import main
    from nlsn_plugin.cli.streams import is_broken
    from nlsn_plugin.engine.training.interruption import SIGNALS

    assert {signal.name for signal in SIGNALS} == {'SIGINT', 'SIGTERM'}
    assert is_broken(sys.stdout)
    photographs, options = sys.argv[1:]
    output, sizes = 'datasets/DIV2K', ['--crop-size', '96', '--step', '96']
    main(['prepare', '--input', photographs, '--output', output, '--scale', '2', *sizes, '--workers', '1'])
    main(['prepare', '--check', f'{output}/DIV2K_train_HR_sub.lmdb', '--workers', '1'])
    main(['train', '-opt', options])
    main(['upscale', photographs, '-o', 'enlarged'])
"""


def test_data_are_prepared_a_network_trained_and_pictures_enlarged(
    photographs: Path, place: Path, tmp_path: Path
) -> None:
    def short(options: dict) -> None:
        del options['val'], options['datasets']['val']
        options['train']['total_iter'] = 2
        options['logger'].update(print_freq=1, save_checkpoint_freq=1)

    (place / 'datasets').unlink()
    (tmp_path / 'lacking').mkdir()
    (tmp_path / 'lacking' / 'sitecustomize.py').write_text(LACKING)
    (tmp_path / 'commands.py').write_text(COMMANDS)
    options = write_options(tmp_path / 'a.yml', 'train_NLSN_x2', short)
    path = os.pathsep.join([str(tmp_path / 'lacking'), *filter(None, [os.environ.get('PYTHONPATH')])])
    words = [sys.executable, tmp_path / 'commands.py', photographs, options]
    done = subprocess.run(
        words, cwd=place, env=os.environ | {'PYTHONPATH': path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'all whole' in done.stdout
    assert (experiment(place) / 'models' / 'net_g_latest.pth').exists()
    assert len(list((place / 'enlarged').iterdir())) == len(list(photographs.iterdir()))
