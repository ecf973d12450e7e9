"""Validation with the toolbox's metrics, its images shared out among all processes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from basicsr.metrics import calculate_metric
from basicsr.models.base_model import BaseModel
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger, tensor2img
from basicsr.utils.registry import METRIC_REGISTRY
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from nlsn_plugin.compat import substituted
from nlsn_plugin.data.images import write_image
from nlsn_plugin.engine.available_memory import is_out_of_memory
from nlsn_plugin.engine.distributed import agreed, first_error, gathered
from nlsn_plugin.engine.training import checkpoints
from nlsn_plugin.engine.training.batches import Reproducible, collate
from nlsn_plugin.engine.training.interruption import Interruption
from nlsn_plugin.engine.training.journal import Journal
from nlsn_plugin.errors import DataError, UserError, first_line
from nlsn_plugin.metrics.protocols import mean
from nlsn_plugin.models.nlsn_model import NLSNModel

Results = dict[str, float]


class Validator:
    """Measures a run's network on all validation sets, and keeps the best network.

    Args:
        model: the model of the run.
        datasets: the validation sets, by name.
        journal: log for the figures.
        tb_logger, interruption: see `validate`.
    """

    def __init__(
        self,
        model: BaseModel,
        datasets: dict[str, Dataset[Any]],
        journal: Journal,
        tb_logger: Any,
        interruption: Interruption,
    ) -> None:
        self.model, self.datasets, self.journal = model, datasets, journal
        self.tb_logger, self.interruption = tb_logger, interruption

    def measure(self, iteration: int) -> dict[str, Results]:
        """Measure the network on all sets. All processes have to call this; it raises what `validate` raises."""
        results = {}
        for name, dataset in self.datasets.items():
            results[name] = validate(self.model, dataset, iteration, self.tb_logger, name, self.interruption)
            self.journal.validation(iteration, name, results[name])
        return results

    def keep_best(self, iteration: int, results: dict[str, Results]) -> None:
        """Save the network in the first process, if it is the best so far."""
        name, metric = checkpoints.deciding(self.model.opt) or ('', '')
        records = getattr(self.model, 'best_metric_results', {})  # a model's own validation may keep none
        best = records.get(name, {}).get(metric, {})
        if results.get(name) and self.model.opt['rank'] == 0 and best.get('iter') == iteration:
            checkpoints.save_networks(self.model, 'best', iter=iteration)


def validate(
    model: BaseModel,
    dataset: Dataset[Any],
    iteration: int | str,
    tb_logger: Any,
    name: str,
    interruption: Interruption | None = None,
) -> Results:
    """Measure a model on one data set; log the means and keep the best in `model.best_metric_results`.

    BasicSR lets rank 0 work alone while the others run into the next iteration. Here each of n processes takes every
    n-th image; the means are summed up in the data set's order, and so do not depend on the number of processes.
    All processes have to call this, and all get the results.

    Args:
        model: an SRModel, or a model derived from it; if it has a validation of its own, that runs instead, on rank 0.
        dataset: pairs of images.
        iteration: number for the log and for the names of images; in tests the experiment's name, as in BasicSR.
        tb_logger: a SummaryWriter, or None.
        name: name of the data set.
        interruption: looked at before each image, but not by a validation of the model's own.

    Raises:
        UserError: an image cannot be read or measured; all processes raise the same.
        InterruptedRunError: a signal has asked one of the processes to end; all raise the same.
    """
    opt = model.opt
    metrics = opt['val'].get('metrics') or {}
    has_its_own = type(model).nondist_validation is not SRModel.nondist_validation
    values: dict[int, list[float]] = {}
    error = None
    try:
        if not has_its_own:
            values.update(measured_share(model, dataset, metrics, iteration, name, interruption))
        elif opt['rank'] == 0:
            loader = DataLoader(dataset, batch_size=1)
            loader.dataset.opt = {**getattr(dataset, 'opt', {}), 'name': name}  # type: ignore[attr-defined]
            bare = {'net_g': model.get_bare_model(model.net_g)} if hasattr(model, 'net_g') else {}
            with substituted(model, **bare):  # see measured_share
                model.nondist_validation(loader, iteration, tb_logger, opt['val']['save_img'])
    except UserError as ending:
        error = ending
    if error := first_error(error):
        raise error
    if has_its_own:
        return agreed({metric: float(value) for metric, value in getattr(model, 'metric_results', {}).items()})
    together = {index: found for part in gathered(values) for index, found in part.items()}
    results = {
        metric: mean([together[index][number] for index in sorted(together)]) for number, metric in enumerate(metrics)
    }
    if results:
        if opt['is_train']:
            begin_records(model, name)
            for metric, value in results.items():
                model._update_best_metric_result(name, metric, value, iteration)
        model.metric_results = results
        if opt['rank'] == 0:
            model._log_validation_metric_values(iteration, name, tb_logger)
            if same := sum(any(math.isinf(value) for value in found) for found in together.values()):
                text = 'results equal their ground truth, and are left out of the mean PSNR'
                get_root_logger().warning(f'{name}: {same} {text}')
    return results


def measured_share(
    model: BaseModel,
    dataset: Dataset[Any],
    metrics: dict[str, Any],
    iteration: int | str,
    name: str,
    interruption: Interruption | None,
) -> Iterator[tuple[int, list[float]]]:
    """Yield the index in the data set, and all metrics, of each image that this process measures."""
    opt = model.opt
    indices = range(opt['rank'], len(dataset), opt['world_size'])  # type: ignore[arg-type]
    data = Subset(Reproducible(dataset), [(0, index) for index in indices])  # type: ignore[misc]
    loader = DataLoader(data, batch_size=1, collate_fn=collate, generator=torch.Generator())  # not the run's
    bar = tqdm(loader, desc=name, unit='image', leave=False, disable=not opt['val'].get('pbar') or opt['rank'] > 0)
    restored = undone(dataset)
    # Ranks may have different numbers of images: a DistributedDataParallel wrapper would wait for the others.
    with substituted(model, net_g=model.get_bare_model(model.net_g)):
        for index, sample in zip(indices, bar):
            if interruption and interruption.signal:
                raise interruption.error()
            if isinstance(sample, UserError):
                raise sample
            yield index, measure(model, sample, restored, metrics, iteration, name)


def begin_records(model: BaseModel, name: str) -> None:
    """Prepare the records of the best values on a data set, and keep those known; BasicSR adds no metric to records."""
    known = getattr(model, 'best_metric_results', {}).pop(name, {})
    model._initialize_best_metric_results(name)
    records = model.best_metric_results[name]
    for metric, best in known.items():
        if metric in records and best['better'] == records[metric]['better']:
            records[metric] = best


def undone(dataset: Dataset[Any]) -> Callable[[Tensor], Tensor]:
    """Return a function that undoes a data set's normalisation of images, [N, C, H, W].

    BasicSR itself measures and writes the images normalised.
    """
    options = getattr(dataset, 'opt', {})
    if options.get('mean') is None:
        return lambda images: images
    mean, std = (torch.tensor(options[key])[:, None, None] for key in ('mean', 'std'))
    return lambda images: images * std + mean


def measure(
    model: BaseModel,
    sample: dict[str, Any],
    restored: Callable[[Tensor], Tensor],
    metrics: dict[str, Any],
    iteration: int | str,
    name: str,
) -> list[float]:
    """Compute all metrics of one image, and write the image if the option file says so.

    Raises:
        DataError: the image cannot be measured, or there is too little memory.
    """
    opt = model.opt
    model.feed_data(sample)
    try:
        model.test()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        height, width = sample['lq'].shape[-2:]
        smaller = (opt['val'].get('tile') or min(512, height, width)) // 2
        advice = f'try val: tile: {smaller}' if isinstance(model, NLSNModel) else 'NLSNModel takes val: tile'
        said = f'{sample["lq_path"][0]}: too little memory for {width}x{height} pixels; {advice}'
        raise DataError(said) from error
    visuals = {key: restored(images) for key, images in model.get_current_visuals().items()}
    image = tensor2img([visuals['result']])
    images = {'img': image}
    if 'gt' in visuals:
        images['img2'] = tensor2img([visuals['gt']])
        del model.gt
    del model.lq, model.output
    for metric in metrics.values():
        compared = inspect.signature(METRIC_REGISTRY.get(metric['type'])).parameters
        if 'img2' in compared and 'gt' not in visuals:
            raise DataError(f'{sample["lq_path"][0]} has no ground truth, with which {metric["type"]} compares')
        border = metric.get('crop_border', 0)
        if min(image.shape[:2]) <= 2 * border:
            size = f'{image.shape[1]}x{image.shape[0]}'
            raise DataError(f'{sample["lq_path"][0]}: crop_border {border} leaves nothing of its result, {size}')
    if opt['val'].get('save_img'):
        write_image(image_path(opt, sample['lq_path'][0], iteration, name), image)
    return [measured(images, metric, sample['lq_path'][0]) for metric in metrics.values()]


def measured(images: dict[str, Any], metric: dict[str, Any], path: str) -> float:
    """Compute one metric. Whatever a user's own metric raises becomes a DataError, before which the run is saved."""
    taken = inspect.signature(METRIC_REGISTRY.get(metric['type'])).parameters.values()
    if not any(parameter.name == 'img2' or parameter.kind is parameter.VAR_KEYWORD for parameter in taken):
        images = {'img': images['img']}
    try:
        return float(calculate_metric(images, {key: value for key, value in metric.items() if key != 'better'}))
    except Exception as error:
        raise DataError(f'{path}: {metric["type"]} fails: {first_line(error)}') from error


def image_path(opt: dict[str, Any], lq_path: str, iteration: int | str, name: str) -> Path:
    """The path at which BasicSR writes an image; in training each of several validation sets has its own folder."""
    stem = Path(lq_path).stem
    folder = Path(opt['path']['visualization'])
    if opt['is_train']:
        folder = folder / name if len(opt['datasets']) > 2 else folder
        return folder / stem / f'{stem}_{iteration}.png'
    return folder / name / f'{stem}_{opt["val"].get("suffix") or opt["name"]}.png'
