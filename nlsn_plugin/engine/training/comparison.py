"""Comparison of bicubic, network and ground truth on a finished run's validation image: figures and a picture."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from basicsr.archs import build_network
from basicsr.utils import tensor2img
from tabulate import tabulate

from nlsn_plugin.data.images import enlarge
from nlsn_plugin.data.paired import build_dataset
from nlsn_plugin.engine.details import DETAIL, densest
from nlsn_plugin.engine.options.reading import Options
from nlsn_plugin.engine.training.validation import measured
from nlsn_plugin.files import write_whole
from nlsn_plugin.models.checkpoint import load_weights, read_weights
from nlsn_plugin.models.inference import in_whole_windows, window_of


def compare_with_bicubic(opt: Options) -> Path:
    """Print the validation metrics of bicubic and of the trained network on the first validation image, and draw both.

    Args:
        opt: BasicSR's options of a finished run; the figures are those of its `val: metrics`.

    Returns:
        The path of the picture, <experiment>/comparison_<image>.png.
    """
    validation = next(options for options in opt['datasets'].values() if options['phase'] == 'val')
    sample = build_dataset(validation)[0]
    net = build_network(opt['network_g']).eval()
    weights = Path(opt['path']['models']) / 'net_g_latest.pth'
    load_weights(net, read_weights(weights, 'params_ema'), weights)
    with torch.no_grad():
        output = in_whole_windows(net, window_of(opt['network_g']), opt['scale'])(sample['lq'][None])

    name = opt['network_g']['type']
    truth = tensor2img(sample['gt'])
    images = {'bicubic': enlarge(tensor2img(sample['lq']), opt['scale']), name: tensor2img(output)}
    figures = {
        label: {
            metric: measured({'img': image, 'img2': truth}, options, sample['gt_path'])
            for metric, options in opt['val']['metrics'].items()
        }
        for label, image in images.items()
    }
    title = Path(sample['gt_path']).stem
    picture = Path(opt['path']['experiments_root']) / f'comparison_{title}.png'
    draw({**images, 'ground truth': truth}, figures, picture)
    print(table(f'{title}, x{opt["scale"]}', figures))
    print(f'\nSide by side: {picture}')
    return picture


def table(title: str, figures: dict[str, dict[str, float]]) -> str:
    """Format figures as text: one row per method, and one for the gain of the last over the first."""
    metrics = list(next(iter(figures.values())))
    first, last = next(iter(figures)), next(reversed(figures))
    gain = {metric: figures[last][metric] - figures[first][metric] for metric in metrics}
    rows = [(label, row, '') for label, row in figures.items()] + [(f'{last} - {first}', gain, '+')]
    cells = [
        [label, *(f'{value:{sign}.{decimals(metric)}f}' for metric, value in row.items())] for label, row, sign in rows
    ]
    headers = [title, *(metric.upper() for metric in metrics)]
    alignment = ['left', *('right' for _ in metrics)]
    return '\n' + tabulate(cells, headers, tablefmt='plain', disable_numparse=True, colalign=alignment)


def decimals(metric: str) -> int:
    """Number of decimals that papers usually give for a metric."""
    return 2 if metric.startswith('psnr') else 4


def draw(images: dict[str, np.ndarray], figures: dict[str, dict[str, float]], path: Path) -> None:
    """Draw BGR images side by side, and below them the detail in which the second gains most on the first."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    first, second, truth = images.values()
    top, left = most_improved(first, second, truth)
    height, width = truth.shape[:2]
    column = 4.0
    figure = Figure(figsize=(3 * column, column * (height / width + 1) + 0.4), layout='constrained')
    axes = figure.subplots(2, 3, height_ratios=[height / width, 1])
    for (label, image), whole, detail in zip(images.items(), axes[0], axes[1]):
        rgb = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        whole.imshow(rgb)
        whole.add_patch(Rectangle((left, top), DETAIL, DETAIL, fill=False, edgecolor='red', linewidth=1.5))
        numbers = [
            f'{value:.{decimals(metric)}f}' + ' dB' * metric.startswith('psnr')
            for metric, value in figures.get(label, {}).items()
        ]
        whole.set_title(label + ('\n' + ' / '.join(numbers) if numbers else '\n'), fontsize=11)
        detail.imshow(rgb[top : top + DETAIL, left : left + DETAIL], interpolation='nearest')
        whole.axis('off')
        detail.axis('off')
    write_whole(path, lambda temporary: figure.savefig(temporary, dpi=110, format='png'))


def most_improved(first: np.ndarray, second: np.ndarray, truth: np.ndarray) -> tuple[int, int]:
    """Top-left corner of the DETAIL square in which the squared error falls most from `first` to `second`."""

    def error(image: np.ndarray) -> np.ndarray:
        return ((image.astype(np.float64) - truth) ** 2).sum(axis=2)

    return densest(error(first) - error(second), DETAIL, DETAIL)[:2]
