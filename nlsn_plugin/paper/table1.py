"""Table 1 of the paper: PSNR and SSIM on Y of 13 methods on five benchmark sets, at x2, x3 and x4.

DBPN has no row at x3; NLRN and OISR have no results on Manga109.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from importlib.resources import files
from typing import NamedTuple

from nlsn_plugin.checks import nearest
from nlsn_plugin.errors import UserError

SETS = ('Set5', 'Set14', 'B100', 'Urban100', 'Manga109')

MISPRINTS = {
    ('LapSRN', 2, 'B100', 'psnr'): '31.08 as printed, probably 31.80: below what its SSIM and its other sets suggest',
}
"""Results that are kept as printed but are probably wrong: (method, scale, set, metric) -> why."""


class Figure(NamedTuple):
    """PSNR in dB, and SSIM, on one set."""

    psnr: float
    ssim: float


class Row(NamedTuple):
    """Results of a method at a scale, by set; sets without printed results are left out."""

    method: str
    scale: int
    figures: dict[str, Figure]


def read() -> list[Row]:
    """Read all rows, with the values as printed."""
    text = (files('nlsn_plugin.paper') / 'table1.csv').read_text(encoding='utf-8')
    return [
        Row(
            line['method'],
            int(line['scale']),
            {
                name: Figure(float(line[f'{name}_psnr']), float(line[f'{name}_ssim']))
                for name in SETS
                if line[f'{name}_psnr']
            },
        )
        for line in csv.DictReader(text.splitlines())
    ]


def check(method: str, scales: Iterable[int], sets: Iterable[str]) -> None:
    """Refuse a comparison for which Table 1 has no results.

    Raises:
        UserError: it lacks the method, the method at one of the scales, all of the sets, or all of them for the method.
    """
    rows = read()
    methods = list(dict.fromkeys(row.method for row in rows))
    if method not in methods:
        raise UserError(f'--compare-with-paper: Table 1 has no {method}{nearest(method, methods)}')
    for scale in scales:
        if not any((row.method, row.scale) == (method, scale) for row in rows):
            raise UserError(f'--compare-with-paper: Table 1 has no {method} at x{scale}')
    if not set(sets) & set(SETS):
        raise UserError(f'--compare-with-paper: Table 1 has {", ".join(SETS)}, none of which is measured')
    printed = {name for row in rows if row.method == method for name in row.figures}
    if not set(sets) & printed:
        raise UserError(f'--compare-with-paper: Table 1 has no results of {method} on the sets that are measured')
