from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from basicsr.archs.swinir_arch import SwinIR
from conftest import python
from PIL import Image
from skimage import data

import nlsn_plugin
from nlsn_plugin import NLSN
from nlsn_plugin.data.pictures import Picture
from nlsn_plugin.engine import available_memory
from nlsn_plugin.engine.measuring.memory import RETURN_ALL
from nlsn_plugin.engine.upscaling import in_memory, memory, upscaler
from nlsn_plugin.engine.upscaling.finding import Found, find_inputs
from nlsn_plugin.engine.upscaling.planning import Output, plan
from nlsn_plugin.engine.upscaling.upscaler import Settings, Upscaler
from nlsn_plugin.errors import ArgumentError, BackendError, UserError
from nlsn_plugin.models import checkpoint
from nlsn_plugin.models.formats import load_network, save_network

SMALL = {'num_feat': 16, 'num_block': 2, 'n_hashes': 1, 'chunk_size': 64, 'attention_at': [1]}


@pytest.fixture(scope='module')
def attending(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights, fresh, of a small network with an attention."""
    path = tmp_path_factory.mktemp('attending') / 'attending.safetensors'
    torch.manual_seed(0)
    save_network(NLSN(**SMALL), path, {'type': 'NLSN', 'arguments': SMALL})
    return path


@pytest.mark.parametrize('plain', [False, True])
def test_half_precision_is_discouraged_where_it_is_slow_alone(
    attending: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, plain: bool
) -> None:
    """The package's own convolutions compute in float32 where a CPU is slow in half precision."""
    monkeypatch.setattr(upscaler, 'has_products_in', lambda dtype: dtype == torch.float32)
    if plain:
        found = upscaler.network_in

        def with_pytorchs_own(*arguments: object) -> tuple[torch.nn.Module, object]:
            net, description = found(*arguments)
            net.extra = torch.nn.Conv2d(1, 1, 1)
            return net, description

        monkeypatch.setattr(upscaler, 'network_in', with_pytorchs_own)
    for dtype in ('float32', 'float16'):
        Upscaler(Settings(weights=attending, device='cpu', dtype=dtype))
        assert ('in float16 are very slow on this CPU' in caplog.text) == (plain and dtype == 'float16')


@pytest.mark.parametrize(
    ('settings', 'error', 'said'),
    [
        ({'scale': 5, 'weights': None}, ArgumentError, 'scale=5 is not allowed'),
        ({'scale': 3}, ArgumentError, 'enlarges by 2, not by 3: leave the scale out'),
        ({'n_hashes': 2}, ArgumentError, 'hashes nothing: leave it out'),
        ({'n_hashes': 0}, ArgumentError, 'n_hashes=0 is not allowed'),
        ({'dtype': 'float64'}, ArgumentError, "dtype='float64' is not allowed"),
        ({'tile': 'automatic'}, ArgumentError, "tile='automatic' is not allowed: 'auto', 'none' or a number"),
        ({'tile': 63}, ArgumentError, 'tile=63 is less than twice overlap=32'),
        ({'tile': 8}, ArgumentError, 'tile=8 is not allowed: a whole number of at least 16'),
        ({'device': 'gpu'}, BackendError, "device 'gpu' cannot be used: 'cpu', 'cuda' or 'cuda:N' is expected$"),
        ({'device': 'mps'}, BackendError, "device 'mps' cannot be used: 'cpu', 'cuda' or 'cuda:N' is expected$"),
        ({'device': torch.device('meta')}, BackendError, "device 'meta' cannot be used"),
        ({'weights': Path('absent.pth')}, UserError, 'there is no file absent.pth'),
    ],
)
def test_settings_that_cannot_be_are_refused(
    repeating: dict[int, Path], settings: dict[str, object], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        Upscaler(Settings(**{'weights': repeating[2], **settings}))


def test_weights_are_read_once_and_rounds_that_are_given_are_not_assumed(
    attending: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / 'weights.pt'
    save_network(load_network(attending), path)
    read, times = checkpoint.load_container, []
    monkeypatch.setattr(checkpoint, 'load_container', lambda path: times.append(path) or read(path))
    upscaler = Upscaler(Settings(weights=path, n_hashes=3, arguments={'chunk_size': 64}))
    assert times == [path]
    assert upscaler.net.body[1].n_hashes == 3
    assert 'does not say res_scale, attention: taken as released' in caplog.text


@pytest.mark.parametrize('device', ['cpu:0', torch.device('cpu')])
def test_the_processor_has_several_names(repeating: dict[int, Path], device: object) -> None:
    upscaler = Upscaler(Settings(weights=repeating[2], device=device))
    assert upscaler.device == 'cpu'
    assert upscaler.enlarge(Picture(np.zeros((9, 7), np.uint8)), 'black').picture.colour.shape == (18, 14)
    assert available_memory.available_memory('cpu:0') > 0


def test_without_weights_of_its_own_the_package_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    in_memory.upscaler_for.cache_clear()
    monkeypatch.setattr('nlsn_plugin.engine.upscaling.upscaler.files', lambda package: tmp_path)
    with pytest.raises(UserError, match='this installation holds no weights for x4: name a file of weights'):
        nlsn_plugin.upscale(np.zeros((4, 4)), 4)


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_the_weights_in_the_box_beat_bicubic(scale: int) -> None:
    truth = data.astronaut()[60:204, 150:294]
    lr = np.asarray(Image.fromarray(truth).resize((144 // scale, 144 // scale), Image.Resampling.BICUBIC))
    bicubic = np.asarray(Image.fromarray(lr).resize((144, 144), Image.Resampling.BICUBIC))
    error, of_bicubic = (
        np.square(np.float64(found) - truth)[8:-8, 8:-8].mean() for found in (nlsn_plugin.upscale(lr, scale), bicubic)
    )
    assert error < 0.8 * of_bicubic


def test_the_options_do_what_they_say(attending: Path) -> None:
    image = data.chelsea()[100:140, 100:148] / 255.0
    plain = nlsn_plugin.upscale(image, weights=attending)
    with torch.no_grad():
        net = NLSN(**SMALL).eval()
        net.load_state_dict(Upscaler(Settings(weights=attending)).net.state_dict())
        own = net(torch.from_numpy(image).permute(2, 0, 1)[None].float())[0].permute(1, 2, 0)
    np.testing.assert_allclose(plain, own.clamp(0, 1).numpy(), atol=1e-5)
    rounds = nlsn_plugin.upscale(image, weights=attending, n_hashes=3)
    assert not np.allclose(plain, rounds, atol=1e-5)
    np.testing.assert_array_equal(plain, nlsn_plugin.upscale(image, weights=attending))  # rounds were not left behind
    half = nlsn_plugin.upscale(image, weights=attending, dtype='bfloat16')
    assert 0 < np.abs(half - plain).max() < 0.1
    ensemble = nlsn_plugin.upscale(image, weights=attending, self_ensemble=True)
    turned = nlsn_plugin.upscale(image[::-1], weights=attending, self_ensemble=True)[::-1]
    np.testing.assert_allclose(ensemble, turned, atol=1e-5)
    with pytest.raises(UserError, match='did you mean chunk_size'):
        nlsn_plugin.upscale(image, weights=attending, chunk_sise=3)


def test_no_seam_is_seen_across_the_borders_of_tiles(attending: Path) -> None:
    image = np.float64(data.chelsea()[:160, 100:260]) / 255
    whole = nlsn_plugin.upscale(image, weights=attending, tile='none')
    tiled = nlsn_plugin.upscale(image, weights=attending, tile=64)
    assert not np.array_equal(whole, tiled)  # tiles see other pixels to attend to
    assert np.abs(whole - tiled).mean() < 0.01
    for axis in (0, 1):
        steps = np.abs(np.diff(tiled - whole, axis=axis)).mean(axis=(1 - axis, 2))
        ends = [2 * edge - 1 for begin in (0, 32, 64, 96) for edge in (begin, begin + 64) if 0 < edge < 160]
        assert steps[ends].max() < 2 * steps.mean() + 1e-6


def test_tiles_are_taken_where_memory_does_not_suffice_and_said(
    attending: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    upscaler = Upscaler(Settings(weights=attending))
    picture = Picture(data.chelsea()[:200, :300])
    assert upscaler.enlarge(picture, 'cat').tiles == 1
    needed = memory.needed(upscaler.net, 2, 96, 96, torch.float32)
    there = int((needed + memory.held(200, 300, 2, False)) / memory.USABLE)
    monkeypatch.setattr('nlsn_plugin.engine.upscaling.upscaler.available_memory', lambda device: there)
    with caplog.at_level(logging.WARNING, 'nlsn_plugin'):
        result = upscaler.enlarge(picture, 'cat')
    assert result.tile == 96
    assert result.tiles == 3 * 5
    assert result.predicted <= there
    assert 'cat: the whole would take about 0.1 GB of memory: done with tiles of 96x96 pixels' in caplog.text
    wide = Upscaler(Settings(weights=attending, overlap=60)).enlarge(picture, 'cat')
    assert wide.notes[-1] == 'tiles share 48 pixels, not 60: at most half a tile'
    monkeypatch.setattr('nlsn_plugin.engine.upscaling.upscaler.available_memory', lambda device: 1000)
    with pytest.raises(UserError, match=r'cat of 300x200 pixels and its x2 take 0\.0 GB'):
        upscaler.enlarge(picture, 'cat')


MEMORY = """
import resource, sys
import numpy as np, torch
from pathlib import Path
from nlsn_plugin.data.pictures import Picture
from nlsn_plugin.engine.upscaling import memory
from nlsn_plugin.engine.measuring.memory import process_memory
from nlsn_plugin.engine.upscaling.upscaler import Settings, Upscaler
from nlsn_plugin.errors import UserError
torch.set_num_threads(1)
upscaler = Upscaler(Settings(weights=sys.argv[1]))
whole = Upscaler(Settings(weights=sys.argv[1], tile='none'))
small, large = (Picture(np.zeros((edge, edge, 3), np.uint8)) for edge in (70, 500))
upscaler.enlarge(small, 'small')
Path('/proc/self/clear_refs').write_text('5')  # forget the peak so far
before = process_memory('VmRSS')
result = upscaler.enlarge(large, 'large')
print(process_memory('VmHWM') - before, result.predicted, result.tile, sep='|')
limit = process_memory('VmSize') + 70_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
result = upscaler.enlarge(large, 'large')
print(result.tile, result.picture.colour.shape, *result.notes, sep='|')
try:
    whole.enlarge(large, 'large')
except UserError as error:
    print(error)
"""


@pytest.fixture(scope='module')
def of_memory(attending: Path) -> list[str]:
    """What a process says that measures its memory and then is left with little, a line each."""
    if not Path('/proc/self/clear_refs').exists():
        pytest.skip('peaks are read from /proc')
    words = [sys.executable, '-c', MEMORY, str(attending)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, env={**os.environ, **RETURN_ALL})
    assert done.returncode == 0, done.stderr
    return [*done.stdout.splitlines(), done.stderr]


def test_the_model_of_memory_is_on_the_safe_side(of_memory: list[str]) -> None:
    measured, predicted, tile = of_memory[0].split('|')
    assert tile == 'None'
    assert int(measured) < int(predicted) < 3 * int(measured)


def test_memory_that_runs_out_is_found_in_smaller_tiles(of_memory: list[str]) -> None:
    tile, shape, *notes = of_memory[1].split('|')
    assert int(tile) < 500
    assert shape == '(1000, 1000, 3)'
    assert notes[0] == 'memory ran out with the whole picture: tried again with tiles of 250x250 pixels'
    assert f'large: {notes[0]}' in of_memory[-1]
    assert of_memory[2].startswith('large of 500x500 pixels: too little memory for the whole picture; try --tile')


@pytest.mark.parametrize('version', [1, 2])
def test_limits_of_containers_count(tmp_path: Path, version: int) -> None:
    own = tmp_path / 'own'
    own.write_text('5:cpu:/a\n4:memory:/a/b\n' if version == 1 else '0::/a/b\n')
    root = tmp_path / 'cgroup'
    group = root / ('memory/a' if version == 1 else 'a')
    (group / 'b').mkdir(parents=True)
    limit, usage = available_memory.V1_FILES if version == 1 else ('memory.max', 'memory.current')
    cached = 'total_inactive_file' if version == 1 else 'inactive_file'
    for folder, most in ((group, '1000'), (group / 'b', 'max' if version == 2 else str(2**63))):
        (folder / limit).write_text(f'{most}\n')
        (folder / usage).write_text('700\n')
        (folder / 'memory.stat').write_text(f'cache 1\n{cached} 100\n')
    assert min(available_memory.limits_of_groups(root, own)) == 400
    assert list(available_memory.limits_of_groups(tmp_path / 'absent', own)) == []


def test_basicsr_is_not_needed(repeating: dict[int, Path], tmp_path: Path) -> None:
    for absent in ('basicsr', 'mmengine'):
        (tmp_path / f'{absent}.py').write_text(f'raise ModuleNotFoundError("no {absent}")\n')
    code = f"""
import sys, numpy, nlsn_plugin
assert nlsn_plugin.upscale(numpy.zeros((4, 4), 'uint8'), weights={str(repeating[2])!r}).shape == (8, 8)
import nlsn_plugin.cli, nlsn_plugin.engine.upscaling.batch, nlsn_plugin.engine.upscaling.before_after
print(sorted(nlsn_plugin.toolbox_problems))
"""
    done = python(code, tmp_path)
    assert done.stdout.strip() == "['basicsr', 'mmengine']", done.stderr


def test_more_pixels_than_usual_are_planned_where_that_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / 'large.png'
    Image.new('1', (12_000, 9_000)).save(path)
    job = plan(Found(path), 'large.png', 2, Output('out', most_pixels=200_000_000))
    assert (job.header.width, job.header.height) == (12_000, 9_000)


@pytest.mark.parametrize(('dtype', 'measured'), [(torch.float32, 4.7), (torch.bfloat16, 6.5)])
def test_as_many_maps_are_foreseen_as_were_measured(dtype: torch.dtype, measured: float) -> None:
    foreseen = memory.needed(NLSN(num_feat=64, num_block=1), 2, 1000, 1000, dtype) - memory.AT_LEAST
    assert measured <= foreseen / (1e6 * 64 * dtype.itemsize) <= 1.1 * measured


def test_the_scale_of_others_is_what_they_make_of_an_image(tmp_path: Path) -> None:
    """SwinIR's `upscale` is 2 unless told otherwise, and it enlarges nothing without an upsampler."""
    arguments = {'img_size': 8, 'embed_dim': 8, 'depths': [1], 'num_heads': [2], 'window_size': 8}
    path = tmp_path / 'restoring.safetensors'
    save_network(SwinIR(**arguments), path, {'type': 'SwinIR', 'arguments': arguments})
    upscaler = Upscaler(Settings(weights=path, device='cpu'))
    assert upscaler.scale == 1
    assert upscaler.enlarge(Picture(np.zeros((11, 13, 3), np.uint8)), 'a').picture.colour.shape == (11, 13, 3)


def test_memory_is_foreseen_of_networks_without_convolutions() -> None:
    assert memory.needed(torch.nn.Identity(), 2, 10, 10, torch.float32) > memory.AT_LEAST


def test_an_ensemble_holds_a_result_more() -> None:
    assert memory.held(10, 10, 2, True) - memory.held(10, 10, 2, False) == 20 * 20 * 3 * 4


def test_tiles_that_share_what_was_asked_for_are_not_noted() -> None:
    picture = Picture(np.zeros((40, 40, 3), np.uint8))
    result = Upscaler(Settings(2, tile=20, overlap=4, device='cpu')).enlarge(picture, 'a')
    assert (result.tile, result.notes) == (20, [])


def test_a_folder_without_earlier_results_is_taken_without_a_word(
    photographs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(find_inputs([str(photographs)])) == 4
    assert not caplog.records
