"""The paper's Tables 2 to 5 and Figures 5 and 6: the networks that they compare, and the printed results.

Networks are named by their option files in options/paper.
"""

from __future__ import annotations

from dataclasses import dataclass, field

EDGES = (5, 10, 15, 20, 25, 30, 40, 50)
"""Square roots of Figure 5's eight chunk sizes k. Windows in Figure 6 have these edges too: the paper gives none."""

ROUNDS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Entry:
    """One result of a table or a figure.

    Attributes:
        label: label of its row.
        network: name of the option file.
        rounds: rounds of hashing at test time; None takes those of training.
        paper: PSNR on Set5 x2 as printed, in dB; None where the paper prints none.
        remark: remark on the printed value.
        x: position on the x-axis of a figure.
        curve: curve of a figure that it belongs to.
    """

    label: str
    network: str
    rounds: int | None = None
    paper: float | None = None
    remark: str = ''
    x: int | None = None
    curve: str = ''


@dataclass(frozen=True)
class Study:
    """A table or a figure.

    Attributes:
        title: number and subject.
        entries: its results.
        axis: label of a figure's x-axis; None for a table.
        costs: whether it compares the cost of the layers (Table 5).
        networks: the networks of its entries, each once.
    """

    title: str
    entries: tuple[Entry, ...]
    axis: str | None = None
    costs: bool = False
    networks: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, 'networks', tuple(dict.fromkeys(entry.network for entry in self.entries)))


BASELINE = Entry('baseline', 'baseline', paper=37.78)

TABLE3 = {1: (37.86, 37.87, 37.88, 37.89), 2: (31.87, 31.88, 31.89, 37.90), 4: (37.87, 37.90, 37.92, 37.93),
          8: (37.88, 37.90, 37.92, 37.94)}  # fmt: skip
MISPRINT = 'printed so, probably 37.8x'

STUDIES = {
    'table2': Study(
        'Table 2: partition strategies',
        (
            BASELINE,
            Entry('local, q = 12', 'local_q12', paper=37.83),
            Entry('random', 'random', paper=37.79),
            Entry('spherical LSH', 'nlsa_r4', paper=37.92),
        ),
    ),
    'table3': Study(
        'Table 3: attention rounds',
        tuple(
            Entry(f'trained with r = {r}, tested with {t}', f'nlsa_r{r}', t, paper, MISPRINT if paper < 32 else '')
            for r, row in TABLE3.items()
            for t, paper in zip(ROUNDS, row)
        ),
    ),
    'table4': Study(
        'Table 4: sharing the linear projection',
        (
            BASELINE,
            Entry('two projections', 'nla_separate', paper=37.86),
            Entry('one projection', 'nla_shared', paper=37.87),
        ),
    ),
    'table5': Study(
        'Table 5: efficiency',
        (
            BASELINE,
            Entry('NLA', 'nla_separate', paper=37.86),
            *(Entry(f'NLSA-r{t}', 'nlsa_r4', t, paper) for t, paper in zip(ROUNDS, (37.87, 37.90, 37.92, 37.93))),
        ),
        costs=True,
    ),
    'fig5': Study(
        'Figure 5: size k of the attention bucket',
        (
            *(Entry(f'NLSA, k = {e}^2', f'nlsa_k{e * e}', x=e * e, curve='NLSA') for e in EDGES),
            *(Entry(f'NLA, {e} x {e} pixels', f'nla_w{e}', x=e * e, curve='NLA') for e in EDGES),
        ),
        axis='pixels attended to, k',
    ),
    'fig6': Study(
        'Figure 6: receptive fields (sizes are our choice)',
        (
            *(Entry(f'NLSA in {e} x {e}', f'nlsa_w{e}', x=e * e, curve='NLSA') for e in EDGES),
            *(Entry(f'NLA, {e} x {e} pixels', f'nla_w{e}', x=e * e, curve='NLA') for e in EDGES),
        ),
        axis='pixels in the receptive field',
    ),
}

TABLE5_GFLOPS = {
    'NLA': 16.0, 'convolution': 0.7, 'NLSA-r1': 0.9, 'NLSA-r2': 1.4, 'NLSA-r4': 2.4, 'NLSA-r8': 4.3,
}  # fmt: skip
"""GFLOPs as printed, with a multiply-add counted as two. Those of NLSA do not follow from the released layer."""
