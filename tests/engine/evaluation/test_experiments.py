from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import asdict
from pathlib import Path

import cv2
import pytest
from conftest import error_of, run
from warm import start

from nlsn_plugin.data import sample
from nlsn_plugin.engine.benchmarks.layer_costs import layer_costs
from nlsn_plugin.engine.evaluation import experiments
from nlsn_plugin.engine.evaluation.experiments import Budget, find_budget, write
from nlsn_plugin.engine.options.documents import Document, find_option_file, keep_copy
from nlsn_plugin.errors import InterruptedRunError, SaveError, UserError
from nlsn_plugin.paper.studies import STUDIES, TABLE5_GFLOPS


@pytest.fixture
def tiny(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`nlsn paper` on a share of a millionth: two updates of two patches each."""
    code = (
        'import sys\n'
        'from nlsn_plugin.engine.evaluation import experiments\n'
        "experiments.SMOKE = experiments.Budget('smoke', 2e-6, 2)\n"
        'from nlsn_plugin.cli import main\n'
        'main(sys.argv[1:])\n'
    )
    folder = tmp_path / 'photographs'
    folder.mkdir()
    for path in photographs.glob('*.png'):
        (folder / path.name).write_bytes(path.read_bytes())
    return ['-c', code, 'paper', 'table4', '--budget', 'smoke', '--data', str(folder), '--sets', f'own={folder}']


def test_a_table_is_trained_once_and_printed_beside_the_papers(tiny: list[str], tmp_path: Path) -> None:
    first = run(*tiny, cwd=tmp_path)
    assert first.stdout.count('training ') == 3
    assert re.search(r'\| one projection +\| \d+\.\d\d +\| 37\.87 ', first.stdout)
    assert '2 updates of 2 patches' in first.stdout
    results = json.loads((tmp_path / 'results' / 'paper_smoke' / 'table4.json').read_text())
    assert [row['paper'] for row in results['rows']] == [37.78, 37.86, 37.87]
    again = run(*tiny, cwd=tmp_path)
    assert 'training ' not in again.stdout
    assert 'were measured before' in again.stdout
    assert json.loads((tmp_path / 'results' / 'paper_smoke' / 'table4.json').read_text())['rows'] == results['rows']

    (tmp_path / 'photographs' / 'coffee.png').unlink()
    other = run(*tiny, cwd=tmp_path, check=False)
    assert other.returncode == 1
    assert 'Traceback' not in other.stderr


def test_stopped_it_saves_and_says_so(tiny: list[str], tmp_path: Path) -> None:
    words = [word.replace('2e-6', '1e-3') for word in tiny]
    experiment = tmp_path / 'results' / 'paper_smoke' / 'experiments' / 'ablation_baseline_x2'
    with start(words, tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while process.poll() is None and not (experiment / 'log.jsonl').exists():
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait(timeout=120) == 75
    assert said.strip().splitlines()[-1] == 'nlsn: baseline is saved; the same command goes on'
    assert list(experiment.glob('training_states/*.state'))


@pytest.mark.parametrize(
    ('status', 'asked', 'error', 'said'),
    [
        (75, True, InterruptedRunError, 'baseline is saved; the same command goes on'),
        (75, False, InterruptedRunError, 'baseline is saved; the same command goes on'),
        (-signal.SIGTERM, False, InterruptedRunError, 'baseline was ended; the same command goes on'),
        (-signal.SIGUSR1, True, InterruptedRunError, 'baseline was ended; the same command goes on'),
        (0, True, InterruptedRunError, 'baseline is trained; the same command goes on'),
        (1, False, UserError, 'training baseline by .* failed'),
        (0, False, None, ''),
    ],
)
def test_what_became_of_a_training_is_said(
    status: int, asked: bool, error: type[UserError] | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiments, 'run_interruptibly', lambda words: (status, asked))
    laboratory = experiments.Laboratory(tmp_path, None, {}, find_budget('smoke'), 'cpu')
    with pytest.raises(error, match=said) if error else contextlib.nullcontext() as raised:
        experiments.train('baseline', laboratory)
    assert error is None or raised.type is error


@pytest.fixture
def laboratory(tmp_path: Path) -> experiments.Laboratory:
    return experiments.Laboratory(tmp_path / 'results', None, {}, find_budget('smoke'), 'cpu')


def test_what_was_trained_by_an_option_file_that_has_changed_is_refused(
    laboratory: experiments.Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends_at_once(words: list[str]) -> tuple[int, bool]:
        option_file = Path(words[words.index('-opt') + 1])
        folder = laboratory.output / 'experiments' / 'ablation_baseline_x2'
        (folder / 'models').mkdir(parents=True)
        (folder / 'models' / 'net_g_latest.pth').touch()
        keep_copy(option_file, folder)
        return 0, False

    monkeypatch.setattr(experiments, 'run_interruptibly', ends_at_once)
    experiments.train('baseline', laboratory)
    monkeypatch.setattr(experiments, 'run_interruptibly', None)  # it is trained, and not trained again
    monkeypatch.setattr(experiments, 'processes', lambda: 1)
    path = experiments.train('baseline', laboratory)
    copy = laboratory.output / 'experiments' / 'ablation_baseline_x2' / 'baseline.yml'
    copy.write_text(copy.read_text().replace('num_block: 16', 'num_block: 8'))
    with pytest.raises(
        UserError, match=r'ablation_baseline_x2 was begun by an option file that has changed .*network_g'
    ):
        experiments.train('baseline', laboratory)
    assert path.is_file()


def test_the_plan_is_written_whole_and_a_damaged_one_is_named(
    laboratory: experiments.Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = laboratory.output / 'plan.json'
    with monkeypatch.context() as full:
        full.setattr(Path, 'write_text', lambda path, *_, **__: path.touch() or raise_full())
        with pytest.raises(SaveError):
            experiments.note_data(laboratory)
    assert not plan.exists()
    experiments.note_data(laboratory)
    before = plan.stat().st_mtime_ns, plan.stat().st_ino
    experiments.note_data(laboratory)
    assert (plan.stat().st_mtime_ns, plan.stat().st_ino) == before
    for damage in (b'', b'{"budget": ', b'\xff'):
        plan.write_bytes(damage)
        with pytest.raises(UserError, match=r'plan\.json is damaged \(.*\): remove it') as raised:
            experiments.note_data(laboratory)
        assert '\n' not in str(raised.value)


def raise_full() -> None:
    raise OSError(errno.ENOSPC, 'No space left on device')


def test_budgets() -> None:
    assert find_budget('paper') == Budget('paper', 1.0)
    assert find_budget('0.01') == Budget('0.01', 0.01)
    for text in ('0', '2', 'much', 'nan'):
        with pytest.raises(UserError, match='smoke, paper, or a share of its updates'):
            find_budget(text)


def test_what_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert 'there is no set Set5' in error_of(['paper', 'table2', '--budget', '0.1'], capsys)


@pytest.mark.parametrize('name', ['fig5', 'fig6', 'table5'])
def test_results_are_written_and_figures_drawn(name: str, tmp_path: Path) -> None:
    """Of a set whose folder's name is no UTF-8."""
    study, measured_on = STUDIES[name], os.fsdecode(b'S\xe9t5')
    rows = [{**asdict(entry), 'psnr': {measured_on: 30 + number / 10}} for number, entry in enumerate(study.entries)]
    held = {'updates': 2, 'batch_size': 4, 'seed': 1, 'trained on': ['a'], 'measured on': [measured_on]}
    results = {'title': study.title, 'conditions': held, 'axis': study.axis, 'rows': rows}
    if study.costs:
        results['costs'] = [{'label': 'NLA', 'gflops': 16.0, 'paper': 16.0, 'milliseconds': 1.25}]
    paths = write(name, results, tmp_path)
    text = (tmp_path / f'{name}.md').read_text(encoding='utf-8')
    assert '| S\ufffdt5 ' in text
    assert json.loads((tmp_path / f'{name}.json').read_text())['rows'] == rows
    assert all(f'{30 + number / 10:.2f}' in text for number in range(len(rows)))
    if study.costs:
        assert re.search(r'\| NLA +\| 16\.000 +\| 16\.0 +\| 1\.2 +\|', text)
    else:
        assert paths[-1].name == f'{name}.png'
        assert cv2.imread(str(paths[-1])).std() > 10


def test_layers_cost_what_the_formula_says() -> None:
    costs = {cost['label']: cost for cost in layer_costs('cpu', TABLE5_GFLOPS, budget=0.1)}
    assert costs['NLA']['gflops'] == pytest.approx(16.0)
    assert costs['convolution']['gflops'] == pytest.approx(2 * 10_000 * 9 * 64 * 64 / 1e9)
    projections = 2 * 10_000 * (9 * 64 * 16 + 64 * 64)
    for rounds in (1, 2, 4, 8):
        one_round = 2 * 10_000 * 16 * 35 + 2 * 70 * 144 * 432 * (16 + 64)
        assert costs[f'NLSA-r{rounds}']['gflops'] == pytest.approx((projections + rounds * one_round) / 1e9, rel=1e-3)
    assert all(cost['milliseconds'] > 0 for cost in costs.values())


def test_a_place_of_another_budget_is_refused(tmp_path: Path) -> None:
    def laboratory(budget: str) -> experiments.Laboratory:
        return experiments.Laboratory(tmp_path, None, {}, find_budget(budget), 'cpu')

    experiments.note_data(laboratory('0.01'))
    with pytest.raises(UserError, match='on other data or of another budget'):
        experiments.note_data(laboratory('0.02'))


def test_a_share_of_the_schedule_has_its_share_of_the_milestones(tmp_path: Path) -> None:
    laboratory = experiments.Laboratory(tmp_path, None, {}, Budget('a hundredth', 0.01), 'cpu')
    whole = Document(find_option_file('paper/nlsn_x2.yml')).options['train']
    options = experiments.scheduled(Document(find_option_file('paper/nlsn_x2.yml')).options, laboratory)
    assert options['train']['total_iter'] == whole['total_iter'] // 100
    assert options['train']['scheduler']['milestones'] == [m // 100 for m in whole['scheduler']['milestones']]


def test_smoke_makes_its_sample_once(
    tmp_path: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[Path] = []

    def prepare(folder: Path, scale: int) -> None:
        made.append(folder)
        for name in ('photographs', 'sample_test'):
            shutil.copytree(photographs, folder / name)

    def run(name: str, laboratory: experiments.Laboratory) -> None:
        assert laboratory.data == [Path('results/paper_smoke/sample/photographs')]
        assert list(laboratory.sets) == ['chelsea']
        raise UserError('far enough')

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sample, 'prepare_sample_data', prepare)
    monkeypatch.setattr(experiments, 'run', run)
    for _ in range(2):
        assert error_of(['paper', 'table4', '--budget', 'smoke', '--device', 'cpu'], capsys) == 'nlsn: far enough'
    assert made == [Path('results/paper_smoke/sample')]
