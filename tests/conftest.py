"""Fixtures and helpers of all tests: golden vectors of the released code, small photographs, the real command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import cv2
import interpreted
import numpy as np
import pytest
import torch
import yaml
from hypothesis import settings
from warm import OTHERS, run_warm

if not torch.cuda.is_available():
    os.environ['TRITON_INTERPRET'] = '1'  # read when Triton is imported: its kernels then run on the CPU, slowly
    interpreted.quicken()
from nlsn_plugin import NLSN, custom_imports  # makes basicsr importable
from nlsn_plugin.engine.options.misfits import has_compiler

workers = int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', 1))
if workers > 1:  # each worker, with the processes that it starts, has its share of the cores
    threads = max(1, (os.cpu_count() or 1) // workers)
    os.environ.setdefault('OMP_NUM_THREADS', str(threads))
    torch.set_num_threads(threads)

settings.register_profile('any machine', deadline=None)  # a slow run on a busy core is not a failure
settings.load_profile('any machine')

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
torch.backends.cudnn.allow_tf32 = False  # convolutions in TF32 exceed the tolerances for float32

ROOT = Path(__file__).parent.parent
TRAIN = ROOT / 'tools' / 'train.py'
GOLDEN = Path(__file__).parent / 'golden'
OPTION_FILES = sorted((ROOT / 'options').glob('*.yml'))
GOLDEN_LAYERS = sorted(path.stem for path in GOLDEN.glob('nlsa_*.npz'))
GOLDEN_NETWORKS = sorted(path.stem for path in GOLDEN.glob('nlsn_*.npz'))
needs_compiler = pytest.mark.skipif(not has_compiler(), reason='torch.compile needs a compiler of C++')
NO_WORKERS = ['train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False']
"""Options for mmengine that load data without workers. A process that goes on after training has to wait for them to
end, which takes seconds each."""


def golden(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Load the configuration and the arrays of one golden file."""
    with np.load(GOLDEN / f'{name}.npz') as archive:
        arrays = {key: archive[key] for key in archive.files}
    return json.loads(str(arrays.pop('config'))), arrays


def official(name: str) -> dict[str, torch.Tensor]:
    """Load the state dict of a golden network, as the released code saved it."""
    return torch.load(GOLDEN / f'{name}_official_state_dict.pt', weights_only=True)


def like_the_released(config: dict[str, Any], **arguments: Any) -> NLSN:
    """Build the network of a golden file's configuration, with fresh weights and in eval mode."""
    return NLSN(
        num_feat=config['n_feats'],
        num_block=config['n_resblocks'],
        upscale=config['scale'],
        n_hashes=config['n_hashes'],
        chunk_size=config['chunk_size'],
        res_scale=config['res_scale'],
        img_range=config['rgb_range'],
        **arguments,
    ).eval()


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest absolute difference, relative to the largest absolute entry of `theirs`."""
    return float(np.abs(np.asarray(ours, np.float64) - theirs).max() / np.abs(theirs).max())


def run(*words: object, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run this interpreter with `words` as its command line; if `check`, fail unless its exit status is 0."""
    result = run_warm(words, cwd, timeout=600)
    assert not check or result.returncode == 0, result.stdout + result.stderr
    return result


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


def error_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that fails with status 1, and return the one line that it prints to stderr."""
    from nlsn_plugin.cli import main

    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


def python(code: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `code` in a process that has imported neither this package nor a toolbox.

    If `folder` is given, packages in it are found before others of the same name.
    """
    if folder:
        code = f'import sys; sys.path.insert(1, {str(folder)!r}); {code}'
    return run_warm(['-c', code], timeout=120, imported=OTHERS)


def limited(largest: int) -> str:
    """Code for `python -c` that runs the script named by its first argument, with files limited to `largest` bytes."""
    return f"""
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({largest}, {largest}))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def write_pairs(folder: Path, count: int) -> None:
    """Write `count` images of noise as HR/0.png, ..., others of half the size as LR/0.png, ..., and order.txt.

    order.txt lists the names in the order of their numbers.
    """
    for name, size in (('HR', 64), ('LR', 32)):
        (folder / name).mkdir()
        for number in range(count):
            noise = np.random.default_rng(number).integers(0, 256, (size, size, 3), np.uint8)
            cv2.imwrite(str(folder / name / f'{number}.png'), noise)
    (folder / 'order.txt').write_text(''.join(f'{number}.png\n' for number in range(count)))


def of_pairs(phase: str) -> list[str]:
    """Words for --force_yml that set the data set of a phase to the images of `write_pairs`.

    Training goes through each image once in an epoch.
    """
    keys = [
        'meta_info_file=order.txt',
        "filename_tmpl='{}'",
        'io_backend:type=disk',
        'dataroot_gt=HR',
        'dataroot_lq=LR',
    ]
    words = [f'datasets:{phase}:{key}' for key in keys]
    return [*words, 'datasets:train:num_worker_per_gpu=0', 'datasets:train:dataset_enlarge_ratio=1']


ASKING = """
import os
import signal
from basicsr.utils.registry import METRIC_REGISTRY

@METRIC_REGISTRY.register()
def asks(img):
    print('measured', flush=True)
    if os.environ.get('RANK') in (None, '1'):
        os.kill(os.getpid(), signal.SIGTERM)
    return img.mean()
"""
"""Code of a module with a metric that sends SIGTERM to its own process; of several processes only that of rank 1."""


@pytest.fixture
def as_before() -> Iterator[None]:
    """Undo what a test registers as architectures, data sets and models, and imports by `custom_imports`."""
    from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, MODEL_REGISTRY

    registries = (ARCH_REGISTRY, DATASET_REGISTRY, MODEL_REGISTRY)
    held = [dict(registry._obj_map) for registry in registries]
    path, imported = list(sys.path), list(custom_imports.imported)
    yield
    for registry, classes in zip(registries, held):
        registry._obj_map = classes
    for name in set(custom_imports.imported) - set(imported):
        del sys.modules[name]
    sys.path[:], custom_imports.imported[:] = path, imported


@pytest.fixture
def large_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the fused kernels take large tiles in Triton's interpreter, where a large one costs as much as a small."""
    fused = pytest.importorskip('nlsn_plugin.ops.fused', reason='needs Triton')
    if DEVICE == 'cpu':
        tiles = fused.Tiles(128, 128, block_c=512)
        monkeypatch.setattr(fused, 'default_tiles', lambda match, value: (tiles, tiles, tiles))


@pytest.fixture(scope='session')
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four photographs of odd sizes, one of them gray."""
    folder = tmp_path_factory.mktemp('photographs')
    shipped = files('skimage') / 'data'
    for name, top, left, height, width in [
        ('astronaut', 0, 150, 101, 150),
        ('chelsea', 100, 100, 96, 98),
        ('coffee', 100, 200, 121, 97),
    ]:
        image = cv2.imread(str(shipped / f'{name}.png'))[top : top + height, left : left + width]
        cv2.imwrite(str(folder / f'{name}.png'), image)
    gray = cv2.imread(str(shipped / 'camera.png'), cv2.IMREAD_GRAYSCALE)[100:197, 200:303]
    cv2.imwrite(str(folder / 'camera.png'), gray)
    return folder


@pytest.fixture(scope='session')
def workplace(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Path:
    """A folder with prepared training and test data under datasets/, made by the real command line."""
    folder = tmp_path_factory.mktemp('workplace')
    prepare = ROOT / 'tools' / 'prepare_data.py'
    sizes = ['--crop-size', 96, '--step', 48]
    run(prepare, '--input', photographs, '--output', 'datasets/DIV2K', '--scale', 2, *sizes, cwd=folder)
    run(prepare, '--input', photographs, '--output', 'datasets/benchmark/Set5', '--scale', 2, '--test', cwd=folder)
    return folder


@pytest.fixture
def place(workplace: Path, tmp_path: Path) -> Path:
    """A fresh working directory with a link to the prepared data."""
    folder = tmp_path / 'place'
    folder.mkdir()
    (folder / 'datasets').symlink_to(workplace / 'datasets')
    return folder


def write_options(path: Path, name: str, change: Callable[[dict[str, Any]], object] = lambda options: None) -> Path:
    """Write a copy of a shipped option file with a small network and a short run, after `change` has modified it."""
    options = yaml.safe_load((ROOT / 'options' / f'{name}.yml').read_text())
    options['network_g'].update(num_feat=8, num_block=8, n_hashes=2, chunk_size=64)
    for phase, dataset in options['datasets'].items():
        if phase == 'train':
            dataset.update(gt_size=32, batch_size_per_gpu=2, num_worker_per_gpu=1)
    if 'train' in options:
        options['train']['total_iter'] = 20
        options['val']['val_freq'] = 10
        options['logger'].update(print_freq=5, save_checkpoint_freq=10)
    change(options)
    path.write_text(yaml.safe_dump(options))
    return path


@pytest.fixture
def small_options(tmp_path: Path) -> Callable[..., Path]:
    """A function (name, *change) that calls `write_options` with a path in the test's own folder."""
    return lambda name, *change: write_options(tmp_path / f'{name}.yml', name, *change)


def make_short(options: dict[str, Any]) -> None:
    """Change options to a run of 12 updates that saves every 4 and validates every 6."""
    options['train'].update(total_iter=12, ema_decay=0.9)
    options['datasets']['train']['num_worker_per_gpu'] = 2
    options['val']['val_freq'] = 6
    options['logger'].update(print_freq=1, save_checkpoint_freq=4, use_tb_logger=False)


@pytest.fixture
def short(small_options: Callable[..., Path]) -> Path:
    return small_options('train_NLSN_x2', make_short)


@pytest.fixture(scope='session')
def finished(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory in which NLSN_x2 was trained for 12 updates; tests use copies of it."""
    folder = tmp_path_factory.mktemp('finished')
    (folder / 'datasets').symlink_to(workplace / 'datasets')
    run(TRAIN, '-opt', write_options(folder / 'short.yml', 'train_NLSN_x2', make_short), cwd=folder)
    return folder


@pytest.fixture
def ran(finished: Path, place: Path) -> Path:
    """A fresh working directory with a copy of the run of `finished`."""
    shutil.copytree(finished / 'experiments', place / 'experiments')
    return place


def experiment(place: Path, name: str = 'NLSN_x2') -> Path:
    return place / 'experiments' / name


def save_repeating(folder: Path, scale: int) -> Path:
    """Save weights of an NLSN that repeats each pixel, so that anything else done to a picture shows exactly."""
    from nlsn_plugin import NLSN
    from nlsn_plugin.models.formats import save_network

    arguments = {'num_feat': 3, 'num_block': 1, 'upscale': scale, 'rgb_mean': [0.0, 0.0, 0.0], 'attention_at': []}
    net = NLSN(**arguments)
    with torch.no_grad():
        for weight in net.parameters():
            weight.zero_()
        for convolution in (net.head[0], net.tail[1]):
            convolution.weight[range(3), range(3), 1, 1] = 1
        for convolution in list(net.tail[0])[::2]:
            copies = convolution.out_channels // 3
            convolution.weight[range(3 * copies), [channel // copies for channel in range(3 * copies)], 1, 1] = 1
    path = folder / f'repeating_x{scale}.safetensors'
    save_network(net, path, {'type': 'NLSN', 'arguments': arguments})
    return path


@pytest.fixture(scope='session')
def repeating(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Weights of networks that repeat each pixel, by their scale."""
    folder = tmp_path_factory.mktemp('repeating')
    return {scale: save_repeating(folder, scale) for scale in (2, 3, 4)}


Upscale = Callable[..., int]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a folder of pictures, a broken one among them."""
    from PIL import Image
    from skimage import data

    monkeypatch.chdir(tmp_path)
    (tmp_path / 'in').mkdir()
    cat = Image.fromarray(data.chelsea()[100:120, 100:130])
    cat.save('in/a.png')
    cat.convert('L').save('in/b.bmp')
    cat.save('in/c.jpg')
    Path('in/d.png').write_bytes(Path('in/a.png').read_bytes()[:900])
    Path('in/notes.txt').write_text('no picture, and not looked at')
    return tmp_path


@pytest.fixture
def upscale(repeating: dict[int, Path], capsys: pytest.CaptureFixture[str]) -> Upscale:
    """A function that runs `nlsn upscale` with weights that repeat pixels, and returns its exit status."""

    from nlsn_plugin.cli import main

    def run(*words: str, scale: int = 2) -> int:
        capsys.readouterr()
        try:
            main(['upscale', *words, '--weights', str(repeating[scale])])
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return run
