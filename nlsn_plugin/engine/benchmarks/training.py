"""Time of training compared with BasicSR's own loop: whole updates, and the moving average of the weights alone."""

from __future__ import annotations

import contextlib
import logging
import statistics
from collections.abc import Callable, Generator, Iterator
from copy import deepcopy
from functools import partial
from typing import Any

from basicsr.data import build_dataloader
from basicsr.data import build_dataset as build_dataset_of_basicsr
from basicsr.data.data_sampler import EnlargedSampler
from basicsr.data.prefetch_dataloader import CPUPrefetcher, CUDAPrefetcher
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger

from nlsn_plugin.data.paired import build_dataset
from nlsn_plugin.engine.measuring.machine import describe_machine
from nlsn_plugin.engine.measuring.timing import Step, interleaved, summary
from nlsn_plugin.engine.training.batches import endless
from nlsn_plugin.engine.training.loop import order_of
from nlsn_plugin.errors import FAILURES, UserError, first_line
from nlsn_plugin.models.nlsn_model import NLSNModel


def run(opt: dict[str, Any], budget: float) -> dict[str, Any]:
    """Time updates and moving averages, of BasicSR and of this package in turns.

    Args:
        opt: BasicSR's options of a training run with a moving average; its network, data and losses are used.
        budget: seconds for each of the three comparisons.

    Returns:
        The machine, and records with what, form, milliseconds (median), spread, runs and speedup over BasicSR.

    Raises:
        UserError: BasicSR cannot train by these options, or on these images.
    """
    get_root_logger().setLevel(logging.WARNING)
    opt = {**opt, 'path': {**opt['path'], 'pretrain_network_g': None}}  # time does not depend on the weights
    device = 'cuda' if opt['num_gpu'] else 'cpu'
    loops = {'BasicSR': updates_of_basicsr, 'nlsn_plugin': our_updates}
    updates = {name: loop(deepcopy(opt)) for name, loop in loops.items()}
    steps: dict[str, Step] = {name: partial(next, loop) for name, loop in updates.items()}
    records = rows(f'update, {opt["name"]}', interleaved(steps, device, budget))
    for loop in updates.values():
        loop.close()
    paper = {**deepcopy(opt), 'network_g': {'type': 'NLSN', 'upscale': opt['scale']}}
    for title, options in (
        (f'moving average, {opt["name"]}', opt),
        (f"moving average, the paper's x{opt['scale']}", paper),
    ):
        models = {name: make(deepcopy(options)) for name, make in MODELS.items()}
        decay = opt['train']['ema_decay']
        averages: dict[str, Step] = {name: partial(model.model_ema, decay) for name, model in models.items()}
        records += rows(title, interleaved(averages, device, budget))
    return {'machine': describe_machine(device), 'records': records}


def model_of_basicsr(opt: dict[str, Any]) -> SRModel:
    """Build BasicSR's own model.

    Raises:
        UserError: the options name an optimiser or a scheduler that it does not know.
    """
    try:
        return SRModel(opt)
    except NotImplementedError as error:
        raise UserError(f"BasicSR's own model, to compare with, cannot take these options: {error}") from error


MODELS: dict[str, Callable[[dict[str, Any]], SRModel]] = {'BasicSR': model_of_basicsr, 'nlsn_plugin': NLSNModel}


def rows(what: str, times: dict[str, list[float]]) -> list[dict[str, Any]]:
    base = statistics.median(times['BasicSR'])
    return [
        {
            'what': what,
            'form': form,
            **summary(seconds),
            'speedup': base / statistics.median(seconds),
        }
        for form, seconds in times.items()
    ]


def update(model: SRModel, batch: dict[str, Any], iteration: int, opt: dict[str, Any]) -> None:
    """Train on one batch, in the way that both loops share."""
    model.update_learning_rate(iteration, opt['train']['warmup_iter'])
    model.feed_data(batch)
    model.optimize_parameters(iteration)
    if iteration % opt['logger']['print_freq'] == 0:
        model.get_current_log()


def updates_of_basicsr(opt: dict[str, Any]) -> Generator[None, None, None]:
    """Run BasicSR's train.py without its log lines, validations and saves; yield after each update."""
    options = opt['datasets']['train']
    dataset = build_dataset_of_basicsr(options)
    order_of(opt, dataset, 0)  # refuses epochs without a batch, over which BasicSR would loop for ever
    sampler = EnlargedSampler(dataset, 1, 0, options['dataset_enlarge_ratio'])
    loader = build_dataloader(dataset, options, opt['num_gpu'], False, sampler, opt['manual_seed'])
    uploads = options.get('prefetch_mode') == 'cuda'
    prefetcher = CUDAPrefetcher(loader, opt) if uploads else CPUPrefetcher(loader)
    model = model_of_basicsr(opt)
    iteration = epoch = 0
    while True:
        sampler.set_epoch(epoch)
        with naming_images(options):
            prefetcher.reset()
            batch = prefetcher.next()
        while batch is not None:
            iteration += 1
            update(model, batch, iteration, opt)
            yield
            with naming_images(options):
                batch = prefetcher.next()
        epoch += 1


@contextlib.contextmanager
def naming_images(options: dict[str, Any]) -> Iterator[None]:
    """Where BasicSR's loader fails, read all samples by our data set, whose errors name the image.

    Raises:
        UserError: the loader fails; a DataError if an image is the reason.
    """
    try:
        yield
    except FAILURES as error:
        dataset = build_dataset(options)
        for number in range(len(dataset)):  # type: ignore[arg-type]
            dataset[number]
        raise UserError(f"BasicSR's own loader, to compare with, fails: {first_line(error)}") from error


def our_updates(opt: dict[str, Any]) -> Generator[None, None, None]:
    """Run `training.loop.run` without log lines, validations and saves; yield after each update."""
    dataset = build_dataset(opt['datasets']['train'])
    batches, model = endless(dataset, order_of(opt, dataset, 0), opt), NLSNModel(opt)
    for iteration, batch in enumerate(batches, start=1):
        update(model, batch, iteration, opt)
        yield
