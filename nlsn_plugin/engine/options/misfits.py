"""Mistakes in options that types do not show: unknown classes, wrong arguments, impossible combinations."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import inspect
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from basicsr.models.srgan_model import SRGANModel
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY
from pydantic import BaseModel as Section

from nlsn_plugin import checks
from nlsn_plugin.archs import bases
from nlsn_plugin.archs.bases import registered_in_basicsr
from nlsn_plugin.engine.options.classes import (
    Misfits,
    Options,
    misfits_of_class,
    misfits_of_values,
    networks_of,
    without_type,
)
from nlsn_plugin.engine.options.documents import Keys
from nlsn_plugin.engine.options.schedules import misfits_of_schedule
from nlsn_plugin.engine.options.schema import (
    READERS,
    Path,
    TestOptions,
    Train,
    TrainingOptions,
    TrainingValidation,
    Validation,
    kind_of_dataset,
    reader_of,
)
from nlsn_plugin.errors import FAILURES, UserError, first_line
from nlsn_plugin.models.building import tried

PROBE = (48, 64)
"""Height and width of an image on which networks are tried: multiples of windows of 8 and of 16."""
COMPILERS = {'darwin': 'clang++', 'win32': 'cl'}
"""The compilers that torch.compile calls for CPUs on systems where it is not g++, unless CXX names another."""
OF_TRITON = ('gcc', 'clang')
"""The compilers of which Triton needs one for its kernels for GPUs, unless CC names another."""


def misfits(opt: Options, is_train: bool) -> Misfits:
    """Yield all mistakes in options that match the schema."""
    yield from misfits_of_class(('model_type',), opt['model_type'], None, MODEL_REGISTRY)
    network = list(misfits_of_class(('network_g',), opt['network_g']['type'], opt['network_g'], ARCH_REGISTRY))
    network = network or list(misfits_of_network(('network_g',), opt['network_g']))
    yield from network
    yield from ignored(opt, is_train)
    for name, metric in ((opt.get('val') or {}).get('metrics') or {}).items():
        yield from misfits_of_metric(('val', 'metrics', name), metric)
    yield from misfits_of_datasets(opt['datasets'])
    if not network:
        yield from misfits_of_channels(opt)
    val = opt.get('val')
    if val and not val['metrics'] and not val['save_img']:
        yield ('val',), 'has no metrics and writes no images: there is nothing to do'
    if not is_train:
        return
    yield from misfits_of_training(opt)
    yield from misfits_of_wandb(opt['logger'])
    if opt['compare_with_bicubic']:
        yield from misfits_of_comparison(opt)


def misfits_of_training(opt: Options) -> Misfits:
    """Yield the mistakes in losses, schedule, model and batches."""
    train, data = opt['train'], opt['datasets']['train']
    for key in ('pixel_opt', 'perceptual_opt', 'gan_opt'):
        if train.get(key):
            yield from misfits_of_loss(('train', key), train[key])
    yield from misfits_of_schedule(train)
    if model := registered_in_basicsr(MODEL_REGISTRY, opt['model_type']):
        yield from misfits_of_model(opt, model)
    if isinstance(data.get('gt_size'), int) and data['gt_size'] % opt['scale']:
        fitting = data['gt_size'] // opt['scale'] * opt['scale'] or opt['scale']
        text = f'{data["gt_size"]} is not divisible by scale {opt["scale"]}: {fitting} is'
        yield ('datasets', 'train', 'gt_size'), text
    if data['batch_size_per_gpu'] % train['accumulate']:
        text = f'{train["accumulate"]} does not divide batch_size_per_gpu {data["batch_size_per_gpu"]}'
        yield ('train', 'accumulate'), text
    if train['accumulate'] > 1 and (train.get('pixel_opt') or {}).get('reduction') == 'sum':
        yield ('train', 'pixel_opt', 'reduction'), 'sum does not go with accumulate, which takes the mean of its parts'
    if train['compile'] and not has_compiler():
        yield ('train', 'compile'), 'needs a compiler of C++, and none is there: `apt-get install -y g++`, say'
    if data['prefetch_mode'] == 'cuda' and not data['pin_memory']:
        yield ('datasets', 'train', 'prefetch_mode'), 'cuda needs pin_memory: true'
    if opt.get('val') and len(opt['datasets']) == 1:
        yield ('val',), 'there is nothing to validate on: datasets has no val'


def has_compiler() -> bool:
    """Whether there is a C++ compiler that torch.compile will find; with a GPU one for C will do."""
    wanted = [os.environ.get('CXX') or COMPILERS.get(sys.platform, 'g++')]
    if torch.cuda.is_available():
        wanted += [os.environ['CC']] if os.environ.get('CC') else OF_TRITON
    return any(shutil.which(command.partition(' ')[0]) for command in wanted)  # it may be 'ccache g++'


def misfits_of_wandb(logger: Options) -> Misfits:
    if logger['wandb'] and logger['wandb']['project']:
        if not logger['use_tb_logger']:
            yield ('logger', 'wandb', 'project'), 'needs use_tb_logger: true'
        if not importlib.util.find_spec('wandb'):
            yield ('logger', 'wandb', 'project'), 'wandb is not installed: type `pip install wandb`'


def misfits_of_comparison(opt: Options) -> Misfits:
    """Yield what the comparison with bicubic at the end of a run needs and lacks."""
    if not (opt.get('val') and opt['val']['metrics']):
        yield ('compare_with_bicubic',), 'needs val with metrics'
    measured = [dataset for phase, dataset in opt['datasets'].items() if phase.startswith('val')]
    if not measured:
        yield ('compare_with_bicubic',), 'needs a data set val'
    for key, said in (('color', 'needs images in colour'), ('mean', 'needs images as they are')):
        if any(dataset.get(key) for dataset in measured):
            yield ('compare_with_bicubic',), f'{said}: a data set val has {key}'


def misfits_of_datasets(datasets: Options) -> Misfits:
    """Yield the mistakes in the data sets.

    They are unknown classes, names used twice, of which BasicSR would only take the last, lists of images that would
    not be read, and means and deviations that do not fit or that differ.
    """
    phases: dict[str, str] = {}
    for phase, dataset in datasets.items():
        yield from misfits_of_class(('datasets', phase), dataset['type'], None, DATASET_REGISTRY)
        if dataset['name'] in phases:
            yield ('datasets', phase, 'name'), f'{dataset["name"]} is the name of {phases[dataset["name"]]} already'
        elif phase != 'train':
            phases[dataset['name']] = phase
    for phase, dataset in datasets.items():
        is_pairs_of_lmdb = kind_of_dataset(dataset) == 'paired' and dataset['io_backend']['type'] == 'lmdb'
        if is_pairs_of_lmdb and dataset.get('meta_info_file') is not None:
            yield ('datasets', phase, 'meta_info_file'), 'is for folders: of an LMDB all that its own lists is read'
    mistakes = [mistake for phase in datasets for mistake in misfits_of_normalisation(phase, datasets[phase])]
    yield from mistakes
    if not mistakes:
        yield from misfits_between(datasets)


def misfits_of_normalisation(phase: str, dataset: Options) -> Misfits:
    """Yield means and deviations of a data set that do not fit the images or each other."""
    for key, other in (('mean', 'std'), ('std', 'mean')):
        if dataset.get(key) is not None and dataset.get(other) is None:
            yield ('datasets', phase, key), f'needs {other}'
        if len(dataset.get(key) or [0]) not in (1, 3):
            yield ('datasets', phase, key), f'has {len(dataset[key])} values: one for each channel is expected'
    if 0 in (dataset.get('std') or ()):
        yield ('datasets', phase, 'std'), 'has a 0, by which images would be divided'


def misfits_between(datasets: Options) -> Misfits:
    """Yield data sets that give the network images in another range than the first data set does."""
    ranges = {
        phase: [[*values] * (3 // len(values)) for values in (dataset.get('mean') or [0], dataset.get('std') or [1])]
        for phase, dataset in datasets.items()
        if kind_of_dataset(dataset) == 'paired'
    }
    first = next(iter(ranges), '')
    for phase, own in ranges.items():
        if own != ranges[first]:
            yield ('datasets', phase), f'mean and std are others than those of {first}: the network is one'


def misfits_of_model(opt: Options, model: type) -> Misfits:
    """Yield what a GAN model needs and lacks, and the mistakes in its discriminator."""
    train = opt['train']
    if not any('GAN' in cls.__name__ for cls in model.__mro__):
        return
    for section, key in ((opt, 'network_d'), (train, 'optim_d'), (train, 'gan_opt')):
        if not section.get(key):
            yield (() if section is opt else ('train',)), f'lacks the key {key}, which {opt["model_type"]} needs'
    if train['net_d_init_iters'] >= train['total_iter']:
        last = train['total_iter']
        yield ('train', 'net_d_init_iters'), f'less than total_iter {last} is expected, or network_g would never train'
    if network := opt.get('network_d'):
        mistakes = list(misfits_of_class(('network_d',), network['type'], network, ARCH_REGISTRY))
        mistakes = mistakes or list(misfits_of_network(('network_d',), network))
        size = opt['datasets']['train'].get('gt_size')
        if not mistakes and issubclass(model, SRGANModel) and isinstance(size, int):
            mistakes = list(misfits_of_discriminator(network, size, opt['datasets']['train'].get('color') == 'y'))
        yield from mistakes


def misfits_of_own(model_type: str, own: Mapping[tuple[str, str], Any]) -> Misfits:
    """Yield mistakes in keys that only this model reads: numbers read as text, and wrong losses (..._opt)."""
    is_basicsr = getattr(registered_in_basicsr(MODEL_REGISTRY, model_type), '__module__', '').startswith('basicsr.')
    for (section, key), value in own.items():
        above: Keys = (section,) if section else ()
        yield from misfits_of_values(above, {key: value})
        if key.endswith('_opt') and isinstance(value, dict):
            name = str(value.get('type'))
            if is_basicsr or registered_in_basicsr(LOSS_REGISTRY, name):
                yield from misfits_of_class((*above, key), name, value, LOSS_REGISTRY)


def misfits_of_discriminator(network: Options, gt_size: int, is_gray: bool) -> Misfits:
    """Yield a mistake if the discriminator does not take the training patches; found by running it on one."""
    size = [1, 1 if is_gray else 3, gt_size, gt_size]
    try:
        tried(network, lambda discriminator: discriminator(torch.zeros(size)))
    except FAILURES as error:
        yield ('network_d',), f'{network["type"]} fails on a patch of {size[1:]}: {first_line(error)}'


def enlargement(opt: Options) -> float | None:
    """The factor by which network_g enlarges, found with one small image; None if it makes no image of that."""
    size = [1, 1 if any(data.get('color') == 'y' for data in opt['datasets'].values()) else 3, *PROBE]
    with contextlib.suppress(*FAILURES, UserError):
        made = tried(opt['network_g'], lambda net: net(torch.zeros(size)))
        return float(made.shape[-1] / PROBE[1]) if made.dim() == 4 else None
    return None


def misfits_of_channels(opt: Options) -> Misfits:
    """Yield data sets whose images have more or fewer channels than the network takes, if it has a num_in_ch."""
    network = bases.innermost(opt['network_g'])
    parameters = inspect.signature(bases.base_class(network['type'])).parameters
    if 'num_in_ch' not in parameters:
        return
    taken = network.get('num_in_ch', parameters['num_in_ch'].default)
    for phase, dataset in opt['datasets'].items():
        channels = 1 if dataset.get('color') == 'y' else 3
        if kind_of_dataset(dataset) == 'paired' and taken != channels:
            place: Keys = ('datasets', phase, 'color') if channels == 1 else ('datasets', phase)
            yield place, f'images of {channels} channels, and network_g takes {taken} (num_in_ch)'


CHECKS_OF_METRICS: dict[str, Callable[[str, Any], object]] = {
    'crop_border': functools.partial(checks.whole, least=0),
    'test_y_channel': checks.boolean,
    'input_order': functools.partial(checks.one_of, allowed=('HWC', 'CHW')),
}


def misfits_of_metric(keys: Keys, options: Options) -> Misfits:
    """Yield a mistake if a metric does not exist, or has values with which the first validation would fail."""
    arguments = {key: value for key, value in options.items() if key != 'better'}
    metric = registered_in_basicsr(METRIC_REGISTRY, options['type'])
    images = {'img', 'img2'} & inspect.signature(metric).parameters.keys() if metric else ()
    yield from misfits_of_class(keys, options['type'], {**arguments, **dict.fromkeys(images)}, METRIC_REGISTRY)
    yield from misfits_of_values(keys, arguments, CHECKS_OF_METRICS)


def misfits_of_loss(keys: Keys, options: Options) -> Misfits:
    """Yield a mistake if a loss does not exist or refuses its arguments.

    The loss is tried on a small image, except for perceptual ones, which read large files.
    """
    mistakes = [
        *misfits_of_class(keys, options['type'], options, LOSS_REGISTRY),
        *misfits_of_values(keys, options, {'loss_weight': checks.real}),
    ]
    yield from mistakes
    if mistakes or keys[-1] == 'perceptual_opt':
        return
    images = torch.zeros(1, 3, 2, 2)
    try:
        loss = LOSS_REGISTRY.get(options['type'])(**without_type(options))
        if keys[-1] == 'gan_opt':
            found = loss(images, True, is_disc=True) + loss(images, False, is_disc=True) + loss(images, True)
        else:
            found = loss(images, images)
    except FAILURES as error:
        yield keys, f'{options["type"]}: {first_line(error)}'
    else:
        if found.dim():
            shapes = f'{list(found.shape)} for images of {list(images.shape)}'
            yield keys, f'{options["type"]} gives {shapes}: one number is expected'


def ignored(opt: Options, is_train: bool) -> Misfits:
    """Yield the options that are set and that nothing would read."""
    model = registered_in_basicsr(MODEL_REGISTRY, opt['model_type'])
    if model is None:
        return
    reading = [cls.__name__ for cls in model.__mro__]
    reading.append('training' if is_train else 'testing')
    sections: list[tuple[Keys, Options, type[Section]]] = [
        ((), opt, TrainingOptions if is_train else TestOptions),
        (('path',), opt['path'], Path),
        (('train',), opt.get('train') or {}, Train),
        (('val',), opt.get('val') or {}, TrainingValidation if is_train else Validation),
    ]
    for keys, options, section in sections:
        for key, field in section.model_fields.items():
            reader = reader_of(field)
            is_set = options.get(key, field.default) != field.default
            if reader and is_set and not any(reader in name for name in reading):
                text = f'is read by {READERS[reader]} alone, not by {opt["model_type"]}'
                if reader in ('training', 'testing'):
                    text = f'is read in {reader} alone'
                yield (*keys, key), text
    networks = networks_of(opt)
    for name in opt['path']['ignore_resume_networks'] or ():
        if name not in networks:
            yield ('path', 'ignore_resume_networks'), f'there is no {name}{checks.nearest(name, networks)}'
    val = opt.get('val') or {}
    if val.get('tile') is None and val.get('tile_overlap') not in (
        None,
        Validation.model_fields['tile_overlap'].default,
    ):
        yield ('val', 'tile_overlap'), 'needs tile'


def misfits_of_network(keys: Keys, options: Options) -> Misfits:
    """Yield a value that a network refuses; found by building the network."""
    arguments = without_type(options)
    if isinstance(arguments.get('arch'), dict):
        mistakes = [((*keys, 'arch', *below), text) for below, text in bases.misfits(arguments['arch'])]
        if mistakes:
            yield from mistakes
            return
    try:
        tried(options, lambda net: None)
    except UserError as error:
        said = str(error)
    except FAILURES as error:
        said = f'{options["type"]} cannot be built: {first_line(error)}'
    else:
        return
    name, *text = re.split('=|: ', said, maxsplit=1)
    yield ((*keys, name), text[0]) if name in arguments else (keys, said)
