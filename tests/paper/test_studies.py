"""Every number of the paper has an option file, and what it says is what the paper compares."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import ROOT

from nlsn_plugin import NLSN
from nlsn_plugin.engine.options.documents import Document, find_option_file
from nlsn_plugin.engine.options.reading import checked
from nlsn_plugin.paper.studies import STUDIES, Entry

FILES = sorted((ROOT / 'options' / 'paper').glob('*.yml'))
ABLATIONS = [path for path in FILES if not path.stem.startswith('nlsn_x')]


def options(path: Path) -> dict:
    return checked(Document(path), is_train=True)


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_every_option_file_builds_its_network(path: Path) -> None:
    arguments = dict(options(path)['network_g'])
    assert arguments.pop('type') == 'NLSN'
    with torch.device('meta'):
        net = NLSN(**arguments)
    assert sum(parameter.numel() for parameter in net.parameters()) > 1_000_000


@pytest.mark.parametrize('path', ABLATIONS, ids=lambda path: path.stem)
def test_ablations_enlarge(path: Path) -> None:
    arguments = {**options(path)['network_g'], 'num_feat': 16}
    del arguments['type']
    torch.manual_seed(0)
    net = NLSN(**arguments).eval()
    with torch.no_grad():
        assert net(torch.rand(1, 3, 17, 21)).shape == (1, 3, 34, 42)


def test_ablations_differ_in_the_attention_alone() -> None:
    attention = {'attention', 'attention_options', 'n_hashes', 'chunk_size'}
    found = []
    for path in ABLATIONS:
        opt = options(path)
        del opt['name']
        opt['network_g'] = {key: value for key, value in opt['network_g'].items() if key not in attention}
        found.append(opt)
    assert all(opt == found[0] for opt in found)
    assert found[0]['network_g']['attention_at'] == [8]


def test_all_files_have_names_of_their_own() -> None:
    names = [options(path)['name'] for path in FILES]
    assert len(set(names)) == len(names)


def test_studies_and_files_fit() -> None:
    used = {network for study in STUDIES.values() for network in study.networks}
    for network in used:
        assert find_option_file(f'paper/{network}').is_file()
    assert used | {'ablation', 'nlsn_x2', 'nlsn_x3', 'nlsn_x4'} == {path.stem for path in FILES}
    assert [len(STUDIES[name].entries) for name in ('table2', 'table3', 'table4', 'table5', 'fig5', 'fig6')] == [
        4, 16, 3, 6, 16, 16,
    ]  # fmt: skip
    readme = (ROOT / 'options' / 'paper' / 'README.md').read_text()
    assert all(f'`{name}`' in readme for name in ('baseline', 'nlsa_r4', 'nla_separate', 'nlsa_k2500', 'nlsa_w50'))


def test_numbers_are_the_papers() -> None:
    by_label = {name: {entry.label: entry.paper for entry in study.entries} for name, study in STUDIES.items()}
    assert by_label['table2']['spherical LSH'] == by_label['table3']['trained with r = 4, tested with 4'] == 37.92
    assert by_label['table5']['NLA'] == by_label['table4']['two projections'] == 37.86
    misprinted = [entry.paper for entry in STUDIES['table3'].entries if entry.remark]
    assert misprinted == [31.87, 31.88, 31.89]
    assert set(by_label['fig5'].values()) == set(by_label['fig6'].values()) == {None}


@pytest.mark.parametrize(
    'entry',
    [entry for name in ('fig5', 'fig6') for entry in STUDIES[name].entries],
    ids=lambda entry: entry.network,
)
def test_figures_are_drawn_over_the_pixels_that_are_attended_to(entry: Entry) -> None:
    network = options(find_option_file(f'paper/{entry.network}'))['network_g']
    window = network.get('attention_options', {}).get('window')
    assert entry.x == (window**2 if window else network['chunk_size'])


def test_rounds_of_training_are_the_option_files_and_those_of_the_test_are_said() -> None:
    by_label = {entry.label: entry for entry in STUDIES['table3'].entries}
    entry = by_label['trained with r = 2, tested with 8']
    assert (entry.network, entry.rounds, entry.paper) == ('nlsa_r2', 8, 37.90)
    assert [entry.network for entry in STUDIES['table5'].entries[2:]] == ['nlsa_r4'] * 4
