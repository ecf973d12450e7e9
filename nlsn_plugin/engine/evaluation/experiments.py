"""The paper's tables and figures: train and measure what they need, and show it beside the paper's figures."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from tabulate import tabulate

from nlsn_plugin.data.benchmark_sets import BICUBIC, BenchmarkSet, open_set
from nlsn_plugin.data.parallel import processes
from nlsn_plugin.data.prepare import prepare_training_data
from nlsn_plugin.data.workshop import RECORD
from nlsn_plugin.engine.benchmarks.layer_costs import FORMULA, layer_costs
from nlsn_plugin.engine.evaluation import reports, scoring
from nlsn_plugin.engine.evaluation.contestants import Contestant, from_option_file
from nlsn_plugin.engine.measuring.machine import describe_machine
from nlsn_plugin.engine.names import readable
from nlsn_plugin.engine.options.documents import Document, find_option_file
from nlsn_plugin.engine.training.interruption import run_interruptibly
from nlsn_plugin.errors import InterruptedRunError, UserError, first_line
from nlsn_plugin.files import write_text, write_whole
from nlsn_plugin.paper.studies import STUDIES, TABLE5_GFLOPS

Options = dict[str, Any]
Results = dict[str, Any]


@dataclass(frozen=True)
class Budget:
    """Share of the paper's training schedule to run.

    Attributes:
        name: 'paper', 'smoke', or the share as the user wrote it.
        share: factor in (0, 1] for the number of updates and the milestones of the learning rate.
        batch_size: patches in an update; None for the paper's 16.
    """

    name: str
    share: float
    batch_size: int | None = None


SMOKE = Budget('smoke', 150 / 1_000_000, 4)
"""150 updates: enough to show that everything runs, too few to compare networks."""
ELSEWHERE = ('dataroot_gt', 'dataroot_lq', 'num_worker_per_gpu')
"""Data set options that may differ when an experiment is resumed, in another folder or on another machine."""


def find_budget(text: str) -> Budget:
    """Parse a budget: 'paper', 'smoke', or a share of the paper's updates such as 0.01.

    Raises:
        UserError: it is none of these.
    """
    if text in ('paper', 'smoke'):
        return SMOKE if text == 'smoke' else Budget('paper', 1.0)
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise UserError(f'--budget {text}: smoke, paper, or a share of its updates such as 0.01 is expected')
    return Budget(text, share)


@dataclass
class Laboratory:
    """Folders, data, budget and device of a series of experiments.

    Attributes:
        output: folder for option files, experiments and results.
        data: folders of HR images to train on; None for the LMDBs that the option files name.
        sets: folders of the benchmark sets to measure on, by name.
        budget: length of the training.
        device: 'cpu' or 'cuda', for the measurements.
        made: LMDBs made of `data` so far, by scale.
    """

    output: Path
    data: Sequence[Path] | None
    sets: dict[str, Path]
    budget: Budget
    device: str
    made: dict[int, list[Path]] = field(default_factory=dict)

    def lmdbs(self, scale: int) -> list[Path]:
        """The LMDBs to train on, HR and LR, made on first use."""
        if scale not in self.made:
            parts = self.data or []
            self.made[scale] = prepare_training_data(
                parts, self.output.resolve() / 'data', f'x{scale}', [scale], 192, 96
            )
        return self.made[scale]


def train(network: str, laboratory: Laboratory) -> Path:
    """Train a network of options/paper unless that is done; a stopped run is resumed.

    Returns:
        Its option file, with the budget's schedule and the laboratory's data.

    Raises:
        UserError: it was begun with other options, or the training failed (it has printed why).
        InterruptedRunError: a signal ended the training, or came too late for that but asks this process to end.
    """
    path = laboratory.output.resolve() / 'options' / f'{network}.yml'
    options = scheduled(Document(find_option_file(f'paper/{network}.yml')).options, laboratory)
    experiment = laboratory.output.resolve() / 'experiments' / options['name']
    refuse_others(experiment, experiment / path.name, options)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, yaml.safe_dump(options, sort_keys=False))
    if (experiment / 'models' / 'net_g_latest.pth').exists():
        return path
    print(f'training {network}: {options["train"]["total_iter"]} updates', flush=True)
    words = [sys.executable, '-m', 'nlsn_plugin', 'train', '-opt', str(path), '--auto_resume']
    status, asked_to_end = run_interruptibly(words)
    if status == InterruptedRunError.status:
        raise InterruptedRunError(f'{network} is saved; the same command goes on')
    if asked_to_end or status == -signal.SIGTERM:
        raise InterruptedRunError(f'{network} {"was ended" if status else "is trained"}; the same command goes on')
    if status:
        raise UserError(f'training {network} by {path} failed')
    return path


def refuse_others(experiment: Path, copy: Path, options: Options) -> None:
    """Refuse to resume an experiment that was begun with other options: its figures would belong to neither.

    Args:
        experiment: the folder of the experiment.
        copy: the copy of its option file that training has put there; nothing is refused if there is none.
        options: the current options.

    Raises:
        UserError: options that the weights depend on differ.
    """
    if not copy.exists():
        return
    before, now = (deciding(each) for each in (Document(copy).options, options))
    changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if changed:
        raise UserError(
            f'{experiment} was begun by an option file that has changed since ({", ".join(changed)}): name another '
            '--output, or move this experiment away to train it anew'
        )


def deciding(options: Options) -> Options:
    """Select the options of an experiment on which its weights depend."""
    dataset = {key: value for key, value in options['datasets']['train'].items() if key not in ELSEWHERE}
    others = {key: value for key, value in options.items() if key not in ('path', 'logger')}
    return {**others, 'datasets': dataset}


def scheduled(options: Options, laboratory: Laboratory) -> Options:
    """Change `options` in place to the budget's schedule and the laboratory's data, without validation."""
    budget, scale = laboratory.budget, options['scale']
    training = options['datasets']['train']
    if laboratory.data:
        training['dataroot_gt'], training['dataroot_lq'] = map(str, laboratory.lmdbs(scale))
    training['batch_size_per_gpu'] = budget.batch_size or training['batch_size_per_gpu']
    training['num_worker_per_gpu'] = min(training['num_worker_per_gpu'], processes())
    options['datasets'] = {'train': training}
    del options['val']
    schedule = options['train']
    total = max(1, round(schedule['total_iter'] * budget.share))
    schedule['scheduler']['milestones'] = [round(m * budget.share) for m in schedule['scheduler']['milestones']]
    schedule['total_iter'] = total
    logger = options['logger']
    logger['save_checkpoint_freq'] = min(int(logger['save_checkpoint_freq']), max(50, total // 20))
    logger.update(print_freq=min(logger['print_freq'], max(1, total // 10)), keep_last=1, use_tb_logger=False)
    options['path']['experiments_root'] = str(laboratory.output.resolve() / 'experiments')
    return options


def run(name: str, laboratory: Laboratory) -> Results:
    """Train and measure all that a table or figure needs.

    Args:
        name: a key of STUDIES.
        laboratory: folders, data, budget and device.

    Returns:
        A dict with title, conditions, axis, rows (among others label, psnr by set, paper, remark) and, where the paper
        has them, costs of layers.
    """
    study = STUDIES[name]
    sets = [open_set(label, folder, 2) for label, folder in laboratory.sets.items()]  # fails before days of training
    note_data(laboratory)
    files = {network: train(network, laboratory) for network in study.networks}
    found: dict[tuple[str, int | None], dict[str, float]] = {}
    for network, path in files.items():
        rounds = list(dict.fromkeys(entry.rounds for entry in study.entries if entry.network == network))
        found |= measure(network, path, rounds, sets, laboratory)
    rows = [{**asdict(entry), 'psnr': found[entry.network, entry.rounds]} for entry in study.entries]
    results = {'title': study.title, 'conditions': conditions(files, laboratory), 'axis': study.axis, 'rows': rows}
    if study.costs:
        results['costs'] = layer_costs(laboratory.device, TABLE5_GFLOPS)
    return results


def table1(laboratory: Laboratory) -> str:
    """Show NLSN at x2, x3 and x4 beside all methods of Table 1, as Markdown; what is not trained yet is trained."""
    scales = (2, 3, 4)
    sets = {scale: [open_set(label, folder, scale) for label, folder in laboratory.sets.items()] for scale in scales}
    note_data(laboratory)
    files = [train(f'nlsn_x{scale}', laboratory) for scale in scales]
    contestants = [Contestant(from_option_file(str(path)), laboratory.device) for path in files]
    settings = scoring.Settings(device=laboratory.device, cost_size=None)
    results = scoring.run(contestants, sets, settings, laboratory.output / 'images')
    return reports.markdown(reports.tables(results, 'NLSN'))


def measure(
    network: str, path: Path, rounds: Sequence[int | None], sets: Sequence[BenchmarkSet], laboratory: Laboratory
) -> dict[tuple[str, int | None], dict[str, float]]:
    """Measure the PSNR on Y of a network; return it by set for each (network, rounds)."""
    settings = scoring.Settings(n_hashes=rounds, device=laboratory.device, cost_size=None)
    contestant = Contestant(from_option_file(str(path)), laboratory.device)
    results = scoring.run([contestant], {contestant.recipe.scale: sets}, settings, laboratory.output / 'images')
    asked = {contestant.n_hashes if r is None else r: r for r in rounds}
    found: dict[tuple[str, int | None], dict[str, float]] = {(network, r): {} for r in rounds}
    for figure in results['figures']:
        if figure['network'] != BICUBIC:
            found[network, asked[figure['n_hashes']]][figure['set']] = figure['psnr_y']['mean']
    return found


def note_data(laboratory: Laboratory) -> None:
    """Record the data and the budget in plan.json, and refuse to mix experiments that differ in these.

    Raises:
        UserError: the output holds experiments on other data or of another budget, or plan.json is damaged.
    """
    kept = laboratory.output / 'plan.json'
    plan: Options = {'budget': asdict(laboratory.budget)}
    if laboratory.data:
        plan['images'] = json.loads((laboratory.lmdbs(2)[0] / RECORD).read_text())['images']
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_text(kept, json.dumps(plan, indent=1) + '\n')
        return
    try:
        before = json.loads(kept.read_text())
    except ValueError as error:
        raise UserError(
            f'{kept} is damaged ({first_line(error)}): remove it, and what is trained there is taken for experiments '
            'on the data and of the budget of now'
        ) from error
    if before != plan:
        raise UserError(
            f'{laboratory.output} holds experiments on other data or of another budget: name another --output'
        )


def conditions(files: dict[str, Path], laboratory: Laboratory) -> dict[str, Any]:
    """Conditions under which the figures were obtained: schedule, data and machine."""
    options = yaml.safe_load(next(iter(files.values())).read_text(encoding='utf-8'))
    return {
        'updates': options['train']['total_iter'],
        'batch_size': options['datasets']['train']['batch_size_per_gpu'],
        'seed': options['manual_seed'],
        'trained on': [str(path) for path in laboratory.data or [options['datasets']['train']['dataroot_gt']]],
        'measured on': list(laboratory.sets),
        'machine': describe_machine(laboratory.device),
    }


def markdown(results: Results) -> str:
    """Format results as Markdown, with the paper's figures beside the measured ones."""
    held = results['conditions']
    sets = held['measured on']
    rows = [
        [row['label'], *(f'{row["psnr"][name]:.2f}' for name in sets), number(row['paper']), row['remark']]
        for row in results['rows']
    ]
    headers = ['PSNR on Y, dB, x2', *sets, 'paper, Set5', '']
    text = [
        f'## {results["title"]}',
        f'{held["updates"]} updates of {held["batch_size"]} patches on {", ".join(held["trained on"])}, seed '
        f'{held["seed"]}; the paper: 1000000 of 16 on DIV2K.',
        tabulate(rows, headers, tablefmt='github', disable_numparse=True),
    ]
    if 'costs' in results:
        costs = [
            [cost['label'], number(cost['gflops'], 3), number(cost['paper'], 1), number(cost['milliseconds'], 1)]
            for cost in results['costs']
        ]
        columns = ['one layer, 64 channels, 100x100', 'GFLOPs', 'paper', 'ms']
        text += [tabulate(costs, columns, tablefmt='github', disable_numparse=True), FORMULA]
    return readable('\n\n'.join(text) + '\n')


def number(value: float | None, digits: int = 2) -> str:
    return '' if value is None else f'{value:.{digits}f}'


def draw(results: Results, path: Path) -> None:
    """Plot the PSNR on the first set against the quantity that the figure varies, as PNG."""
    from matplotlib.figure import Figure

    name = results['conditions']['measured on'][0]
    figure = Figure(figsize=(6, 4), layout='constrained')
    axes = figure.subplots()
    for curve in dict.fromkeys(row['curve'] for row in results['rows']):
        rows = [row for row in results['rows'] if row['curve'] == curve]
        axes.semilogx([row['x'] for row in rows], [row['psnr'][name] for row in rows], marker='.', label=curve)
    axes.set(xlabel=results['axis'], title=results['title'])
    axes.set_ylabel(f'PSNR on {readable(name)}, dB', parse_math=False)
    axes.grid(alpha=0.3)
    axes.legend()
    write_whole(path, lambda temporary: figure.savefig(temporary, dpi=120, format='png'))


def write(name: str, results: Results, output: Path) -> list[Path]:
    """Write results as JSON and Markdown, and those of a figure also as PNG; return the paths."""
    paths = [output / f'{name}.json', output / f'{name}.md']
    write_text(paths[0], json.dumps(results, indent=1) + '\n')
    write_text(paths[1], markdown(results))
    if results['axis']:
        paths.append(output / f'{name}.png')
        draw(results, paths[-1])
    return paths
