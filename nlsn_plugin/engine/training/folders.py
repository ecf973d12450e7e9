"""An experiment's folders: created, never overwritten, and guarded against other runs."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from basicsr.utils import get_time_str

from nlsn_plugin.engine.distributed import wait_for_all
from nlsn_plugin.engine.training import checkpoints
from nlsn_plugin.errors import UserError
from nlsn_plugin.files import check_folder, is_dir
from nlsn_plugin.locks import claim

Options = dict[str, Any]

FOLDERS = ('experiments_root', 'models', 'training_states', 'visualization')
"""The folders of an experiment, by their keys in `path`."""


def make_folders(opt: Options, resuming: bool) -> None:
    """Create the experiment's folders. BasicSR moves an existing one aside; here this is only done with --archive.

    Raises:
        UserError: the folder holds another run, and neither resuming nor --archive was asked for.
        SaveError: a folder cannot be made or written to.
    """
    root = Path(opt['path']['experiments_root'])
    if opt['rank'] == 0:
        for key in FOLDERS:  # may be links
            check_folder(Path(opt['path'][key]))
        networks, states = list(root.glob('models/*.pth')), list(root.glob('training_states/*.state'))
        if (networks or states) and not resuming:
            ended = root / 'models' / 'net_g_latest.pth' in networks
            if opt['archive']:
                with claimed(opt):
                    archive(root)
                events = Path(opt['root_path'], 'tb_logger', opt['name'])
                if is_dir(events):  # otherwise the curves of both runs would be joined
                    archive(events)
            elif opt['auto_resume'] and not states and not ended:  # it was stopped before its first state
                with claimed(opt):
                    folder = checkpoints.set_aside(networks, 'without_state')
                print(f'networks of a run that was stopped before its first state are in {folder} now')
            else:
                holds = 'a run already: --auto_resume goes on with it, '
                if opt['auto_resume']:
                    holds = 'networks of a run and none of its states: '
                raise UserError(
                    f'{root} holds {holds}--archive moves it aside and begins anew, or choose another '
                    'name in the option file'
                )
        for key in FOLDERS:
            Path(opt['path'][key]).mkdir(parents=True, exist_ok=True)
    wait_for_all()


def archive(root: Path) -> None:
    """Move a folder aside, to an unused name that contains the time."""
    stem = f'{root.name}_archived_{get_time_str()}'
    names = itertools.chain([stem], (f'{stem}_{number}' for number in itertools.count(2)))
    root.rename(next(path for path in map(root.with_name, names) if not path.exists()))


@contextlib.contextmanager
def claimed(opt: Options) -> Iterator[None]:
    """Keep other runs out of the experiment's folder while the block runs: they would prune each other's states.

    Raises:
        UserError: another process trains there.
    """
    if opt['rank'] > 0:
        yield
        return
    root = Path(opt['path']['experiments_root'])
    with (root / '.lock').open('w') as file:
        claim(file, root, f'another process trains in {root}: wait for it, or choose another name')
        yield
