from __future__ import annotations

import pytest

from nlsn_plugin.errors import UserError
from nlsn_plugin.paper import table1


def test_all_rows_are_there_with_what_the_paper_prints() -> None:
    rows = {(row.method, row.scale): row.figures for row in table1.read()}
    assert len(rows) == 38
    assert len({method for method, _ in rows}) == 13
    assert ('DBPN', 3) not in rows
    assert rows['NLSN', 2]['Urban100'] == (33.42, 0.9394)
    assert rows['SAN', 4]['Set14'] == (28.92, 0.7888)
    without_manga = {method for (method, _), figures in rows.items() if len(figures) < 5}
    assert without_manga == {'NLRN', 'OISR'}
    assert all(set(figures) <= set(table1.SETS) for figures in rows.values())


def test_misprints_are_kept_and_marked() -> None:
    rows = {(row.method, row.scale): row.figures for row in table1.read()}
    for method, scale, name, metric in table1.MISPRINTS:
        printed = getattr(rows[method, scale][name], metric)
        assert f'{printed:.2f} as printed' in table1.MISPRINTS[method, scale, name, metric]


@pytest.mark.parametrize(
    ('method', 'scale', 'name', 'message'),
    [
        ('NLSM', 2, 'Set5', 'Table 1 has no NLSM: did you mean NLSN'),
        ('DBPN', 3, 'Set5', 'Table 1 has no DBPN at x3'),
        ('OISR', 2, 'Manga109', 'Table 1 has no results of OISR on the sets that are measured'),
        ('NLSN', 2, 'mine', 'Table 1 has Set5, Set14, B100, Urban100, Manga109, none of which is measured'),
    ],
)
def test_what_the_table_has_nothing_to_say_of(method: str, scale: int, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        table1.check(method, [scale], [name])
