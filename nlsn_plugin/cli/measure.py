"""Commands that measure speed and memory: they print a table and the machine, and can write JSON."""

from __future__ import annotations

import argparse
import json
import math
import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from nlsn_plugin import checks
from nlsn_plugin.cli.drawings import check_drawing
from nlsn_plugin.cli.parser import sentence
from nlsn_plugin.compat import load_toolbox
from nlsn_plugin.errors import UserError
from nlsn_plugin.files import check_json, write_text


def add(commands: Any) -> None:
    """Add the commands to the subparsers `commands`."""
    for name, add_arguments, text in (
        ('benchmark-attention', add_attention_arguments, 'time and memory of the attention in all its forms'),
        ('benchmark-training', add_training_arguments, "time of updates and of the moving average beside BasicSR's"),
        ('benchmark-loading', add_loading_arguments, 'time to read a training sample, by the way it is stored'),
    ):
        parser = commands.add_parser(name, help=text, description=sentence(text) + '.')
        add_arguments(parser)
        parser.add_argument('--json', type=Path, help='write machine and figures here')


def add_attention_arguments(parser: argparse.ArgumentParser) -> None:
    from nlsn_plugin.engine.benchmarks.attention import FORMS
    from nlsn_plugin.engine.benchmarks.cases import SUITES
    from nlsn_plugin.engine.dtypes import DTYPES

    parser.add_argument('--suite', nargs='+', choices=SUITES, help='sizes, or a sweep of n, r, k, c (default: layer)')
    parser.add_argument('--network', type=int, nargs=2, metavar=('H', 'W'), help='the whole NLSN x2 on such an image')
    parser.add_argument('--compile', action='store_true', help='with --network: measure torch.compile too')
    parser.add_argument('--tune', action='store_true', help='try tiles of the fused kernels on this GPU instead')
    parser.add_argument('--form', nargs='+', choices=FORMS, help='what to compare (default: all)')
    parser.add_argument('--device', choices=['cpu', 'cuda'], help='(default: cpu; with --tune always cuda)')
    parser.add_argument('--dtype', choices=DTYPES, help='of the layer (default: float32)')
    parser.add_argument('--threads', type=int, help='of the CPU (default: as PyTorch decides)')
    parser.add_argument('--budget', type=float, default=5.0, help='seconds for each case and pass (default: 5)')
    parser.add_argument('--plot', type=Path, help='draw time and memory over n here (with --suite n)')
    parser.set_defaults(run=benchmark_attention)


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('-opt', required=True, help='option file, or the name of a shipped one')
    parser.add_argument('--budget', type=float, default=60.0, help='seconds for each comparison (default: 60)')
    parser.add_argument('--force_yml', nargs='+', metavar='KEY=VALUE', help='set options')
    parser.set_defaults(run=benchmark_training, launcher='none', auto_resume=False, debug=False)


def add_loading_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--input', type=Path, required=True, help='folder of HR images')
    parser.add_argument('--scale', type=int, default=2, choices=[2, 3, 4], help='of the LR images (default: 2)')
    parser.add_argument('--gt-size', type=int, default=96, help='edge of an HR patch, pixels (default: 96)')
    parser.add_argument('--crop-size', type=int, nargs='+', default=[480, 192], help='of sub-images (default: 480 192)')
    parser.add_argument('--budget', type=float, default=60.0, help='seconds (default: 60)')
    parser.set_defaults(run=benchmark_loading)


def benchmark_attention(args: argparse.Namespace) -> None:
    import torch
    from tabulate import tabulate

    from nlsn_plugin.engine.benchmarks import attention as benchmark
    from nlsn_plugin.engine.benchmarks import network, tiles
    from nlsn_plugin.engine.benchmarks.cases import SUITES

    if args.network and args.tune:
        raise UserError('--network and --tune are two measurements: leave one out')
    only_layer = {'--suite': args.suite, '--form': args.form, '--plot': args.plot}
    if given := [option for option, value in only_layer.items() if value and (args.network or args.tune)]:
        raise UserError(
            f'{given[0]} is for the layer alone: leave it or {"--network" if args.network else "--tune"} out'
        )
    if args.network and args.dtype:
        raise UserError('--network is measured in float32 and in bfloat16: leave --dtype out')
    if args.tune and args.device == 'cpu':
        raise UserError('--tune is for a GPU: leave --device cpu out')
    device, dtype = args.device or 'cpu', args.dtype or 'float32'
    if args.compile and not args.network:
        raise UserError('--compile is for the whole network: add --network H W')
    if args.plot and 'n' not in (args.suite or []):
        raise UserError('--plot draws the sweep over n: add --suite n')
    if args.plot:
        check_drawing(args.plot)
    check_shared(args)
    for edge in args.network or ():
        checks.whole('--network', edge, least=1)
    if args.threads is not None:
        torch.set_num_threads(checks.whole('--threads', args.threads, least=1))
    keep = partial(write, args)
    if args.tune:
        case = replace(SUITES['layer'][1], n_hashes=2)  # a first and a last round: more compile longer
        results = tiles.run(case, dtype, args.budget)
        print(tabulate(results['records'], 'keys', tablefmt='github'))
    else:
        if args.network:
            results = network.run(tuple(args.network), device, args.budget, args.compile, keep=keep)
        else:
            suites, forms = args.suite or ['layer'], args.form or list(benchmark.FORMS)
            results = benchmark.run(suites, forms, device, dtype, args.budget, keep=keep)
        print(tabulate(benchmark.rows(results['records']), benchmark.HEADERS, tablefmt='github'))
        print('', *benchmark.left_out(results['records']), sep='\n', end='')
    conclude(args, results)
    if all('skipped' in record for record in results['records']):
        raise UserError('nothing could be measured')
    if args.plot:
        benchmark.plot(results['records'], args.plot)


def benchmark_training(args: argparse.Namespace) -> None:
    load_toolbox('basicsr')
    from nlsn_plugin.engine.benchmarks import training
    from nlsn_plugin.engine.training.run import read

    check_shared(args)
    opt, _ = read(args, is_train=True)
    if not opt['train']['ema_decay']:
        raise UserError('there is no moving average to measure: add --force_yml train:ema_decay=0.999')
    if not opt['datasets']['train']['num_worker_per_gpu']:
        raise UserError(
            "BasicSR's own loader takes no num_worker_per_gpu 0: add --force_yml datasets:train:num_worker_per_gpu=1"
        )
    results = training.run(opt, args.budget)
    show(results, ('what', 'form', 'milliseconds', 'spread', 'speedup', 'runs'))
    conclude(args, results)


def benchmark_loading(args: argparse.Namespace) -> None:
    load_toolbox('basicsr')
    from nlsn_plugin.engine.benchmarks import loading

    checks.whole('--gt-size', args.gt_size, least=1)
    if args.gt_size % args.scale:
        raise UserError(f'--gt-size {args.gt_size} is not divisible by --scale {args.scale}')
    for edge in args.crop_size:
        if edge < args.gt_size:
            raise UserError(f'--crop-size {edge} is less than --gt-size {args.gt_size}')
        if edge % (2 * args.scale):
            raise UserError(
                f'--crop-size {edge} is no multiple of {2 * args.scale}, twice the scale: half of it is the step'
            )
    check_shared(args)
    results = loading.run(args.input, args.scale, args.gt_size, args.crop_size, args.budget)
    show(results, ('what', 'milliseconds', 'spread', 'megabytes', 'runs'))
    conclude(args, results)


def check_shared(args: argparse.Namespace) -> None:
    """Check the options that these commands share: the time budget, and that --json can be written."""
    if not 0 < args.budget < math.inf:
        raise UserError(f'--budget {args.budget:g}: a finite number of seconds above 0 is expected')
    if args.json:
        check_json(args.json)


def show(results: dict[str, Any], columns: tuple[str, ...]) -> None:
    from tabulate import tabulate

    def cell(value: Any) -> str:
        numbers = value if isinstance(value, list) else [value]
        return ' .. '.join(f'{number:.4g}' if isinstance(number, float) else str(number) for number in numbers)

    rows = [[cell(record[column]) for column in columns] for record in results['records']]
    print(tabulate(rows, columns, tablefmt='github', disable_numparse=True))


def conclude(args: argparse.Namespace, results: dict[str, Any]) -> None:
    """Print the machine, and write the results as JSON if --json is given."""
    print('\n' + ', '.join(f'{key}: {value}' for key, value in results['machine'].items() if value is not None))
    write(args, results)


def write(args: argparse.Namespace, results: dict[str, Any]) -> None:
    """Write the results as JSON if --json is given."""
    if args.json:
        write_text(args.json, json.dumps({'command': shlex.join(['nlsn', *args.words]), **results}, indent=1) + '\n')
