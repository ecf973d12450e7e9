"""What a run reports: a progress line, BasicSR's text log, TensorBoard, one line of JSON per entry, a plot."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import psutil
import torch
from basicsr.utils import MessageLogger, get_root_logger
from tqdm import tqdm

from nlsn_plugin.files import whole_lines, write_whole

Options = dict[str, Any]


class Events:
    """A SummaryWriter whose failures to write, as on a full disk, are logged and do not end the run."""

    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def add_scalar(self, *arguments: Any) -> None:
        try:
            self.writer.add_scalar(*arguments)
        except OSError as error:
            get_root_logger().warning(f'{self.writer.log_dir} could not be written: {error.strerror}')

    def __getattr__(self, name: str) -> Any:
        return getattr(self.writer, name)


class Journal:
    """Log of a run's progress, written by rank 0; on other ranks all methods do nothing.

    The progress line is only shown on terminals.

    Args:
        opt: BasicSR's options.
        iteration: the last iteration before this run; entries of later ones are dropped from the JSON log.
        tb_logger: a SummaryWriter, or None.
        validates_again: whether that iteration's validation was cut short; then its entries are dropped too.
    """

    def __init__(self, opt: Options, iteration: int, tb_logger: Any, validates_again: bool = False) -> None:
        self.opt, self.active = opt, opt['rank'] == 0
        self.path = Path(opt['path']['experiments_root']) / 'log.jsonl'
        self.message = MessageLogger(opt, iteration + 1, tb_logger)
        self.message.max_iters += 1  # it counts the update just done as one to come: the last eta would be -1 day
        total = opt['train']['total_iter']
        self.bar = tqdm(total=total, initial=iteration, unit='it', disable=None if self.active else True)
        if self.active:
            cut_short = (iteration, 'validation') if validates_again else None
            earlier = [line for line in whole_lines(self.path) if line['iter'] <= iteration]
            kept = [line for line in earlier if (line['iter'], line['kind']) != cut_short]
            write_whole(self.path, lambda path: path.write_text(''.join(json.dumps(line) + '\n' for line in kept)))

    def iteration(self) -> None:
        self.bar.update()

    def progress(self, epoch: int, iteration: int, lrs: list[float], seconds: float, data: float, losses: Any) -> None:
        """Log the losses, the learning rates, and the mean times of up to some hundred updates."""
        if not self.active:
            return
        memory = peak_bytes() / 2**30
        shown = {name: f'{value:.4g}' for name, value in losses.items()}
        self.bar.set_postfix({**shown, 'lr': f'{lrs[0]:.3g}', 'data': f'{data:.3f}s', 'memory': f'{memory:.1f}GB'})
        entry = {'epoch': epoch, 'iter': iteration, 'lrs': lrs, 'time': seconds, 'data_time': data, **losses}
        self.message(dict(entry))
        self.write({'kind': 'train', **entry, 'memory_gb': round(memory, 3)})

    def validation(self, iteration: int, name: str, results: dict[str, float]) -> None:
        if self.active and results:
            self.write({'kind': 'validation', 'iter': iteration, 'dataset': name, **results})

    def write(self, entry: dict[str, Any]) -> None:
        entry = {name: value for name, value in entry.items() if value == value}  # JSON has no word for NaN
        try:
            with self.path.open('a') as file:
                file.write(json.dumps(entry) + '\n')
        except OSError as error:  # such as a full disk, which ends the run once its state cannot be saved
            get_root_logger().warning(f'{self.path} could not be written: {error.strerror}')

    def close(self) -> None:
        self.bar.close()

    def plot(self) -> None:
        """Draw losses and metrics over the iterations, to curves.png."""
        if self.active:
            draw(list(whole_lines(self.path)), self.path.with_name('curves.png'), self.opt['name'])


def peak_bytes() -> int:
    """Peak memory of this process, in bytes: on the GPU, or in main memory where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        return int(psutil.Process().memory_info().peak_wset)  # type: ignore[attr-defined]
    unit = 1 if sys.platform == 'darwin' else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def draw(lines: list[dict[str, Any]], path: Path, title: str) -> None:
    from matplotlib.figure import Figure

    training = [line for line in lines if line['kind'] == 'train']
    validations = [line for line in lines if line['kind'] == 'validation']
    losses = sorted({key for line in training for key in line if key.startswith('l_')})
    metrics = sorted({key for line in validations for key in line if key not in ('kind', 'iter', 'dataset')})
    figure = Figure(figsize=(5 * (1 + len(metrics)), 3.6), layout='constrained')
    axes = figure.subplots(1, 1 + len(metrics), squeeze=False)[0]
    for name in losses:
        having = [line for line in training if name in line]
        axes[0].semilogy([line['iter'] for line in having], [line[name] for line in having], label=name)
    axes[0].set(xlabel='iteration', ylabel='loss')
    for axis, metric in zip(axes[1:], metrics):
        for dataset in sorted({line['dataset'] for line in validations}):
            of_it = [line for line in validations if line['dataset'] == dataset and metric in line]
            axis.plot([line['iter'] for line in of_it], [line[metric] for line in of_it], marker='.', label=dataset)
        axis.set(xlabel='iteration', ylabel=metric)
    for axis in axes:
        axis.grid(alpha=0.3)
        if axis.has_data():
            axis.legend()
    figure.suptitle(title)
    write_whole(path, lambda temporary: figure.savefig(temporary, dpi=120, format='png'))
