"""States of a run on disk: written so that a crash loses none of them, checked, and found again."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from basicsr.models.base_model import BaseModel
from basicsr.utils import get_time_str
from torch import nn

from nlsn_plugin.compat import substituted
from nlsn_plugin.engine.options.classes import resumed_networks
from nlsn_plugin.errors import CheckpointError
from nlsn_plugin.files import write_whole
from nlsn_plugin.models.checkpoint import load_safely, read_weights

Options = dict[str, Any]


def write(path: Path, content: Any) -> None:
    """Call torch.save so that it either succeeds or leaves the file that was there intact.

    Raises:
        SaveError: the disk is full, or cannot be written to.
    """

    def save(temporary: Path) -> None:
        with temporary.open('wb') as file:  # opened by Python, whose errors give reasons
            torch.save(content, file)

    write_whole(path, save)


def save(model: BaseModel, epoch: int, iteration: int, run: dict[str, Any]) -> None:
    """Save networks and state where BasicSR does. Only one process may call this.

    The model's own `save` determines which networks; the state is written last, so that none exists without them.

    Args:
        model: any of BasicSR's models.
        epoch, iteration: how far the run is.
        run: what else is needed to resume the run; see `Saver.save`.
    """
    save_networks(model, iteration)
    state = {
        'epoch': epoch,
        'iter': iteration,
        'optimizers': [optimizer.state_dict() for optimizer in model.optimizers],
        'schedulers': [scheduler.state_dict() for scheduler in model.schedulers],
        'best_metric_results': {
            name: {metric: {**best, 'val': float(best['val'])} for metric, best in records.items()}
            for name, records in getattr(model, 'best_metric_results', {}).items()
        },  # a model that validates by itself may have NumPy's floats, which would not load safely
        'model': model.state() if hasattr(model, 'state') else {},
        'run': run,
    }
    write(Path(model.opt['path']['training_states']) / f'{iteration}.state', state)


def save_networks(model: BaseModel, label: int | str, **more: Any) -> None:
    """Save the networks alone, as net_g_<label>.pth and the like, with the entries of `more` beside the weights."""
    with substituted(model, save_network=partial(save_network, model, more), save_training_state=lambda *_: None):
        model.save(-1, label)


def save_network(
    model: BaseModel,
    more: dict[str, Any],
    net: nn.Module | list[nn.Module],
    label: str,
    iteration: Any,
    param_key: str | list[str] = 'params',
) -> None:
    """Replacement for basicsr/models/base_model.py:196, which writes in place and ignores files it cannot write."""
    nets = net if isinstance(net, list) else [net]
    keys = param_key if isinstance(param_key, list) else [param_key]
    content = {
        key: {name: tensor.cpu() for name, tensor in model.get_bare_model(part).state_dict().items()}
        for key, part in zip(keys, nets)
    }
    write(Path(model.opt['path']['models']) / f'{label}_{iteration}.pth', {**content, **more})


def set_aside_later(opt: Options, iteration: int, said: Callable[[str], None]) -> None:
    """Move the states later than an iteration, and their networks, into folders of their own.

    They are damaged, or belong to a course that the run no longer takes. Left where they are, they would be taken for
    the newest: by `prune`, which would delete what the run saves, and by --auto_resume, which would go back to them.
    With them the best network is moved, if it is later too.

    Args:
        said: called with a message for each state that is moved, and with one for the best network.
    """
    models = Path(opt['path']['models'])
    later = [path for path in saved_states(opt) if int(path.stem) > iteration]
    for state in later:
        folder = set_aside([state, *models.glob(f'net_*_{state.stem}.pth')], f'later_than_{iteration}')
        said(f'the run goes on from {iteration}: {state} is in {folder.name}/ now, its networks too')
    best = [*models.glob('net_*_best.pth')]
    if later and best and (of_best := iteration_in(best[0])) > iteration:
        folder = set_aside(best, f'later_than_{iteration}')
        said(f'the run goes on from {iteration}: {best[0]}, of iteration {of_best}, is in {folder.name}/ now')


def iteration_in(best: Path) -> int:
    """The iteration that a best network is of; 0 if the file is damaged, or of a version that did not record it."""
    try:
        content = load_safely(best)
    except CheckpointError:
        return 0
    return int(content.get('iter', 0)) if isinstance(content, dict) else 0


def deciding(opt: Options) -> tuple[str, str] | None:
    """The data set and the metric that decide which network is the best: the first of each; None without validation."""
    names = [options['name'] for phase, options in opt['datasets'].items() if phase != 'train']
    metrics = list((opt.get('val') or {}).get('metrics') or ())
    return (names[0], metrics[0]) if names and metrics else None


def known_best(opt: Options, state: dict[str, Any]) -> dict[str, Any]:
    """The best figures up to a state. If the file of the best network is missing, any result beats the deciding one."""
    records = {name: dict(metrics) for name, metrics in (state.get('best_metric_results') or {}).items()}
    name, metric = deciding(opt) or ('', '')
    record = records.get(name, {}).get(metric)
    if record and not (Path(opt['path']['models']) / 'net_g_best.pth').exists():
        worst = -math.inf if record['better'] == 'higher' else math.inf
        records[name][metric] = {**record, 'val': worst, 'iter': -1}
    return records


def set_aside(paths: Sequence[Path], name: str) -> Path:
    """Move files into new folders beside them, named `name` and the time; return the folder beside the first file."""
    name = f'{name}_{get_time_str()}'
    for path in paths:
        folder = path.parent / name
        folder.mkdir(exist_ok=True)
        path.rename(folder / path.name)
    return paths[0].parent / name


def remove_unfinished(opt: Options) -> None:
    """Remove the temporary files of a process that was killed while writing. No other may be writing there."""
    for folder in ('experiments_root', 'models', 'training_states'):
        for path in Path(opt['path'][folder]).glob('.*.tmp'):
            path.unlink(missing_ok=True)


def prune(opt: Options, keep_last: int | None) -> None:
    """Delete all but the newest `keep_last` states and their networks; None keeps all. Networks of other names stay."""
    if keep_last is None:
        return
    for old in saved_states(opt)[keep_last:]:
        old.unlink(missing_ok=True)
        for network in Path(opt['path']['models']).glob(f'net_*_{old.stem}.pth'):
            network.unlink(missing_ok=True)


def saved_states(opt: Options) -> list[Path]:
    """All states of the experiment, the newest first."""
    states = [path for path in Path(opt['path']['training_states']).glob('*.state') if path.stem.isdigit()]
    return sorted(states, key=lambda path: int(path.stem), reverse=True)


def newest_intact(opt: Options, said: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
    """The newest state that loads, with its networks; None if there are no states at all.

    Args:
        said: called with a message for each state that is passed over, which says why.

    Raises:
        CheckpointError: there are states, and none is intact.
    """
    states = saved_states(opt)
    for path in states:
        try:
            return path, load_state(opt, path)
        except CheckpointError as error:
            said(f'passed over {path}: {error}')
    if states:
        raise CheckpointError(f'none of the {len(states)} states in {states[0].parent} is intact')
    return None


def load_state(opt: Options, path: Path) -> dict[str, Any]:
    """Load a state, and check that its networks load as well.

    Raises:
        CheckpointError: the file is no state, or it or one of its networks is missing or damaged.
    """
    state = load_safely(path)
    if not isinstance(state, dict) or not {'iter', 'epoch', 'optimizers', 'schedulers'} <= state.keys():
        raise CheckpointError(f'{path} is no training state')
    check_sums(path)
    models, ending = Path(opt['path']['models']), f'_{state["iter"]}.pth'
    letters = [name.removeprefix('network_') for name in resumed_networks(opt)]
    for network in {*models.glob(f'net_*{ending}'), *(models / f'net_{letter}{ending}' for letter in letters)}:
        read_weights(network)
        check_sums(network)
    return state


def check_sums(path: Path) -> None:
    """Refuse a file whose contents do not match their checksums, which torch.load does not verify.

    Raises:
        CheckpointError: the file is damaged.
    """
    if not zipfile.is_zipfile(path):  # the format before PyTorch 1.6, without checksums
        return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise CheckpointError(f'{path} is damaged: {error}') from error
    if damaged:
        raise CheckpointError(f'{path} is damaged: {damaged} has another checksum than when it was written')
