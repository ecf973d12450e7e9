"""Time of reading a training sample, for each way of storing the images."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from nlsn_plugin.data.images import crop_to_multiple, list_images, read_image
from nlsn_plugin.data.paired import SafePairedImageDataset
from nlsn_plugin.data.prepare import STORAGE, prepare_training_data
from nlsn_plugin.engine.measuring.machine import describe_machine
from nlsn_plugin.engine.measuring.timing import Step, interleaved, summary
from nlsn_plugin.errors import UserError

SAMPLES = 20
"""Samples that are read in one turn."""
WHOLE = 2**14 * 12
"""Edge in pixels of a sub-image that holds any photograph as a whole."""


def run(source: Path, scale: int, gt_size: int, crop_sizes: Sequence[int], budget: float) -> dict[str, Any]:
    """Store the photographs of a folder in every way, and time the reading of random patches from each in one process.

    Args:
        source: folder of HR images.
        scale: factor by which LR images are reduced, by bicubic.
        gt_size: edge of an HR patch, in pixels.
        crop_sizes: edges of the sub-images in the LMDBs, in pixels; their step is half the edge.
        budget: seconds for timing all ways together.

    Returns:
        The machine, and records with what, milliseconds of a sample (median), spread, runs and megabytes on disk.

    Raises:
        UserError: there are no images, or one is smaller than a patch.
    """
    for path in list_images([source]):
        height, width = crop_to_multiple(read_image(path), scale).shape[:2]
        if min(height, width) < gt_size:
            raise UserError(f'{path} has {width}x{height} pixels at scale {scale}: a patch has {gt_size}x{gt_size}')
    with tempfile.TemporaryDirectory() as scratch:
        folders = {}
        for crop_size in (WHOLE, *crop_sizes):
            for storage in STORAGE:
                name = f'{storage}, ' + ('whole images' if crop_size == WHOLE else f'sub-images of {crop_size} pixels')
                made = prepare_training_data(
                    source, Path(scratch), name, [scale], crop_size, crop_size // 2, storage=storage
                )
                folders[name] = made
        steps: dict[str, Step] = {}
        for name, (gt, lq) in folders.items():
            options = {
                'dataroot_gt': str(gt),
                'dataroot_lq': str(lq),
                'io_backend': {'type': 'lmdb'},
                'scale': scale,
                'gt_size': gt_size,
                'phase': 'train',
                'use_hflip': True,
                'use_rot': True,
            }
            steps[name] = partial(read, SafePairedImageDataset(options), random.Random(0))
        times = interleaved(steps, 'cpu', budget)
        megabytes = {name: sum(size(path) for path in paths) / 1e6 for name, paths in folders.items()}
    records = [
        {'what': name, **summary(seconds, SAMPLES), 'megabytes': megabytes[name]} for name, seconds in times.items()
    ]
    return {'machine': describe_machine('cpu'), 'records': records}


def read(dataset: Dataset[Any], drawn: random.Random) -> None:
    for _ in range(SAMPLES):
        dataset[drawn.randrange(len(dataset))]  # type: ignore[arg-type]


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob('*') if path.is_file())
