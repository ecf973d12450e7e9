"""Measurement of networks and bicubic on benchmark sets, image by image; a stopped run can be resumed."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

import nlsn_plugin
from nlsn_plugin import ops
from nlsn_plugin.data.benchmark_sets import BICUBIC, BenchmarkSet, Photograph
from nlsn_plugin.data.images import enlarge, write_image
from nlsn_plugin.engine.evaluation import costs
from nlsn_plugin.engine.evaluation.contestants import Contestant, Inference
from nlsn_plugin.engine.evaluation.records import Record, Records, digest, plain
from nlsn_plugin.engine.measuring.machine import describe_machine
from nlsn_plugin.engine.measuring.timing import synchronise
from nlsn_plugin.engine.names import readable
from nlsn_plugin.errors import DataError
from nlsn_plugin.metrics.protocols import METRICS, PROTOCOLS, Protocol, bicubic_planes, mean, planes, score
from nlsn_plugin.ops.cpu_matmul import onednn_multiplies

Results = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """All that figures depend on besides networks and images.

    Attributes:
        protocol: which planes are compared, and how they are obtained.
        border: pixels left out along each edge; None is as many as the scale.
        inference: how networks enlarge images.
        n_hashes: numbers of rounds to try; None in it stands for the network's own number.
        seeds: number of seeds of the hashing to try, counted up from the network's own seed.
        device: 'cpu' or 'cuda'.
        cost_size: height and width of the LR image for which the cost is measured; None measures no cost.
    """

    protocol: Protocol = PROTOCOLS['basicsr']
    border: int | None = None
    inference: Inference = field(default_factory=Inference)
    n_hashes: Sequence[int | None] = (None,)
    seeds: int = 1
    device: str = 'cpu'
    cost_size: Sequence[int] | None = (128, 128)


class Entry(NamedTuple):
    """A row of the tables.

    Attributes:
        label: name in the tables.
        scale: factor of enlargement.
        contestant: the network; None for bicubic.
        n_hashes: rounds of hashing; None without attention, or where the attentions keep rounds that differ.
        seeds: seeds of the hashing; [None] without attention.
    """

    label: str
    scale: int
    contestant: Contestant | None
    n_hashes: int | None
    seeds: Sequence[int | None]


def run(
    contestants: Sequence[Contestant], sets: Mapping[int, Sequence[BenchmarkSet]], settings: Settings, output: Path
) -> Results:
    """Measure bicubic and all contestants on all sets.

    Args:
        contestants: the networks; each is measured at its own scale.
        sets: benchmark sets, by scale.
        settings: the protocol, and how networks are run.
        output: folder for records.jsonl and images/; what these hold already is not measured again.

    Returns:
        The content of results.json: protocol, machine, networks, sets, figures, images.

    Raises:
        UserError: an image cannot be scored, a network fails, or the disk is full.
    """
    records = Records(output / 'records.jsonl')
    entries = list(rows(contestants, list(sets), settings))
    tasks = [
        (benchmark_set, photograph, entry, seed)
        for scale, of_scale in sets.items()
        for benchmark_set in of_scale
        for photograph in benchmark_set.photographs
        for entry in entries
        for seed in entry.seeds
        if entry.scale == scale
    ]
    images: list[Record] = []
    reused = 0
    with tqdm(tasks, unit='image') as bar:
        for benchmark_set, photograph, entry, seed in bar:
            bar.set_description(f'{benchmark_set.name} x{entry.scale}, {entry.label}')
            key = digest(what_decides(entry, seed, photograph, settings))
            name = f'{photograph.hr.stem}_{plain(entry.label)}_{key[:8]}.png'
            file = Path('images', f'{plain(benchmark_set.name)}_x{entry.scale}', name)
            shown = seed == entry.seeds[0]  # for other seeds figures are kept, but no images
            if key in records.found and (not shown or (output / file).exists()):
                reused += 1
            else:
                image, record = measure(entry, seed, photograph, settings)
                if shown:
                    write_image(output / file, image)
                records.add(key, {'image': photograph.hr.name, 'network': entry.label, 'seed': seed, **record})
            kept = records.found[key]
            images.append(
                {
                    'scale': entry.scale,
                    'set': benchmark_set.name,
                    'image': photograph.hr.stem,
                    'hr': str(photograph.hr),
                    'network': entry.label,
                    'n_hashes': entry.n_hashes,
                    'seed': seed,
                    **{name: kept[name] for name in (*METRICS, 'seconds')},
                    'file': file.as_posix() if shown else None,
                }
            )
    if reused:
        print(readable(f'{reused} of {len(tasks)} were measured before, and taken from {records.path}'))
    return {
        'protocol': describe(settings, list(sets)),
        'machine': describe_machine(settings.device),
        'networks': [
            describe_network(entry, entry.contestant, settings, records) for entry in entries if entry.contestant
        ],
        'sets': [
            {
                'name': part.name,
                'scale': scale,
                'folder': str(part.folder),
                'lr': part.lr,
                'images': len(part.photographs),
            }
            for scale, of_scale in sets.items()
            for part in of_scale
        ],
        'figures': list(figures(images)),
        'images': images,
    }


def rows(contestants: Sequence[Contestant], scales: Sequence[int], settings: Settings) -> Iterator[Entry]:
    """Yield the rows of the tables: at each scale bicubic, then each contestant with each number of rounds."""
    for scale in scales:
        yield Entry(BICUBIC, scale, None, None, [None])
        for contestant in contestants:
            if contestant.recipe.scale != scale:
                continue
            label = contestant.recipe.label
            if contestant.first_seed is None:
                yield Entry(label, scale, contestant, None, [None])
                continue
            seeds = [contestant.first_seed + number for number in range(settings.seeds)]
            for rounds in settings.n_hashes:
                suffix = f', n_hashes {rounds}' if len(settings.n_hashes) > 1 else ''
                given = contestant.n_hashes if rounds is None else rounds
                yield Entry(label + suffix, scale, contestant, given, seeds)


def what_decides(entry: Entry, seed: int | None, photograph: Photograph, settings: Settings) -> dict[str, Any]:
    """Everything that the figures of one image depend on, to be digested into the key of their record."""
    network = None
    if entry.contestant:
        recipe = entry.contestant.recipe
        network = {
            'type': recipe.type,
            'arguments': recipe.arguments,
            'weights': entry.contestant.digest,
            'code': entry.contestant.code,
            'param_key': recipe.param_key,
            'n_hashes': entry.n_hashes,
            'seed': seed,
            **asdict(settings.inference),
            'device': settings.device,
            'torch': torch.__version__,
            **chosen_for_process(),
        }
    return {
        'network': network,
        'scale': entry.scale,
        'image': photograph.digest,
        'protocol': asdict(settings.protocol),
        'border': settings.border,
        'nlsn_plugin': nlsn_plugin.__version__,
    }


def measure(entry: Entry, seed: int | None, photograph: Photograph, settings: Settings) -> tuple[np.ndarray, Record]:
    """Enlarge and score one image; return it and its figures, with None for the infinite PSNR of equal images.

    Raises:
        DataError: the image cannot be read or scored.
        UserError: the network fails on it.
    """
    truth, lr = photograph.read(entry.scale)
    started = time.perf_counter()
    if entry.contestant:
        entry.contestant.hash_by(entry.n_hashes, seed)
        started = time.perf_counter()
        image = entry.contestant.enlarge(lr, settings.inference)
        synchronise(settings.device)
    else:
        image = enlarge(lr, entry.scale)
    seconds = time.perf_counter() - started
    if entry.contestant:
        found = planes(image, settings.protocol, truth.ndim == 2)
    else:
        found = bicubic_planes(lr, truth, entry.scale, settings.protocol)
    border = entry.scale if settings.border is None else settings.border
    try:
        scores = score(found, planes(truth, settings.protocol, truth.ndim == 2), border)
    except DataError as error:
        raise DataError(f'{photograph.hr}: {error}') from error
    return image, {**{name: None if math.isinf(value) else value for name, value in scores.items()}, 'seconds': seconds}


def figures(images: Sequence[Record]) -> Iterator[Record]:
    """Yield for each scale, set and network the means over images, then seeds, and the deviation between seeds."""
    groups: dict[tuple[int, str, str], list[Record]] = {}
    for image in images:
        groups.setdefault((image['scale'], image['set'], image['network']), []).append(image)
    for (scale, name, network), group in groups.items():
        seeds = list(dict.fromkeys(image['seed'] for image in group))
        found: Record = {
            'scale': scale,
            'set': name,
            'network': network,
            'n_hashes': group[0]['n_hashes'],
            'seeds': seeds,
            'images': len(group) // len(seeds),
            'identical': len({image['image'] for image in group if image['psnr_y'] is None}),
        }
        for metric in METRICS:
            by_seed = [mean_of([image[metric] for image in group if image['seed'] == seed]) for seed in seeds]
            finite = [value for value in by_seed if value is not None]
            found[metric] = {
                'mean': statistics.fmean(finite) if finite else None,
                'spread': statistics.stdev(finite) if len(finite) > 1 else None,
                'by_seed': by_seed,
            }
        yield found


def mean_of(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are not None; None if all are None."""
    found = mean([math.inf if value is None else value for value in values])
    return None if math.isinf(found) else found


def describe(settings: Settings, scales: Sequence[int]) -> dict[str, Any]:
    """Describe the protocol in full, for results.json; a border that was asked for becomes part of its name."""
    border = '' if settings.border is None else f', border {settings.border}'
    return {
        **asdict(settings.protocol),
        'name': settings.protocol.name + border,
        'output': 'rounded to 8-bit RGB',
        'border': {f'x{scale}': scale if settings.border is None else settings.border for scale in scales},
        'mean': 'over images, then over seeds; images equal to the truth are left out of PSNR and counted',
        'spread': 'standard deviation between seeds of the means over images',
        'seeds': settings.seeds,
        **asdict(settings.inference),
        'device': settings.device,
        **chosen_for_process(),
    }


def describe_network(entry: Entry, contestant: Contestant, settings: Settings, records: Records) -> Record:
    """Describe the network of a row, and its cost if the settings ask for it."""
    return {
        **asdict(contestant.recipe),
        'sha256': contestant.digest,
        'label': entry.label,
        'n_hashes': entry.n_hashes,
        'seeds': list(entry.seeds),
        'cost': cost_of(entry, contestant, settings, records) if settings.cost_size else None,
    }


def chosen_for_process() -> dict[str, Any]:
    """What is chosen for the whole process: the backend by NLSN_BACKEND, oneDNN's products by onednn_matmul."""
    backend = ops.named('auto')
    return {
        **({} if backend == 'auto' else {'backend': backend}),
        **({'onednn_matmul': True} if onednn_multiplies(torch.empty(0)) else {}),
    }


def cost_of(entry: Entry, contestant: Contestant, settings: Settings, records: Records) -> Record:
    size = list(settings.cost_size or ())
    recipe = contestant.recipe
    decisive = {
        'type': recipe.type,
        'arguments': recipe.arguments,
        'code': contestant.code,
        'n_hashes': entry.n_hashes,
        'size': size,
        **asdict(settings.inference),
        **chosen_for_process(),
        'machine': describe_machine(settings.device),
    }
    key = digest(decisive)
    if key not in records.found:
        print(f'measuring time and memory of {entry.label} x{entry.scale}')
        measured = costs.measure(contestant, entry.n_hashes, size, settings.device, settings.inference)
        records.add(key, {'network': entry.label, 'cost': measured})
    cost: Record = records.found[key]['cost']
    return cost
