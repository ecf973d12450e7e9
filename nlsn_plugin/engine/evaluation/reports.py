"""Results of an evaluation as tables, in Markdown, LaTeX and CSV; optionally beside Table 1 of the paper."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

from nlsn_plugin.data.benchmark_sets import BICUBIC
from nlsn_plugin.engine.names import readable
from nlsn_plugin.files import write_text, write_whole
from nlsn_plugin.metrics.protocols import METRICS
from nlsn_plugin.paper import table1

Results = dict[str, Any]

PLANES = {'y': 'Y', 'rgb': 'RGB'}
LATEX = {'\\': r'\textbackslash{}', '^': r'\textasciicircum{}', '~': r'\textasciitilde{}'}
"""LaTeX for the characters that a backslash does not escape."""


class Table(NamedTuple):
    """A table of text.

    Attributes:
        title: heading.
        headers: names of the columns.
        rows: cells as text.
        notes: sentences below the table.
    """

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def tables(results: Results, method: str | None = None) -> list[Table]:
    """All tables of an evaluation; if `method` is given, also Table 1 with the differences to that method."""
    found = [figures_on(plane, results) for plane in PLANES]
    found[0] = found[0]._replace(notes=list(notes(results)))
    if any(network['cost'] for network in results['networks']):
        found.append(costs(results))
    if method:
        found.append(beside_paper(results, method))
    return found


def figures_on(plane: str, results: Results) -> Table:
    """Table of PSNR and SSIM on one of PLANES: a row for bicubic and each network, a column for each set."""
    sets = list(dict.fromkeys(figure['set'] for figure in results['figures']))
    cells: dict[tuple[int, str], dict[str, str]] = {}
    for figure in results['figures']:
        psnr, ssim = (spread(figure[f'{metric}_{plane}'], digits) for metric, digits in (('psnr', 2), ('ssim', 4)))
        cells.setdefault((figure['scale'], figure['network']), {})[figure['set']] = f'{psnr} / {ssim}'
    rows = [[f'x{scale}', network, *(row.get(name, '') for name in sets)] for (scale, network), row in cells.items()]
    title = f'PSNR (dB) / SSIM on {PLANES[plane]}, protocol {results["protocol"]["name"]}'
    return Table(title, ['scale', 'network', *sets], rows)


def spread(figure: dict[str, Any], digits: int) -> str:
    """Format a mean, with the standard deviation between seeds if there are several."""
    if figure['mean'] is None:
        return 'inf'
    around = '' if figure['spread'] is None else f' ± {figure["spread"]:.{digits + 1}f}'
    return f'{figure["mean"]:.{digits}f}{around}'


def notes(results: Results) -> Iterator[str]:
    """Sentences that say how the figures were measured."""
    protocol = results['protocol']
    rounding = {'float': 'not rounded', '8-bit': 'rounded to 8 bits'}[protocol['luma']]
    gray = {'rgb': 'as RGB of three equal planes', 'raw': 'on their own plane'}[protocol['gray']]
    bicubic = {'rgb': 'the RGB image', 'y': 'Y alone, where Y is scored'}[protocol['bicubic']]
    borders = ', '.join(f'{border} pixels at {scale}' for scale, border in protocol['border'].items())
    yield (
        f'Protocol {protocol["name"]} ({protocol["about"]}): Y of BT.601 {rounding}, border of {borders} shaved, gray '
        f'files scored {gray}, bicubic of {bicubic}.'
    )
    given = [f'{part["name"]} x{part["scale"]}' for part in results['sets'] if part['lr'] != BICUBIC]
    if given:
        yield f'LR images are given for {", ".join(given)}.'
        if results['protocol']['bicubic'] == 'y':
            yield "There the networks' figures are of those; bicubic's on Y are of LR images made from the HR images."
    if len(given) < len(results['sets']):
        yield f'LR images are made by MATLAB-style bicubic{" for the others" if given else ""}.'
    if protocol['self_ensemble']:
        yield 'Networks as self-ensembles over eight orientations.'
    if protocol['tile']:
        yield f'Networks in tiles of {protocol["tile"]} LR pixels that share {protocol["tile_overlap"]}.'
    if protocol['seeds'] > 1:
        yield f'± is the standard deviation between {protocol["seeds"]} seeds of the hashing.'
    for figure in results['figures']:
        if figure['identical']:
            yield (
                f'{figure["set"]} x{figure["scale"]}, {figure["network"]}: {figure["identical"]} of {figure["images"]} '
                'images equal the truth, and are left out of the mean PSNR.'
            )


def costs(results: Results) -> Table:
    """Table of each network's parameters, multiply-adds, time and peak memory for one image."""
    headers = ['scale', 'network', 'LR image', 'parameters', 'multiply-adds', 'time', 'peak memory']
    rows = []
    for network in results['networks']:
        cost = network['cost']
        fastest, slowest = (f'{milliseconds:.0f}' for milliseconds in cost['spread'])
        peak = '' if cost['peak_bytes'] is None else f'{cost["peak_bytes"] / 1e6:.0f} MB'
        rows.append(
            [
                f'x{network["scale"]}',
                network['label'],
                'x'.join(map(str, cost['lr_size'])),
                f'{cost["parameters"] / 1e6:.2f} M',
                f'{cost["multiply_adds"] / 1e9:.2f} G',
                f'{cost["milliseconds"]:.0f} ms ({fastest} .. {slowest})',
                peak,
            ]
        )
    machine = ', '.join(f'{key}: {value}' for key, value in results['machine'].items() if value is not None)
    counted = 'Multiply-adds are those of convolutions, matrix products and attention, as FlopCounterMode counts them.'
    beside = 'Peak memory is besides the weights, in a process of its own.'
    return Table('Cost for one image', headers, rows, [counted, beside, machine])


def beside_paper(results: Results, method: str) -> Table:
    """Table 1 of the paper with the evaluation's networks added, and their differences to one of its methods.

    It is limited to the scales and sets of the evaluation.
    """
    sets = [name for name in table1.SETS if any(figure['set'] == name for figure in results['figures'])]
    published = table1.read()
    rows, misprints = [], []
    for scale in dict.fromkeys(figure['scale'] for figure in results['figures']):
        printed = {row.method: row.figures for row in published if row.scale == scale}
        for name, figures in printed.items():
            wrong = {part for who, at, part, _ in table1.MISPRINTS if (who, at) == (name, scale)} & set(sets)
            misprints += [table1.MISPRINTS[name, scale, part, 'psnr'] for part in wrong]
            cells = [shown(figures.get(part), '*' if part in wrong else '') for part in sets]
            rows.append([f'x{scale}', f'{name} (paper)', *cells])
        measured: dict[str, dict[str, table1.Figure]] = {}
        for figure in results['figures']:
            psnr, ssim = figure['psnr_y']['mean'], figure['ssim_y']['mean']
            if figure['scale'] == scale and psnr is not None:
                measured.setdefault(figure['network'], {})[figure['set']] = table1.Figure(psnr, ssim)
        for name, figures in measured.items():
            rows.append([f'x{scale}', name, *(shown(figures.get(part)) for part in sets)])
        for name, figures in measured.items():
            differences = [difference(figures.get(part), printed[method].get(part)) for part in sets]
            rows.append([f'x{scale}', f'{name} - {method} (paper)', *differences])
    return Table(
        'Beside Table 1 of the paper, PSNR (dB) / SSIM on Y',
        ['scale', 'method', *sets],
        rows,
        [f'* {reason}.' for reason in misprints],
    )


def shown(figure: table1.Figure | None, mark: str = '') -> str:
    return f'{figure.psnr:.2f}{mark} / {figure.ssim:.4f}' if figure else '-'


def difference(ours: table1.Figure | None, theirs: table1.Figure | None) -> str:
    return f'{ours.psnr - theirs.psnr:+.2f} / {ours.ssim - theirs.ssim:+.4f}' if ours and theirs else '-'


def markdown(found: Sequence[Table]) -> str:
    """Format tables as Markdown, for the terminal and table.md."""
    parts = []
    for table in found:
        rows = [[cell.replace('|', '\\|') for cell in row] for row in (table.headers, *table.rows)]
        grid = tabulate(rows[1:], rows[0], tablefmt='github', disable_numparse=True)
        parts.append('\n\n'.join([f'## {table.title}', grid, *table.notes]))
    return readable('\n\n'.join(parts) + '\n')


def latex(found: Sequence[Table]) -> str:
    """Format tables as LaTeX, which needs the package booktabs."""
    parts = []
    for table in found:
        grid = tabulate(table.rows, table.headers, tablefmt='latex_booktabs', disable_numparse=True)
        below = ''.join(f'\n\\par\\footnotesize {escaped(note)}' for note in table.notes)
        caption = f'\\caption{{{escaped(table.title)}}}'
        parts.append(f'\\begin{{table}}\n\\centering\n{caption}\n{grid}{below}\n\\end{{table}}')
    return readable('\n\n'.join(parts) + '\n')


def escaped(text: str) -> str:
    """Escape the characters that are special in LaTeX."""
    return re.sub(r'[&%$#_{}\\^~]', lambda found: LATEX.get(found[0], f'\\{found[0]}'), text)


def write(results: Results, found: Sequence[Table], folder: Path) -> None:
    """Write results.json, table.md, table.tex and table.csv.

    Raises:
        SaveError: the folder cannot be written to.
    """
    lines = io.StringIO(newline='')
    write_csv(results, lines)
    write_text(folder / 'results.json', json.dumps(results, indent=1, allow_nan=False) + '\n')
    write_text(folder / 'table.md', markdown(found))
    write_text(folder / 'table.tex', latex(found))
    write_whole(folder / 'table.csv', lambda path: path.write_bytes(lines.getvalue().encode()))  # bytes keep \r\n


def write_csv(results: Results, file: Any) -> None:
    """Write a header and a line for each scale, set and network."""
    columns = ['scale', 'set', 'network', 'images', 'identical']
    metrics = [f'{metric}{part}' for metric in METRICS for part in ('', '_spread')]
    cost = ['parameters', 'multiply_adds', 'milliseconds', 'peak_bytes']
    writer = csv.DictWriter(file, ['protocol', *columns, 'seeds', *metrics, *cost])
    writer.writeheader()
    of_network = {(network['scale'], network['label']): network['cost'] or {} for network in results['networks']}
    for figure in results['figures']:
        line = {column: figure[column] for column in columns} | {'set': readable(figure['set'])}
        line |= {'protocol': results['protocol']['name'], 'seeds': len(figure['seeds'])}
        for metric in METRICS:
            line |= {metric: figure[metric]['mean'], f'{metric}_spread': figure[metric]['spread']}
        taken = of_network.get((figure['scale'], figure['network']), {})
        writer.writerow(line | {name: taken.get(name) for name in cost})
