"""The evaluator's parts: what networks cost, figures, and what is kept of them."""

from __future__ import annotations

import csv
import json
import math
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import cv2
import numpy as np
import pytest
import torch
from evaluated import SMALL, contestant, evaluate, write_two, write_weights
from mmengine.registry import MODELS

from nlsn_plugin import NLSN
from nlsn_plugin.data.benchmark_sets import find_sets, open_set
from nlsn_plugin.data.images import crop_to_multiple, enlarge, read_image, reduce
from nlsn_plugin.engine.evaluation import costs, page, reports, scoring
from nlsn_plugin.engine.evaluation.contestants import Contestant, Inference, Recipe, from_words
from nlsn_plugin.engine.evaluation.scoring import Settings
from nlsn_plugin.errors import DataError, UserError
from nlsn_plugin.metrics.protocols import PROTOCOLS, planes, score


@pytest.fixture(scope='module')
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp('weights'))


@pytest.fixture(scope='module')
def two(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Path:
    return write_two(tmp_path_factory.mktemp('two'), photographs)


def test_figures_are_those_of_bicubic_and_of_the_network(weights: Path, two: Path, tmp_path: Path) -> None:
    results = evaluate([contestant(weights)], two, tmp_path)
    by_name = {figure['network']: figure for figure in results['figures']}
    protocol = PROTOCOLS['basicsr']
    net = NLSN(**SMALL).eval()
    net.load_state_dict(torch.load(weights)['params'])
    psnrs: dict[str, list[float]] = {'bicubic': [], 'NLSN': []}
    for path in sorted(two.iterdir()):
        truth = read_image(path)
        lr = reduce(truth, 2)
        with torch.no_grad():
            y = net(torch.from_numpy(lr[..., ::-1].copy()).permute(2, 0, 1)[None] / 255)
        output = (y[0].permute(1, 2, 0).clamp(0, 1) * 255).round().byte().numpy()[..., ::-1]
        for name, image in (('bicubic', enlarge(lr, 2)), ('NLSN', output)):
            psnrs[name].append(score(planes(image, protocol, False), planes(truth, protocol, False), 2)['psnr_y'])
    for name, values in psnrs.items():
        assert by_name[name]['psnr_y']['mean'] == pytest.approx(np.mean(values), abs=1e-3)
        assert by_name[name]['images'] == 2
    (file,) = (
        image['file'] for image in results['images'] if (image['network'], image['image']) == ('NLSN', path.stem)
    )
    written = cv2.imread(str(tmp_path / file)).astype(int)
    assert np.abs(written - output).max() <= 1  # a value half-way may be rounded either way


def test_given_lr_images_are_taken_and_sets_are_cropped_to_the_scale(photographs: Path, tmp_path: Path) -> None:
    hr, lr = tmp_path / 'mine' / 'HR', tmp_path / 'mine' / 'LR_bicubic' / 'X2'
    for folder in (hr, lr):
        folder.mkdir(parents=True)
    truth = read_image(photographs / 'coffee.png')  # 121x97
    cv2.imwrite(str(hr / 'coffee.png'), truth)
    cv2.imwrite(str(lr / 'coffeex2.png'), np.full((60, 48, 3), 128, np.uint8))
    (photograph,) = open_set('mine', tmp_path / 'mine', 2, workers=1).photographs
    found, small = photograph.read(2)
    assert found.shape == (120, 96, 3)
    assert (small == 128).all()
    (made,) = open_set('mine', tmp_path / 'mine', 2, 'bicubic', workers=1).photographs
    assert (made.read(2)[1] == reduce(crop_to_multiple(truth, 2), 2)).all()
    assert made.digest != photograph.digest
    other = open_set('mine', tmp_path / 'mine', 2, str(tmp_path / '{set}' / 'LR_bicubic' / 'X{scale}'), workers=1)
    assert other.photographs == [photograph]
    (lr / 'coffeex2.png').unlink()
    cv2.imwrite(str(lr / 'other.png'), truth)
    with pytest.raises(UserError, match=r'coffee\.png has no LR image coffeex2 or coffee in'):
        open_set('mine', tmp_path / 'mine', 2, workers=1)


def test_what_was_measured_is_not_measured_again(
    weights: Path, two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped in the midst of the third image, its line half written; then gone on with."""
    whole = evaluate([contestant(weights)], two, tmp_path / 'whole', seeds=2)
    enlarge_once = Contestant.enlarge
    calls = []

    def stopped(self: Contestant, lr: np.ndarray, inference: Inference) -> np.ndarray:
        calls.append(lr)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return enlarge_once(self, lr, inference)

    monkeypatch.setattr(Contestant, 'enlarge', stopped)
    with pytest.raises(KeyboardInterrupt):
        evaluate([contestant(weights)], two, tmp_path / 'part', seeds=2)
    records = tmp_path / 'part' / 'records.jsonl'
    with records.open('a') as file:
        file.write('{}\n[1]\n{"key": [2]}\n{"key": "tor')
    capsys.readouterr()
    results = evaluate([contestant(weights)], two, tmp_path / 'part', seeds=2)
    assert len(calls) == 5
    assert '4 of 6 were measured before' in capsys.readouterr().out
    assert results['figures'] == whole['figures']
    assert all(json.loads(line) for line in records.read_text().splitlines())

    evaluate([contestant(weights)], two, tmp_path / 'part', seeds=2)
    assert len(calls) == 5
    lost = next(image['file'] for image in results['images'] if image['network'] == 'NLSN' and image['file'])
    (tmp_path / 'part' / lost).unlink()
    evaluate([contestant(weights)], two, tmp_path / 'part', seeds=2)
    assert len(calls) == 6
    monkeypatch.setenv('NLSN_BACKEND', 'reference')
    evaluate([contestant(weights)], two, tmp_path / 'part', seeds=1)
    assert len(calls) == 8
    for other in ({'seeds': 1, 'n_hashes': [4]}, {'inference': Inference(tile=20, tile_overlap=4)}, {'border': 4}):
        before = len(calls)
        evaluate([contestant(weights)], two, tmp_path / 'part', **other)
        assert len(calls) == before + 2


def test_seeds_spread_and_rounds_are_set(weights: Path, two: Path, tmp_path: Path) -> None:
    results = evaluate([contestant(weights, 'eval_seed=7')], two, tmp_path, seeds=3, n_hashes=[1, 4])
    assert [network['label'] for network in results['networks']] == ['NLSN, n_hashes 1', 'NLSN, n_hashes 4']
    _, one, four = results['figures']
    assert one['seeds'] == [7, 8, 9]
    by_seed = one['psnr_y']['by_seed']
    assert len(set(by_seed)) == 3
    assert one['psnr_y']['mean'] == pytest.approx(np.mean(by_seed))
    assert one['psnr_y']['spread'] == pytest.approx(np.std(by_seed, ddof=1))
    assert four['psnr_y']['by_seed'][0] != by_seed[0]
    table = reports.tables(results)[0]
    assert '±' in table.rows[1][2]
    assert '±' not in table.rows[0][2]
    assert any('3 seeds' in note for note in table.notes)


def test_tiles_and_orientations_change_what_is_made(weights: Path, two: Path, tmp_path: Path) -> None:
    network = contestant(weights)
    lr = reduce(read_image(two / 'chelsea.png'), 2)
    plain, tiled, turned = (
        network.enlarge(lr, inference) for inference in (Inference(), Inference(16, 4), Inference(self_ensemble=True))
    )
    assert (plain != tiled).any()
    assert (plain != turned).any()
    assert plain.shape == tiled.shape == turned.shape


def test_networks_of_other_architectures_stand_beside(photographs: Path, tmp_path: Path) -> None:
    """SwinIR takes multiples of its window alone: its images are mirrored up to them, as by BasicSR's SwinIRModel."""
    from basicsr.archs import build_network

    words = {
        'EDSR': ['num_feat=8', 'num_block=1'],
        'SwinIR': ['img_size=16', 'window_size=8', 'depths=[1]', 'embed_dim=12', 'num_heads=[2]', 'mlp_ratio=2'],
    }
    words['SwinIR'].append('upsampler=pixelshuffledirect')
    contestants = []
    for kind, arguments in words.items():
        path = tmp_path / f'{kind}.pth'
        recipe = from_words([kind, str(path), *arguments], 2)
        torch.save({'params': build_network({'type': kind, **recipe.arguments}).state_dict()}, path)
        contestants.append(Contestant(recipe, 'cpu'))
    folder = tmp_path / 'set'
    folder.mkdir()
    cv2.imwrite(str(folder / 'coffee.png'), read_image(photographs / 'coffee.png')[:51, :70])
    results = evaluate(contestants, folder, tmp_path / 'output', seeds=3)
    assert [(figure['network'], figure['seeds']) for figure in results['figures']] == [
        ('bicubic', [None]),
        ('EDSR', [None]),
        ('SwinIR', [None]),
    ]
    for network in contestants:
        assert costs.count_multiply_adds(network.net, network.recipe, (25, 35), Inference()) > 25 * 35 * 1000


def test_images_equal_to_the_truth_are_counted_and_left_out(tmp_path: Path, two: Path) -> None:
    folder = tmp_path / 'set'
    folder.mkdir()
    cv2.imwrite(str(folder / 'flat.png'), np.full((48, 48, 3), 90, np.uint8))
    cv2.imwrite(str(folder / 'other.png'), read_image(two / 'chelsea.png'))
    results = evaluate([], folder, tmp_path)
    (figure,) = results['figures']
    flat, other = results['images']
    assert flat['psnr_y'] is None
    assert figure['identical'] == 1
    assert figure['psnr_y']['mean'] == other['psnr_y']
    assert 'Set5 x2, bicubic: 1 of 2 images equal the truth' in reports.markdown(reports.tables(results))
    json.dumps(results, allow_nan=False)


@pytest.mark.parametrize('size', [(20, 24), (30, 31)])
def test_multiply_adds_are_those_counted_by_hand(weights: Path, size: tuple[int, int]) -> None:
    network = contestant(weights)
    pixels = size[0] * size[1]
    feat, match, rounds, chunk = 8, 2, 2, 16
    buckets = min(pixels // chunk + pixels // chunk % 2, 128)
    convolutions = 9 * 3 * feat + 8 * 2 * 9 * feat**2 + 9 * feat**2  # head, blocks, end of the body
    convolutions += 9 * feat * 4 * feat + 4 * 9 * feat * 3  # upsampler, tail at twice the size
    convolutions += 3 * 3 + 4 * 3 * 3  # the mean taken off and put back
    attention = 9 * feat * match + feat**2 + match * rounds * buckets // 2  # two convolutions, hashing
    windows = rounds * math.ceil(pixels / chunk) * chunk * 3 * chunk * (match + feat)
    expected = pixels * (convolutions + 2 * attention) + 2 * windows
    assert costs.count_multiply_adds(network.net, network.recipe, size, Inference()) == expected
    eight = costs.count_multiply_adds(network.net, network.recipe, size, Inference(self_ensemble=True))
    assert eight == pytest.approx(8 * expected, rel=1e-6)


def test_costs_are_measured_once_and_shown(
    weights: Path, two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def peak_memory(what: str, prepare: object, *arguments: object) -> int:
        """Here rather than in a process of its own, whose arguments are JSON."""
        assert prepare is costs.one_image
        for step in costs.one_image(*json.loads(json.dumps(arguments))):
            step()
        return 123_000_000

    monkeypatch.setattr(costs, 'BUDGET', 0.0)
    monkeypatch.setattr(costs, 'peak_memory', peak_memory)
    results = evaluate([contestant(weights)], two, tmp_path, cost_size=(24, 24))
    (network,) = results['networks']
    cost = network['cost']
    assert cost['lr_size'] == [24, 24]
    assert cost['parameters'] == sum(parameter.numel() for parameter in NLSN(**SMALL).parameters())
    assert cost['runs'] >= 3
    table = reports.costs(results)
    assert table.rows[0][:3] == ['x2', 'NLSN', '24x24']
    assert table.rows[0][-1] == '123 MB'
    monkeypatch.setattr(costs, 'measure', lambda *arguments: pytest.fail('measured again'))
    assert evaluate([contestant(weights)], two, tmp_path, cost_size=(24, 24))['networks'][0]['cost'] == cost


class Links(HTMLParser):
    """Images of a page with their alternative texts, and everything it fetches."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[tuple[str, str | None]] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag == 'img':
            self.images.append((unquote(named['src'] or ''), named.get('alt')))
        self.fetched += [value for key, value in attrs if key in ('src', 'href') and value]


def test_tables_and_page_are_whole(weights: Path, two: Path, tmp_path: Path) -> None:
    label = 'label=<b>R & D</b>'
    results = evaluate([contestant(weights, label), contestant(weights, 'label=NLSN_8')], two, tmp_path)
    found = reports.tables(results, 'NLSN')
    reports.write(results, found, tmp_path)
    html = page.write(results, found, tmp_path, per_set=1).read_text()

    kept = json.loads((tmp_path / 'results.json').read_text())
    assert kept['protocol'] == {
        'name': 'basicsr',
        'luma': 'float',
        'gray': 'rgb',
        'bicubic': 'rgb',
        'about': PROTOCOLS['basicsr'].about,
        'output': 'rounded to 8-bit RGB',
        'border': {'x2': 2},
        'mean': kept['protocol']['mean'],
        'spread': kept['protocol']['spread'],
        'seeds': 1,
        'tile': None,
        'tile_overlap': 16,
        'self_ensemble': False,
        'device': 'cpu',
    }
    assert kept['networks'][0]['n_hashes'] == 2
    assert kept['networks'][0]['seeds'] == [0]
    assert kept['sets'] == [{'name': 'Set5', 'scale': 2, 'folder': str(two), 'lr': 'bicubic', 'images': 2}]
    assert len(kept['networks'][0]['sha256']) == 64

    lines = list(csv.DictReader((tmp_path / 'table.csv').read_text().splitlines()))
    assert [line['network'] for line in lines] == ['bicubic', '<b>R & D</b>', 'NLSN_8']
    assert float(lines[0]['psnr_y']) == pytest.approx(results['figures'][0]['psnr_y']['mean'])
    tex = (tmp_path / 'table.tex').read_text()
    assert tex.count(r'\begin{tabular}') == tex.count(r'\end{tabular}') == tex.count(r'\begin{table}') == 3
    assert r'NLSN\_8' in tex
    assert r'R \& D' in tex
    body = [line for line in tex.splitlines() if ' & ' in line]
    assert all(line.rstrip().endswith(r'\\') for line in body)
    grid = [line for line in (tmp_path / 'table.md').read_text().splitlines() if line.startswith('|')]
    assert all(line.endswith('|') for line in grid)
    paper = found[-1]
    assert sum('(paper)' in row[1] and ' - ' not in row[1] for row in paper.rows) == 13
    ours = results['figures'][2]
    assert paper.rows[-1][1] == 'NLSN_8 - NLSN (paper)'
    assert paper.rows[-1][2] == f'{ours["psnr_y"]["mean"] - 38.34:+.2f} / {ours["ssim_y"]["mean"] - 0.9618:+.4f}'

    links = Links()
    links.feed(html)
    assert len(links.images) == 1 + 1 + 3 * 2  # whole, its detail, and of each a detail and an error
    assert all((tmp_path / source).is_file() and alt for source, alt in links.images)
    assert all('://' not in link and not link.startswith('/') for link in links.fetched)
    assert '<b>R' not in html


def test_a_page_without_visuals_reads_no_image(weights: Path, two: Path, tmp_path: Path) -> None:
    results = evaluate([contestant(weights)], two, tmp_path)
    shutil.rmtree(tmp_path / 'images')
    page.write(results, reports.tables(results), tmp_path, per_set=0)
    assert not (tmp_path / 'visuals').exists()


def test_a_bar_in_a_name_makes_no_column_of_a_markdown_table() -> None:
    table = reports.Table('a', ['set', 'x|y'], [['b|c', '1']], [])
    assert [line.replace('\\|', '').count('|') for line in reports.markdown([table]).splitlines()[2:]] == [3, 3, 3]


def test_names_are_printed_by_latex_as_they_are() -> None:
    table = reports.Table('a', ['set'], [['b']], [r'100 % of {a_b^c~d\e}'])
    said = r'100 \% of \{a\_b\textasciicircum{}c\textasciitilde{}d\textbackslash{}e\}'
    assert said in reports.latex([table])


def test_a_border_that_was_asked_for_is_named_beside_all_figures(two: Path, tmp_path: Path) -> None:
    results = evaluate([], two, tmp_path, border=4)
    tables = reports.tables(results)
    reports.write(results, tables, tmp_path)
    assert [table.title.partition('protocol ')[2] for table in tables] == 2 * ['basicsr, border 4']
    (line,) = csv.DictReader((tmp_path / 'table.csv').read_text().splitlines())
    assert line['protocol'] == 'basicsr, border 4'


def test_a_protocol_that_makes_its_own_bicubic_says_so_beside_given_lr_images(two: Path, tmp_path: Path) -> None:
    sets = {2: [open_set('Set5', two, 2, workers=1)]}
    results = scoring.run([], sets, Settings(PROTOCOLS['vdsr']), tmp_path)
    said = "bicubic's on Y are of LR images made from the HR images"
    assert not any(said in note for note in reports.notes(results))
    results['sets'][0]['lr'] = 'datasets/benchmark/Set5/LR_bicubic/X2'
    assert any(said in note for note in reports.notes(results))


def test_misprints_are_marked_beside_a_run(two: Path, tmp_path: Path) -> None:
    sets = {2: [open_set('B100', two, 2, workers=1)]}
    table = reports.beside_paper(scoring.run([], sets, Settings(), tmp_path), 'LapSRN')
    assert table.rows[0] == ['x2', 'LapSRN (paper)', '31.08* / 0.8950']
    assert 'probably 31.80' in table.notes[0]


class TestMistakes:
    def test_of_sets_are_named(self, two: Path, tmp_path: Path) -> None:
        (tmp_path / 'Urban100').mkdir()
        assert find_sets(['Urban100', f'mine={two}'], tmp_path) == {'Urban100': tmp_path / 'Urban100', 'mine': two}
        assert find_sets([str(two)], None) == {two.name: two}
        assert find_sets(None, tmp_path) == {'Urban100': tmp_path / 'Urban100'}
        for words, message in (
            (['Urban10'], 'there is no set Urban10: did you mean Urban100'),
            (['x'], 'there is no set x: .* has Urban100; for a folder elsewhere write its path'),
            ([f'a={two}', f'a={two}'], 'two sets are called a'),
            ([str(two)], r'--data .* has none of the sets: leave it out'),
        ):
            with pytest.raises(UserError, match=message):
                find_sets(words, tmp_path)
        with pytest.raises(UserError, match='has none of Set5, Set14'):
            find_sets(None, two)

    def test_names_may_have_an_equals_sign(self, two: Path, tmp_path: Path) -> None:
        folder = tmp_path / 'lr=1e-4'
        folder.mkdir()
        assert find_sets([str(folder), f'mine={folder}'], None) == {'lr=1e-4': folder, 'mine': folder}
        assert find_sets(['lr=1e-4', str(two)], tmp_path) == {'lr=1e-4': folder, two.name: two}

    def test_a_corrupt_image_is_named_before_anything_is_measured(self, two: Path, tmp_path: Path) -> None:
        folder = tmp_path / 'set'
        folder.mkdir()
        content = (two / 'chelsea.png').read_bytes()
        (folder / 'good.png').write_bytes(content)
        (folder / 'half.png').write_bytes(content[: len(content) // 2])
        with pytest.raises(UserError, match=r'half\.png (is truncated|does not read)'):
            open_set('set', folder, 2, workers=1)

    def test_an_image_too_small_for_its_border_is_named(self, two: Path, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r'camera\.png: 48x48 pixels are too few for SSIM within a border of 20'):
            evaluate([], two, tmp_path, border=20)


class LooksAtNumbers(torch.nn.Module):
    """Which the meta device has not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x - x.mean().item())


def test_multiply_adds_are_counted_of_networks_that_look_at_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS.module_dict, 'LooksAtNumbers', LooksAtNumbers)
    recipe = Recipe('a', 'LooksAtNumbers', {}, 1, 'a.pth', None)
    assert costs.count_multiply_adds(LooksAtNumbers(), recipe, (5, 7), Inference()) == 5 * 7 * 3 * 3 * 9
