"""`nlsn paper`: reproduces the paper's tables and figures, and prints the results beside the published ones."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nlsn_plugin.cli.parser import sentence
from nlsn_plugin.compat import load_toolbox
from nlsn_plugin.files import check_folder, write_text
from nlsn_plugin.paper.studies import STUDIES

TEXT = "the paper's tables and figures, trained, measured and printed beside its numbers"


def add(commands: Any) -> None:
    """Add the command to the subparsers `commands`."""
    parser = commands.add_parser(
        'paper', help=TEXT, description=f'{sentence(TEXT)}. What was done before a stop is not done again.'
    )
    parser.add_argument('what', choices=['table1', *STUDIES], help='table or figure')
    parser.add_argument(
        '--budget',
        default='paper',
        help='smoke (150 updates a network: minutes on a CPU for tables 2 to 5, whose networks are small), paper, or '
        "a share of the paper's million, such as 0.01",
    )
    parser.add_argument(
        '--data',
        type=Path,
        nargs='+',
        help='folders of HR images to train on (default: the LMDBs of DIV2K that the option files name; smoke: '
        'photographs that scikit-image ships)',
    )
    parser.add_argument(
        '--sets',
        nargs='+',
        metavar='SET',
        help='to measure on, as for nlsn benchmark (default: Set5, table1 those that are there; smoke: Set5 if it is '
        'there, or else one photograph)',
    )
    parser.add_argument('--device', choices=['cpu', 'cuda'], help='to measure on (default: cuda if there is a GPU)')
    parser.add_argument('--output', type=Path, help='(default: results/paper_BUDGET)')
    parser.set_defaults(run=paper)


def paper(args: argparse.Namespace) -> None:
    load_toolbox('basicsr')

    from nlsn_plugin.data.benchmark_sets import find_sets
    from nlsn_plugin.data.sample import prepare_sample_data
    from nlsn_plugin.engine.devices import device_of
    from nlsn_plugin.engine.evaluation import experiments

    budget = experiments.find_budget(args.budget)
    device = device_of(args.device)
    output = args.output or Path('results', f'paper_{budget.name}')
    check_folder(output)
    data, wanted = args.data, args.sets
    if budget is experiments.SMOKE and not (data and wanted):
        sample = output / 'sample'
        if not sample.exists():
            prepare_sample_data(sample, 2)
        data = data or [sample / 'photographs']
        if not wanted and not Path('datasets/benchmark/Set5').is_dir():
            wanted = [f'chelsea={sample / "sample_test"}']
    sets = find_sets(wanted or (None if args.what == 'table1' else ['Set5']), None)
    laboratory = experiments.Laboratory(output, data, sets, budget, device)
    if args.what == 'table1':
        text = experiments.table1(laboratory)
        write_text(output / 'table1.md', text)
        written = [output / 'table1.md']
    else:
        results = experiments.run(args.what, laboratory)
        text, written = experiments.markdown(results), experiments.write(args.what, results, output)
    print(f'\n{text}\nwritten: ' + ', '.join(map(str, written)))
