"""HTML page of visual comparisons in the style of the paper's Figure 4, with error maps; it needs no server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from basicsr.metrics.metric_util import to_y_channel

from nlsn_plugin.data.benchmark_sets import BICUBIC
from nlsn_plugin.data.images import crop_to_multiple, read_image, write_image
from nlsn_plugin.engine.details import DETAIL, densest
from nlsn_plugin.engine.evaluation.records import Record, plain
from nlsn_plugin.engine.evaluation.reports import Results, Table
from nlsn_plugin.engine.pages import render
from nlsn_plugin.files import write_text

BRIGHTEST = 48
"""Error in levels of Y at which an error map reaches its brightest colour."""
EDGE = 8
"""Pixels along the edges that are ignored when a detail is chosen."""


def write(results: Results, tables: Sequence[Table], folder: Path, per_set: int) -> Path:
    """Write index.html, and the images it shows under visuals/; return the path of the page.

    Args:
        results: what `scoring.run` returned.
        tables: shown at the top of the page.
        folder: the output folder of `scoring.run`.
        per_set: number of images to show of each set and scale, namely those in which the networks differ most.

    Raises:
        SaveError: the folder cannot be written to.
    """
    shown = [image for image in results['images'] if image['file'] and per_set]  # else none is read
    shown.sort(key=of_set)
    comparisons: list[Mapping[str, Any]] = []
    for _, group in groupby(shown, of_set):
        by_image: dict[str, list[Record]] = {}
        for image in group:
            by_image.setdefault(image['hr'], []).append(image)
        found = [(*where_they_differ(images, folder), images) for images in by_image.values()]
        found.sort(key=lambda entry: -entry[2])
        for top, left, _, images in found[:per_set]:
            comparisons.append(draw(images, top, left, folder, len(comparisons)))
    page = render('gallery.html', tables=tables, comparisons=comparisons, brightest=BRIGHTEST, detail=DETAIL)
    path = folder / 'index.html'
    write_text(path, page)
    return path


def of_set(image: Record) -> tuple[int, str]:
    return image['scale'], image['set']


def pixels(images: Sequence[Record], folder: Path) -> dict[str, np.ndarray]:
    """Read the ground truth, under the key '', and the enlarged images, by network; all BGR."""
    truth = crop_to_multiple(read_image(Path(images[0]['hr'])), images[0]['scale'])
    return {'': truth, **{image['network']: read_image(folder / image['file']) for image in images}}


def where_they_differ(images: Sequence[Record], folder: Path) -> tuple[int, int, float]:
    """Top and left of the detail in which the networks differ most, and the difference summed over it.

    A single network is compared with bicubic, and bicubic alone with the truth.
    """
    found = pixels(images, folder)
    networks = [image for name, image in found.items() if name not in ('', BICUBIC)]
    compared = networks if len(networks) > 1 else [*networks, found[BICUBIC], found['']][:2]
    amount = np.stack([to_y_channel(image)[..., 0] for image in compared]).astype(np.float64).var(axis=0)
    inner = np.zeros_like(amount)  # differences along the edges mean little
    inner[EDGE:-EDGE, EDGE:-EDGE] = amount[EDGE:-EDGE, EDGE:-EDGE]
    return densest(inner, DETAIL, DETAIL)


def draw(images: Sequence[Record], top: int, left: int, folder: Path, number: int) -> Mapping[str, Any]:
    """Write the whole truth, the details and their error maps; return the values that the page's template needs.

    Args:
        images: records of one image, one for each network.
        top, left: corner of the detail.
        folder: the output folder of `scoring.run`.
        number: of the comparison; it begins the names of its files. Numbers keep the names apart where labels or names
            of images differ only in characters that `plain` replaces, or where a label is that of the truth.
    """
    found = pixels(images, folder)
    truth = found['']
    height, width = truth.shape[:2]
    area = slice(top, top + DETAIL), slice(left, left + DETAIL)
    first = images[0]
    title = f'{first["set"]}, {first["image"]}, x{first["scale"]}'
    stem = f'visuals/{number}_{plain(first["set"])}_x{first["scale"]}_{plain(first["image"])}'

    def put(suffix: str, image: np.ndarray) -> str:
        file = f'{stem}_{suffix}.png'
        write_image(folder / file, image)
        return file

    details = [
        {'label': 'HR', 'detail': put('0_HR', truth[area]), 'error': None, 'figures': 'PSNR / SSIM', 'best': False}
    ]
    finest = max(infinite_if_equal(image['psnr_y']) for image in images)
    for place, image in enumerate(images, start=1):
        label = image['network']
        name = f'{place}_{plain(label)}'
        psnr = infinite_if_equal(image['psnr_y'])
        details.append(
            {
                'label': label,
                'detail': put(name, found[label][area]),
                'error': put(f'{name}_error', error_map(found[label], truth)[area]),
                'figures': f'{psnr:.2f} / {image["ssim_y"]:.4f}',
                'best': psnr == finest and len(images) > 1,
            }
        )
    return {
        'title': title,
        'whole': put('whole', truth),
        'width': width,
        'height': height,
        'box': [100 * part / size for part, size in ((left, width), (top, height), (DETAIL, width), (DETAIL, height))],
        'details': details,
    }


def infinite_if_equal(psnr: float | None) -> float:
    return float('inf') if psnr is None else psnr


def error_map(image: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Absolute difference of Y as colours from black to yellow, BGR."""
    difference = np.abs(to_y_channel(image) - to_y_channel(truth))[..., 0]
    return cv2.applyColorMap((difference / BRIGHTEST * 255).clip(0, 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
