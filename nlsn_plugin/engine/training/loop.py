"""The training run, built on the toolbox's data sets, models, metrics and logs."""

from __future__ import annotations

import contextlib
import datetime
import time
from pathlib import Path
from typing import Any

import torch
from basicsr.models.base_model import BaseModel
from basicsr.train import init_tb_loggers
from basicsr.utils import AvgTimer, get_root_logger
from torch.utils.data import Dataset
from tqdm.contrib.logging import logging_redirect_tqdm

from nlsn_plugin.data.paired import build_dataset
from nlsn_plugin.engine.distributed import agreed, first_error
from nlsn_plugin.engine.options.documents import keep_copy
from nlsn_plugin.engine.training import checkpoints, randomness
from nlsn_plugin.engine.training.batches import Order, ReadAhead, endless, patches_of_an_update
from nlsn_plugin.engine.training.folders import claimed, make_folders
from nlsn_plugin.engine.training.interruption import Interruption, interruptible
from nlsn_plugin.engine.training.journal import Events, Journal
from nlsn_plugin.engine.training.log import start_log
from nlsn_plugin.engine.training.resumption import course_of, resume_state
from nlsn_plugin.engine.training.saver import Saver
from nlsn_plugin.engine.training.validation import Validator
from nlsn_plugin.errors import CheckpointError, UserError
from nlsn_plugin.models.mended_model import AS_IT_BEGAN, build_model

Options = dict[str, Any]


def train(opt: Options, option_file: Path) -> None:
    """Train as the option file says, from the beginning or from a state.

    Args:
        opt: the options, as `reading.read_options` returns them and `run.read` completes them.
        option_file: the file, which is copied to the experiment.

    Raises:
        InterruptedRunError: a signal asked for the end; the run is saved.
        UserError: data or states cannot be read or written, or too many losses are not finite.
    """
    torch.backends.cudnn.benchmark = True
    seen = checkpoints.saved_states(opt)
    state = resume_state(opt)
    start = state['iter'] if state else 0
    if error := first_error(another_start(opt, start)):
        raise error
    train_set, val_sets = build_datasets(opt)
    order = order_of(opt, train_set, start)
    make_folders(opt, state is not None)
    with claimed(opt):
        if set(checkpoints.saved_states(opt)) - set(seen):  # the chosen state may no longer be the newest
            raise UserError(f'another process has just trained in {opt["path"]["experiments_root"]}: start again')
        train_from(state, order, train_set, val_sets, opt, option_file)


def train_from(
    state: dict[str, Any] | None,
    order: Order,
    train_set: Dataset[Any],
    val_sets: dict[str, Dataset[Any]],
    opt: Options,
    option_file: Path,
) -> None:
    """Train in the experiment's folders, from a state or from the beginning."""
    start = order.first
    logger = start_log(opt, 'train')
    if opt['rank'] == 0:
        checkpoints.remove_unfinished(opt)
        checkpoints.set_aside_later(opt, start, logger.warning)
        keep_copy(option_file, Path(opt['path']['experiments_root']))
    writer = init_tb_loggers(opt)
    tb_logger = writer and Events(writer)
    model = build_model(opt)
    if state:
        try:
            model.resume_training(state)
        except (AssertionError, ValueError) as error:  # BasicSR's about their number, PyTorch's about sizes
            path = opt['path']['resume_state']
            raise CheckpointError(f'{path} does not fit the optimisers: {error}. {AS_IT_BEGAN}') from error
        model.best_metric_results = checkpoints.known_best(opt, state)
        logger.info(f'Resuming training from epoch: {state["epoch"]}, iter: {start}.')
    logger.info(
        f'{order.size} training images, {order.batches_per_epoch} iterations per epoch, '
        f'{opt["train"]["total_iter"]} iterations in all, {processes(opt)}'
    )
    with interruptible() as interruption:
        journal = Journal(opt, start, tb_logger, validates_again=is_due(state))
        batches = ReadAhead(endless(train_set, order, opt))
        try:
            saver = Saver(model, course_of(opt))
            validator = Validator(model, val_sets, journal, tb_logger, interruption)
            run(model, batches, order, state, saver, validator, journal, interruption)
        finally:
            batches.close()
            journal.close()
    logger.info('Save the latest model.')
    if opt['rank'] == 0:
        checkpoints.save_networks(model, 'latest')
    journal.plot()
    if tb_logger:
        with contextlib.suppress(OSError):
            tb_logger.close()


def another_start(opt: Options, start: int) -> UserError | None:
    """An error if this process would go on from another state than the first process; None if not.

    It may have a folder of its own, or a file system that shows it new files late. The processes would add up gradients
    of different networks.
    """
    first = agreed(start)
    if first == start:
        return None
    folder = opt['path']['training_states']
    return UserError(
        f'process {opt["rank"]} would go on from iteration {start}, and the first one from {first}: all of them '
        f'have to see the same files in {folder}'
    )


def order_of(opt: Options, train_set: Dataset[Any], first: int) -> Order:
    """The order of the batches, beginning with batch number `first`.

    Raises:
        UserError: an update takes more images than an epoch has; BasicSR would train nothing and save the result.
    """
    options, patches = opt['datasets']['train'], patches_of_an_update(opt)
    per_gpu = options['batch_size_per_gpu']
    size, enlarge = len(train_set), options.get('dataset_enlarge_ratio', 1)  # type: ignore[arg-type]
    order = Order(
        size, enlarge, patches // opt['world_size'], opt['rank'], opt['world_size'], opt['manual_seed'], first
    )
    if not order.batches_per_epoch:
        raise UserError(
            f'an update takes {patches} patches ({patches // per_gpu} x batch_size_per_gpu {per_gpu}), more than the '
            f'{order.total} images of an epoch: choose a smaller batch_size_per_gpu, or a larger dataset_enlarge_ratio'
        )
    return order


def processes(opt: Options) -> str:
    return f'{opt["world_size"]} process' + 'es' * (opt['world_size'] > 1)


def run(
    model: BaseModel,
    batches: ReadAhead,
    order: Order,
    state: dict[str, Any] | None,
    saver: Saver,
    validator: Validator,
    journal: Journal,
    interruption: Interruption,
) -> None:
    """Run all remaining iterations, with the validations and saves that are due."""
    opt, start = model.opt, order.first
    total, warmup = opt['train']['total_iter'], opt['train'].get('warmup_iter', -1)
    timer, data_timer, began = AvgTimer(), AvgTimer(), time.monotonic()
    if state and 'randomness' in state.get('run', {}):
        randomness.restore_one_of(state['run']['randomness'], opt['rank'])
    with logging_redirect_tqdm([get_root_logger()]):
        if state and is_due(state):
            with saver.saved_first(state['epoch'], start):
                results = validator.measure(start)
            validator.keep_best(start, results)
            saver.save(state['epoch'], start)
        for iteration in range(start + 1, total + 1):
            epoch = (iteration - 1) // order.batches_per_epoch
            # Several processes have agreed to save before this, in `wanted`; for the first two batches they cannot.
            with contextlib.nullcontext() if opt['dist'] else saver.saved_first(epoch, iteration - 1):
                batch = next(batches)
            data_timer.record()
            model.update_learning_rate(iteration, warmup_iter=warmup)
            model.feed_data(batch)
            model.optimize_parameters(iteration)
            timer.record()
            journal.iteration()
            if iteration % opt['logger']['print_freq'] == 0:
                lrs = model.get_current_learning_rate()
                seconds, data = timer.get_avg_time(), data_timer.get_avg_time()
                journal.progress(epoch, iteration, lrs, seconds, data, model.get_current_log())
            last = iteration == total
            due = bool(opt.get('val')) and (iteration % opt['val']['val_freq'] == 0 or last)
            interrupted = interruption.wanted(failing=batches.error is not None) and not last
            saves = iteration % opt['logger']['save_checkpoint_freq'] == 0 or last or interrupted
            if saves:  # before validation, which may take longer than a scheduler waits
                saver.save(epoch, iteration, validation_is_due=due)
            if due and not interrupted:
                with saver.saved_first(epoch, iteration, validation_is_due=True):
                    results = validator.measure(iteration)
                validator.keep_best(iteration, results)
                if saves:
                    saver.save(epoch, iteration)
            if interrupted:
                error = first_error(batches.error) if opt['dist'] else None
                raise saver.goes_on_from(iteration, error or interruption.error()) from error
            data_timer.start()
            timer.start()
    consumed = datetime.timedelta(seconds=int(time.monotonic() - began))
    get_root_logger().info(f'End of training. Time consumed: {consumed}')


def is_due(state: dict[str, Any] | None) -> bool:
    """Whether a state was saved before its network was validated, so that the run goes on with that validation."""
    return bool(state and state.get('run', {}).get('validation_is_due'))


def build_datasets(opt: Options) -> tuple[Dataset[Any], dict[str, Dataset[Any]]]:
    """Build the training set, and the validation sets by name; the latter are left out if `val` is not set."""
    train_set = build_dataset(opt['datasets']['train'])
    validation = {
        options['name']: build_dataset(options) for phase, options in opt['datasets'].items() if phase != 'train'
    }
    return train_set, validation if opt.get('val') else {}
