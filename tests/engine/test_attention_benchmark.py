from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run

from nlsn_plugin import NLSN, ops
from nlsn_plugin.engine import attention_benchmark as benchmark
from nlsn_plugin.engine import network_benchmark
from nlsn_plugin.errors import UserError

FORMS = ['reference', 'streamed', 'fused']


def test_the_command_prints_a_table_and_writes_what_was_measured_where(tmp_path: Path) -> None:
    words = ['--suite', 'quick', '--form', *FORMS, '--budget', 0.1, '--threads', 1, '--json', 'figures.json']
    result = run(ROOT / 'tools' / 'benchmark_nlsa.py', *words, cwd=tmp_path)
    assert '| 40x40, C 64, r 4, k 144 | forward            | streamed' in result.stdout
    figures = json.loads((tmp_path / 'figures.json').read_text())
    assert figures['machine']['threads'] == 1
    assert figures['machine']['torch'] == torch.__version__
    by_form = {(record['form'], record['pass']): record for record in figures['records']}
    assert {form for form, _ in by_form} == set(FORMS)
    assert by_form['reference', 'forward']['speedup'] == 1
    assert by_form['streamed', 'forward']['runs'] >= 3
    if benchmark.status('VmHWM'):
        peaks = [by_form[form, 'forward + backward']['peak_bytes'] for form in ('reference', 'streamed')]
        assert peaks[0] > 3 * peaks[1] > 0
    if not torch.cuda.is_available():
        assert by_form['fused', 'forward']['skipped']


def test_a_form_that_gives_other_numbers_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    streamed = ops.FORMS['streamed']
    monkeypatch.setitem(ops.FORMS, 'streamed', lambda *arguments: 1.001 * streamed(*arguments))
    monkeypatch.setattr(benchmark, 'interleaved', lambda *arguments: pytest.fail('timed'))
    with pytest.raises(UserError, match=r'the output of streamed is off reference by .*; nothing was timed'):
        benchmark.measure(benchmark.Case(16, 20, 20), ['reference', 'streamed'], 'cpu', 'float32', 0.1, memory=False)


def test_a_form_that_would_not_fit_is_left_out_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, 'free_memory', lambda device: 1e6)
    forms = ['reference', 'streamed']
    records = benchmark.measure(benchmark.Case(16, 40, 40), forms, 'cpu', 'float32', 0.1, memory=False)
    skipped = {record['form']: record.get('skipped') for record in records}
    assert skipped == {'reference': 'needs about 0 GB', 'streamed': None}


def test_the_sweep_over_n_is_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cases = [benchmark.Case(16, edge, edge) for edge in (16, 32)]
    monkeypatch.setitem(benchmark.SUITES, 'n', cases)
    results = benchmark.run(['n'], ['reference', 'streamed'], 'cpu', 'float32', 0.1, onednn=False, memory=False)
    benchmark.plot(results['records'], tmp_path / 'n.png')
    assert (tmp_path / 'n.png').stat().st_size > 10_000


def test_the_network_is_measured_in_all_its_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    small = functools.partial(NLSN, num_feat=8, num_block=8, chunk_size=16)
    monkeypatch.setattr(network_benchmark, 'NLSN', small)
    records = network_benchmark.run((20, 24), 'cpu', 0.1, onednn=False, compiled=False)['records']
    assert {record['form'] for record in records} == {
        f'{form}, {dtype}' for form in ('reference', 'auto', 'no attention') for dtype in ('float32', 'bfloat16')
    }


def test_a_plot_of_anything_else_is_refused(tmp_path: Path) -> None:
    result = run(ROOT / 'tools' / 'benchmark_nlsa.py', '--plot', 'n.png', cwd=tmp_path, check=False)
    assert result.returncode == 1
    assert result.stderr == 'nlsn: --plot draws the sweep over n: add --suite n\n'
