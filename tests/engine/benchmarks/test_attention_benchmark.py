from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import json
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import small_network
import torch
from conftest import ROOT, error_of, run

from nlsn_plugin import NLSN, ops
from nlsn_plugin.cli import main
from nlsn_plugin.engine import available_memory
from nlsn_plugin.engine.benchmarks import attention as benchmark
from nlsn_plugin.engine.benchmarks import ceilings, network, onednn, tiles
from nlsn_plugin.engine.benchmarks.cases import SUITES, Case
from nlsn_plugin.engine.measuring import machine, memory, timing
from nlsn_plugin.errors import UserError

FORMS = ['reference', 'streamed', 'streamed-onednn', 'fused']
READS_PROC = pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason='reads of processes in /proc')


def test_the_command_prints_a_table_and_writes_what_was_measured_where(tmp_path: Path) -> None:
    words = ['--suite', 'quick', '--form', *FORMS, '--budget', 0.1, '--threads', 1, '--json', 'figures.json']
    result = run(ROOT / 'tools' / 'benchmark_nlsa.py', *words, cwd=tmp_path)
    assert '| 40x40, C 64, r 4, k 144 | forward            | streamed' in result.stdout
    figures = json.loads((tmp_path / 'figures.json').read_text())
    assert figures['command'].startswith('nlsn benchmark-attention --suite quick --form reference')
    assert figures['machine']['threads'] == 1
    assert figures['machine']['torch'] == torch.__version__
    by_form = {(record['form'], record['pass']): record for record in figures['records']}
    assert {form for form, _ in by_form} == set(FORMS)
    assert by_form['reference', 'forward']['speedup'] == 1
    assert by_form['streamed', 'forward']['runs'] >= 3
    if memory.process_memory('VmHWM'):
        peaks = [by_form[form, 'forward + backward']['peak_bytes'] for form in ('reference', 'streamed')]
        assert peaks[0] > 3 * peaks[1] > 0
    if not torch.cuda.is_available():
        assert by_form['fused', 'forward']['skipped']


@pytest.mark.parametrize(('dtype', 'factor'), [('float32', 1.001), ('bfloat16', 1.05), ('float16', 1.01)])
def test_a_form_that_gives_other_numbers_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, dtype: str, factor: float
) -> None:
    streamed = ops.FORMS['streamed']
    monkeypatch.setitem(ops.FORMS, 'streamed', lambda *arguments: factor * streamed(*arguments))
    monkeypatch.setattr(benchmark, 'interleaved', lambda *arguments: pytest.fail('timed'))
    with pytest.raises(UserError, match=r'the output of streamed is off reference by .*; nothing was timed'):
        benchmark.measure(Case(16, 20, 20), ['reference', 'streamed'], 'cpu', dtype, 0.1)


def test_a_form_that_would_not_fit_is_left_out_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, 'free_memory', lambda device: 1e6)
    forms = ['reference', 'streamed']
    records = benchmark.measure(Case(16, 40, 40), forms, 'cpu', 'float32', 0.1)
    skipped = {record['form']: record.get('skipped') for record in records}
    assert skipped == {'reference': 'needs about 0 GB', 'streamed': None}


def test_what_is_left_out_is_said_once_with_its_cases_unless_those_are_all() -> None:
    records = [
        {'case': case, 'form': form, 'pass': which, 'skipped': 'takes minutes'}
        for case, form in [('small', 'fused'), ('large', 'fused'), ('large', 'nla')]
        for which in ('forward', 'forward + backward')
    ]
    assert benchmark.left_out(records) == [
        'not measured, fused: takes minutes',
        'not measured, nla: takes minutes (large)',
    ]


def test_what_fits_beside_the_cache_of_files_and_into_the_containers_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The cache of files can be dropped: `available` counts it, where the pages that are free do not."""
    limits: list[int] = []
    monkeypatch.setattr(available_memory, 'limits_of_groups', lambda: limits)
    memory_of_machine = psutil.virtual_memory()._replace(free=0)
    monkeypatch.setattr(psutil, 'virtual_memory', lambda: memory_of_machine)
    case = Case(16, 40, 40)
    assert benchmark.why_not('reference', case, 'cpu', 'float32') is None
    limits.append(1_000_000)
    assert memory.free_memory('cpu') == 1_000_000
    assert benchmark.why_not('reference', case, 'cpu', 'float32') == 'needs about 0 GB'


@pytest.mark.parametrize('runs', [0, 1])
def test_a_form_that_runs_out_of_memory_is_left_out_with_that_reason(
    runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the check that forms are equal, or later, when it is timed."""
    reference, turns = ops.FORMS['reference'], iter(range(runs))

    def run_out(*arguments: object) -> torch.Tensor:
        if next(turns, None) is None:
            raise torch.cuda.OutOfMemoryError
        return reference(*arguments)

    monkeypatch.setitem(ops.FORMS, 'reference', run_out)
    records = benchmark.measure(Case(16, 20, 20), ['reference', 'streamed'], 'cpu', 'float32', 0.1)
    skipped = {record['form']: record.get('skipped') for record in records}
    assert skipped == {'reference': 'ran out of memory', 'streamed': None}


def test_what_fails_beside_others_in_one_process_leaves_their_peaks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {'num_feat': 8, 'num_block': 1}
    jobs = [
        memory.Job(what, small_network.one_image, (form, size, 'float32', small))
        for what, form, size in [('a', 'auto', [64, 64]), ('b', 'auto', [8, -8]), ('c', 'no attention', [64, 64])]
    ]
    first, failed, last = memory.peak_memories(jobs, 'cpu')
    assert failed is None
    assert 'b: memory could not be measured: RuntimeError: ' in capsys.readouterr().err
    if memory.process_memory('VmHWM'):
        assert first > 0
        assert last is not None


KEEPING = """
import torch
from nlsn_plugin.ops.scratch import scratch
def kept(device):
    def step():
        with scratch(torch.device(device)) as memory:
            memory.take('a', (16_000_000,), torch.uint8).fill_(1)
    return step, step
"""


@READS_PROC
def test_memory_that_a_thread_keeps_for_its_calls_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'keeping.py').write_text(KEEPING)
    monkeypatch.syspath_prepend(str(tmp_path))
    peak = memory.peak_memory('a', importlib.import_module('keeping').kept, 'cpu')
    assert peak is not None
    assert peak > 15_000_000


DEADLY = """
import os, signal
def killed(device):
    return int, lambda: os.kill(os.getpid(), signal.SIGKILL)
def failing(device):
    return int, lambda: 1 / 0
"""


@READS_PROC
def test_steps_that_are_killed_or_fail_leave_the_others_their_peaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / 'deadly.py').write_text(DEADLY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    deadly = importlib.import_module('deadly')
    jobs = [
        memory.Job('a', deadly.killed, ()),
        memory.Job('b', deadly.failing, ()),
        memory.Job('c', small_network.one_image, ('auto', [64, 64], 'float32', {'num_feat': 8, 'num_block': 1})),
    ]
    killed, failed, last = memory.peak_memories(jobs, 'cpu')
    assert killed is failed is None
    assert last is not None
    said = capsys.readouterr().err.splitlines()
    assert 'a: memory could not be measured: exit status -9' in said
    assert 'b: memory could not be measured: ZeroDivisionError: division by zero' in said


@READS_PROC
def test_peaks_are_told_as_they_become_known_and_processes_that_nobody_waits_for_are_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, 'Popen', lambda *words, **rest: started.append(popen(*words, **rest)) or started[0])
    jobs = [
        memory.Job('', small_network.one_image, ('auto', size, 'float32', {'num_feat': 8, 'num_block': blocks}))
        for size, blocks in (([64, 64], 1), ([512, 512], 10_000))
    ]
    peaks = memory.peak_memories(jobs, 'cpu')
    next(peaks)
    for are_there in (lambda found: len(found) == 2, lambda found: not found):
        before = time.monotonic()
        while not are_there(running(started[0].pid)):
            assert time.monotonic() - before < 5
            time.sleep(0.01)
        peaks.close()


def running(session: int) -> list[str]:
    """The processes of a session that have not ended."""
    found = []
    for path in Path('/proc').glob('[0-9]*/stat'):
        with contextlib.suppress(OSError):
            state, _, _, of_session = path.read_text().rpartition(')')[2].split()[:4]
            if int(of_session) == session and state != 'Z':
                found.append(path.parent.name)
    return found


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_on_a_gpu_what_ran_before_in_the_process_hides_no_peak() -> None:
    jobs = [memory.Job('', small_network.one_image, ('auto', [64, 64], 'float32', {'num_block': 1}))] * 2
    first, again = memory.peak_memories(jobs, 'cuda')
    assert first > 0
    assert again == pytest.approx(first, rel=0.1)


def test_the_machine_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described = machine.describe_machine('cpu')
    assert described['gpu'] is None
    if platform.machine() == 'x86_64' and sys.platform == 'linux':  # where one name is that of CPUs of several years
        assert re.search(r', family \d+, model \d+$', described['cpu'])
        held = 'avx512_bf16' in Path('/proc/cpuinfo').read_text()
        assert ('avx512_bf16' in (described['instructions for bfloat16'] or '')) is held
    tool = tmp_path / 'nvidia-smi'
    tool.write_text('#!/bin/sh\n[ "$1" = --query-gpu=driver_version ] && echo 550.54.15\n')
    tool.chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}:/usr/bin:/bin')
    assert machine.driver_version() == '550.54.15'
    tool.write_text('#!/bin/sh\nexit 9\n')
    assert machine.driver_version() is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_a_gpu_is_described_with_what_decides_on_its_speed() -> None:
    described = machine.describe_machine('cuda')
    assert described['compute capability'].partition('.')[0].isdigit()
    assert described['TF32 convolutions'] is False  # as conftest sets it
    assert {'gpu', 'driver', 'CUDA', 'cuDNN', 'Triton', 'TF32 products'} <= set(described)


def test_what_part_of_its_ceilings_the_core_reaches() -> None:
    case = Case(64, 100, 100)
    ceiling = ceilings.ceilings('cpu', 'float32')
    assert all(number > 1e6 for number in ceiling.values())
    slow, fast = (ceilings.fractions(case, 'float32', seconds, ceiling) for seconds in (0.2, 0.1))
    assert slow['core, milliseconds'] == 200
    operations = 2 * 10_000 * 4 * 3 * 144 * 80
    assert fast['of the product ceiling'] == pytest.approx(operations / 0.1 / ceiling['product, operations/s'])
    assert fast['of the copy ceiling'] == pytest.approx(2 * slow['of the copy ceiling'])


def test_tiles_are_tried_kernel_by_kernel_beside_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip('triton')
    candidates = {name: [{'block_m': 16, 'block_n': 16}] for name in tiles.CANDIDATES}
    candidates['key'].append({'block_m': 24})  # Triton takes powers of two alone
    monkeypatch.setattr(tiles, 'CANDIDATES', candidates)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    records = tiles.run(Case(16, 5, 5, n_hashes=1, chunk_size=8), 'float32', 0.01, device)['records']
    assert [record['kernel'] for record in records] == ['forward'] * 2 + ['key'] * 3 + ['query'] * 2
    assert [sum(r['is default'] for r in records if r['kernel'] == name) for name in candidates] == [1, 1, 1]
    assert [record.get('milliseconds', 0) > 0 for record in records] == [True, True, True, True, False, True, True]


def test_what_was_timed_is_kept_and_every_peak_as_it_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped_after_two(*arguments: object) -> Iterator[int]:
        yield from (1, 2)
        raise KeyboardInterrupt

    def keep(results: dict[str, Any]) -> None:
        kept.append(copy.deepcopy(results))

    kept: list[dict[str, Any]] = []
    monkeypatch.setattr(benchmark, 'peak_memories', stopped_after_two)
    with pytest.raises(KeyboardInterrupt):
        benchmark.run(['quick'], ['reference', 'streamed'], 'cpu', 'float32', 0.01, keep=keep)
    assert [record['milliseconds'] > 0 for record in kept[0]['records']] == [True] * 4
    assert kept[0]['machine']['torch'] == torch.__version__
    peaks = [[record['peak_bytes'] for record in results['records']] for results in kept]
    assert peaks == [[None] * 4, [1, None, None, None], [1, 2, None, None]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_on_a_gpu_steps_are_timed_without_the_host_too() -> None:
    for record in benchmark.measure(Case(16, 20, 20), ['reference', 'fused'], 'cuda', 'float32', 0.01):
        assert 0 < record['gpu_milliseconds'] < record['milliseconds']
        assert len(next(iter(benchmark.rows([record])))) == len(benchmark.HEADERS)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_what_cannot_be_recorded_is_said_and_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    x = torch.ones(3, device='cuda')
    found = timing.on_gpu_alone({'adds': lambda: x + 1, 'asks': lambda: x.sum().item()}, 0.01)
    assert list(found) == ['adds']
    assert 'asks: cannot be recorded as a CUDA graph' in capsys.readouterr().err


def no_peaks(jobs: list[memory.Job], device: str) -> list[None]:
    """In the place of `peak_memories`, which takes longer than all else."""
    return [None] * len(jobs)


def test_the_sweep_over_n_is_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cases = [Case(16, edge, edge) for edge in (16, 32)]
    monkeypatch.setitem(SUITES, 'n', cases)
    monkeypatch.setattr(benchmark, 'peak_memories', no_peaks)
    results = benchmark.run(['n'], ['reference', 'streamed'], 'cpu', 'float32', 0.1)
    benchmark.plot(results['records'], tmp_path / 'n.png')
    assert (tmp_path / 'n.png').stat().st_size > 10_000


def test_the_network_is_measured_in_all_its_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    small = functools.partial(NLSN, num_feat=8, num_block=8, chunk_size=16)
    monkeypatch.setattr(network, 'NLSN', small)
    monkeypatch.setattr(network, 'peak_memories', no_peaks)
    monkeypatch.setattr(network, 'has_products_in', lambda dtype: True)
    records = network.run((20, 24), 'cpu', 0.1, compiled=False)['records']
    forms = [f'{form}, {dtype}' for form in ('reference', 'auto', 'no attention') for dtype in ('float32', 'bfloat16')]
    forms += ['auto-onednn, float32'] if onednn.why_not('cpu', 'float32') is None else []
    assert [record['form'] for record in records] == forms


def test_what_a_cpu_without_half_precision_takes_minutes_for_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    small = functools.partial(NLSN, num_feat=8, num_block=8, chunk_size=16)
    monkeypatch.setattr(network, 'NLSN', small)
    monkeypatch.setattr(network, 'peak_memories', no_peaks)
    monkeypatch.setattr(network, 'has_products_in', lambda dtype: False)
    records = network.run((20, 24), 'cpu', 0.1, compiled=False)['records']
    assert {record['form'] for record in records if 'skipped' in record} == {'reference, bfloat16'}
    assert benchmark.left_out(records) == [f'not measured, reference, bfloat16: {network.SLOW}']
    assert len(list(benchmark.rows(records))) == len(records) - 1


def test_a_network_that_computes_otherwise_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    small = functools.partial(NLSN, num_feat=8, num_block=8, chunk_size=16)
    monkeypatch.setattr(network, 'NLSN', small)
    monkeypatch.setattr(network, 'peak_memories', no_peaks)
    monkeypatch.setitem(network.FORMS, 'auto', {'backend': 'auto', 'n_hashes': 3})
    with pytest.raises(UserError, match=r"NLSN with backend='auto' is off 'reference' by .*; nothing was timed"):
        network.run((20, 24), 'cpu', 0.1, compiled=False)


def test_standard_attention_is_the_same_by_either_kernel() -> None:
    case = Case(16, 20, 20)
    records = benchmark.measure(case, ['nla', 'nla-sdpa'], 'cpu', 'float32', 0.1)  # checks first
    assert all(record['milliseconds'] > 0 for record in records)


def test_a_process_that_fails_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert memory.peak_memory('the sum', network.one_image, 'nowhere', 'auto', [8, 8], 'float32') is None
    assert 'the sum: memory could not be measured: RuntimeError: ' in capsys.readouterr().err


@READS_PROC
def test_a_whole_image_takes_hardly_more_memory_than_without_attention() -> None:
    small = {'num_feat': 64, 'num_block': 4, 'attention_at': [2]}
    jobs = [
        memory.Job(form, small_network.one_image, (form, [256, 192], 'float32', small))
        for form in ('auto', 'no attention', 'reference')
    ]
    with_attention, without, reference = memory.peak_memories(jobs, 'cpu')
    assert with_attention is not None
    assert without is not None
    assert reference is not None
    assert reference > 3 * without  # so that it could fail
    assert 0 < with_attention <= 1.5 * without


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--plot', 'n.png'], '--plot draws the sweep over n: add --suite n'),
        (['--compile'], '--compile is for the whole network: add --network H W'),
        (['--network', '8', '8', '--form', 'nla'], '--form is for the layer alone: leave it or --network out'),
        (['--network', '8', '8', '--tune'], '--network and --tune are two measurements: leave one out'),
        (['--network', '0', '8'], '--network=0 is not allowed: a whole number of at least 1 is expected'),
        (
            ['--network', '8', '8', '--dtype', 'float16'],
            '--network is measured in float32 and in bfloat16: leave --dtype out',
        ),
        (['--tune', '--device', 'cpu'], '--tune is for a GPU: leave --device cpu out'),
        (['--threads', '0'], '--threads=0 is not allowed: a whole number of at least 1 is expected'),
    ],
)
def test_options_that_would_do_nothing_or_cannot_be_are_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert error_of(['benchmark-attention', *words], capsys) == f'nlsn: {message}'


def test_nothing_measured_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, 'why_not', lambda *_: 'it cannot')
    words = ['--suite', 'quick', '--form', 'streamed', '--json', str(tmp_path / 'a.json')]
    with pytest.raises(SystemExit) as stop:
        main(['benchmark-attention', *words])
    assert stop.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1] == 'nlsn: nothing could be measured'
    assert all(record['skipped'] == 'it cannot' for record in json.loads((tmp_path / 'a.json').read_text())['records'])


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
@pytest.mark.parametrize('words', [['--device', 'cuda'], ['--network', '8', '8', '--device', 'cuda'], ['--tune']])
def test_a_missing_gpu_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    message = error_of(['benchmark-attention', *words], capsys)
    assert message == "nlsn: device 'cuda' cannot be used: PyTorch finds no GPU"
