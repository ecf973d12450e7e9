from __future__ import annotations

import math
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path
from types import SimpleNamespace

import cv2
import lmdb
import numpy as np
import pytest
from conftest import ROOT, error_of, limited, run
from PIL import Image
from warm import start

from nlsn_plugin.cli import main
from nlsn_plugin.data.images import crop_to_multiple, enlarge, passed_over, reduce
from nlsn_plugin.data.prepare import prepare_test_data, prepare_training_data, starts
from nlsn_plugin.errors import ArgumentError, UserError


def read_lmdb(path: Path) -> dict[str, np.ndarray]:
    with lmdb.open(str(path), readonly=True, lock=False) as environment, environment.begin() as transaction:
        return {
            key.decode(): cv2.imdecode(np.frombuffer(value, np.uint8), cv2.IMREAD_UNCHANGED)
            for key, value in transaction.cursor()
        }


def stamps(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob('*')}


@pytest.mark.parametrize('scales', [[2], [3], [2, 3, 4]])
def test_sub_images_are_pairs_cut_from_the_photograph_and_its_bicubic_reduction(
    photographs: Path, tmp_path: Path, scales: list[int]
) -> None:
    lmdbs = prepare_training_data(photographs, tmp_path, 'train', scales, crop_size=48, step=24)
    assert [path.name for path in lmdbs] == [
        'train_HR_sub.lmdb',
        *(f'train_LR_bicubic_X{scale}_sub.lmdb' for scale in scales),
    ]
    hr, *lrs = map(read_lmdb, lmdbs)
    unit = math.lcm(*scales)
    photograph = crop_to_multiple(cv2.imread(str(photographs / 'coffee.png')), unit)
    first, last = 'coffee_s001', max(key for key in hr if key.startswith('coffee'))
    assert (hr[first] == photograph[:48, :48]).all()
    assert (hr[last] == photograph[-48:, -48:]).all()
    for scale, lr in zip(scales, lrs):
        assert lr.keys() == hr.keys()
        reduced = reduce(photograph, scale)
        assert (lr[first] == reduced[: 48 // scale, : 48 // scale]).all()
        assert (lr[last] == reduced[-48 // scale :, -48 // scale :]).all()
    meta = (lmdbs[0] / 'meta_info.txt').read_text().splitlines()
    assert meta[0] == f'{min(hr)}.png (48,48,3) 1'
    assert len(meta) == len(hr)


def test_basicsr_reads_what_was_prepared(photographs: Path, tmp_path: Path) -> None:
    from basicsr.data import build_dataset

    hr, lr = prepare_training_data(photographs, tmp_path, 'train', [2], crop_size=48, step=24)
    options = {
        'name': 'train',
        'type': 'PairedImageDataset',
        'dataroot_gt': str(hr),
        'dataroot_lq': str(lr),
        'io_backend': {'type': 'lmdb'},
        'gt_size': 32,
        'use_hflip': True,
        'use_rot': True,
        'scale': 2,
        'phase': 'train',
    }
    dataset = build_dataset(options)
    assert len(dataset) > 20
    assert dataset[3]['gt'].shape == (3, 32, 32)
    assert dataset[3]['lq'].shape == (3, 16, 16)


def test_test_data_lie_as_in_the_benchmark_archive_and_basicsr_reads_them(photographs: Path, tmp_path: Path) -> None:
    from basicsr.data import build_dataset

    hr, x2, x3 = prepare_test_data(photographs, tmp_path / 'Set', [2, 3])
    assert hr == tmp_path / 'Set' / 'HR'
    assert sorted(path.name for path in x3.glob('*.png')) == [
        'astronautx3.png',
        'camerax3.png',
        'chelseax3.png',
        'coffeex3.png',
    ]
    original = cv2.imread(str(photographs / 'astronaut.png'))
    assert (cv2.imread(str(hr / 'astronaut.png')) == original).all()
    assert (cv2.imread(str(x3 / 'astronautx3.png')) == reduce(crop_to_multiple(original, 3), 3)).all()
    assert cv2.imread(str(x2 / 'camerax2.png'), cv2.IMREAD_UNCHANGED).ndim == 2
    options = {
        'name': 'Set',
        'type': 'PairedImageDataset',
        'dataroot_gt': str(hr),
        'dataroot_lq': str(x3),
        'filename_tmpl': '{}x3',
        'io_backend': {'type': 'disk'},
        'scale': 3,
        'phase': 'test',
    }
    pairs = {Path(pair['gt_path']).stem: pair for pair in build_dataset(options)}
    assert pairs['astronaut']['gt'].shape == (3, 99, 150)
    assert pairs['astronaut']['lq'].shape == (3, 33, 50)


def test_bicubic_is_antialiased_with_symmetric_borders() -> None:
    ramp = np.tile(np.arange(0, 240, 10, dtype=np.uint8), (12, 1))
    assert (reduce(ramp, 2)[:, 2:-2] == ramp[::2, 4:-4].reshape(6, -1, 2).mean(axis=2)).all()
    constant = np.full((9, 12, 3), 77, np.uint8)
    assert (reduce(constant, 3) == 77).all()
    assert (enlarge(constant, 4) == 77).all()
    assert enlarge(constant, 4).shape == (36, 48, 3)
    step = np.repeat([[0, 0, 255, 255]], 4, axis=0).astype(np.uint8)
    weights = np.array([-3, -9, 29, 111, 111, 29, -9, -3]) / 256  # the cubic of a = -1/2 at half-pixel steps of 2
    padded = step[0, [2, 1, 0, 0, 1, 2, 3, 3, 2, 1]].astype(float)
    expected = [weights @ padded[:8], weights @ padded[2:]]
    assert (reduce(step, 2) == np.clip(np.round(expected), 0, 255)).all()


@pytest.mark.parametrize(
    ('length', 'crop_size', 'step', 'unit', 'expected'),
    [
        (100, 48, 24, 2, [0, 24, 48, 52]),
        (96, 48, 24, 2, [0, 24, 48]),
        (48, 48, 24, 2, [0]),
        (30, 48, 24, 2, [0]),
        (102, 48, 24, 12, [0, 24, 48]),
    ],
)
def test_sub_images_cover_the_image_to_its_edge(
    length: int, crop_size: int, step: int, unit: int, expected: list[int]
) -> None:
    assert starts(length, crop_size, step, unit) == expected


def test_crop_and_step_must_go_with_the_scales(photographs: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match='crop_size=100 is not a multiple of 12, as scale 2 and 3 and 4 needs: 96'):
        prepare_training_data(photographs, tmp_path, 'train', [2, 3, 4], crop_size=100, step=24)
    with pytest.raises(ArgumentError, match='step=7 is not a multiple of 2, as scale 2 needs: 8'):
        prepare_training_data(photographs, tmp_path, 'train', [2], crop_size=48, step=7)
    with pytest.raises(ArgumentError, match='step=60 is more than crop_size=48'):
        prepare_training_data(photographs, tmp_path, 'train', [2], crop_size=48, step=60)


@pytest.mark.parametrize('pattern', ['{}x3.png', '{}.png'])
def test_given_lr_images_are_taken_as_they_are(photographs: Path, tmp_path: Path, pattern: str) -> None:
    lr = tmp_path / 'lr_X3'
    lr.mkdir()
    for path in photographs.iterdir():
        height, width = cv2.imread(str(path)).shape[:2]
        image = np.random.default_rng(0).integers(0, 256, (height // 3, width // 3, 3), np.uint8)
        cv2.imwrite(str(lr / pattern.format(path.stem)), image)
    given = cv2.imread(str(lr / pattern.format('coffee')))
    _, made = prepare_test_data(photographs, tmp_path / 'test', [3], str(tmp_path / 'lr_X{scale}'))
    assert (cv2.imread(str(made / 'coffeex3.png')) == given).all()
    _, made = prepare_training_data(photographs, tmp_path, 'train', [3], 48, 24, lr=str(lr))
    assert (read_lmdb(made)['coffee_s002'] == given[:16, 8:24]).all()

    with pytest.raises(UserError, match=r'write \{scale\} where its name has the scale'):
        prepare_test_data(photographs, tmp_path / 'other', [2, 3], str(lr))
    (lr / pattern.format('camera')).unlink()
    cv2.imwrite(str(lr / pattern.format('chelsea')), np.zeros((31, 32, 3), np.uint8))
    with pytest.raises(UserError) as error:
        prepare_test_data(photographs, tmp_path / 'other', [3], str(lr))
    _, missing, misfit = str(error.value).splitlines()
    assert 'camera.png has no LR image camerax3 or camera in' in missing
    assert f'{pattern.format("chelsea")} is of 32x31 pixels: 32x32 are expected for' in misfit


def test_raw_pixels_are_larger_and_the_same(photographs: Path, tmp_path: Path) -> None:
    png, _ = prepare_training_data(photographs, tmp_path, 'png', [2], crop_size=47 * 2, step=60)
    raw, _ = prepare_training_data(photographs, tmp_path, 'raw', [2], crop_size=47 * 2, step=60, storage='raw')
    assert (raw / 'data.mdb').stat().st_size > 1.2 * (png / 'data.mdb').stat().st_size
    images = read_lmdb(png)
    assert all((image == images[key]).all() for key, image in read_lmdb(raw).items())


def test_one_command_makes_what_to_train_on_and_what_to_validate_on(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(photographs, 'Set5/HR')
    shutil.copytree(photographs, 'mine')
    words = ['--input', str(photographs), '--output', 'datasets/DIV2K', '--crop-size', '48', '--step', '48']
    main(['prepare', *words, '--validation', 'Set5/HR', 'mine'])
    made = sorted(str(path.parent.parent) for path in Path().rglob('datasets/**/X2/coffeex2.png'))
    assert made == ['datasets/benchmark/Set5/LR_bicubic', 'datasets/benchmark/mine/LR_bicubic']
    assert Path('datasets/DIV2K/DIV2K_train_HR_sub.lmdb/data.mdb').exists()
    capsys.readouterr()
    error = error_of(['prepare', '--input', 'mine', '--output', 'other/DIV2K', '--validation', 'Set6/HR'], capsys)
    assert 'there is no folder' in error
    Path('mine', 'broken.png').write_bytes(b'')
    with pytest.raises(SystemExit):
        main(['prepare', *words[:2], '--output', 'other/DIV2K', '--validation', 'mine'])
    assert 'broken.png does not read as an image' in capsys.readouterr().err.splitlines()[-1]
    error = error_of(['prepare', *words[:2], '--output', 'other/DIV2K', '--name', ''], capsys)
    assert error == 'nlsn: --name (empty): a name without folders is expected'
    shutil.copytree('Set5', 'other/benchmark/Set5')  # as the archive is unpacked
    with pytest.raises(SystemExit):
        main(['prepare', *words[:2], '--output', 'other/DIV2K', '--validation', 'Set5/HR'])
    error = capsys.readouterr().err.splitlines()[-1]
    assert 'nlsn: other/benchmark/Set5/HR exists already: remove it, or give another --output, or leave' in error
    assert sorted(map(str, Path('other').iterdir())) == ['other/benchmark']


def test_images_of_several_folders_come_together_and_names_become_keys(photographs: Path, tmp_path: Path) -> None:
    other = tmp_path / 'other'
    other.mkdir()
    shutil.copy(photographs / 'coffee.png', other / 'Kaffee, süß v1.2.png')
    hr, _ = prepare_training_data([photographs, other], tmp_path, 'train', [2], crop_size=48, step=24)
    assert {key.rsplit('_', 1)[0] for key in read_lmdb(hr)} == {
        'astronaut',
        'camera',
        'chelsea',
        'coffee',
        'Kaffee__s___v1_2',
    }
    shutil.copy(photographs / 'coffee.png', other)
    with pytest.raises(UserError, match=r'several images named coffee, .* and .*: names must differ'):
        prepare_training_data([photographs, other], tmp_path, 'more', [2], crop_size=48, step=24)


def test_what_is_passed_over_is_told_and_links_that_lead_nowhere_are_named(photographs: Path, tmp_path: Path) -> None:
    own = shutil.copytree(photographs, tmp_path / 'own')
    assert not passed_over(own)
    (own / 'more').mkdir()
    for name in ('a.gif', 'notes.txt', '.hidden'):
        (own / name).touch()
    words = [ROOT / 'tools' / 'prepare_data.py', '--input', own, '--output', 'out', '--test']
    said = run(*words, cwd=tmp_path).stdout
    assert f'{own}: passing over 1 folder and 2 files other than .png, .jpg, ' in said
    (own / 'broken.png').symlink_to('nowhere.png')
    with pytest.raises(UserError, match=r'broken\.png cannot be read: No such file'):
        prepare_test_data(own, tmp_path / 'Set', [2], workers=1)


def test_images_may_have_more_pixels_than_pillow_opens(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
    hr, _ = prepare_test_data(photographs, tmp_path / 'Set', [2], workers=1)
    assert len(list(hr.glob('*.png'))) == 4


def test_an_image_of_more_pixels_than_opencv_decodes_is_named(photographs: Path, tmp_path: Path) -> None:
    content = bytearray((photographs / 'coffee.png').read_bytes())
    content[16:24] = 2 * (40_000).to_bytes(4, 'big')
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, 'big')
    (tmp_path / 'huge.png').write_bytes(content)
    with pytest.raises(UserError, match=r'huge\.png is truncated or damaged: .*MAX_IMAGE_PIXELS'):
        prepare_test_data(tmp_path, tmp_path / 'Set', [2], workers=1)


class TestStopped:
    """`nlsn prepare` ended in the midst of its work goes on where it was, and makes what it makes undisturbed."""

    @pytest.fixture
    def many(self, photographs: Path, tmp_path: Path) -> Path:
        folder = tmp_path / 'many'
        folder.mkdir()
        for number in range(12):
            shutil.copy(photographs / 'astronaut.png', folder / f'{number:02d}.png')
        return folder

    def words(self, many: Path, *more: str) -> list[object]:
        return [ROOT / 'tools' / 'prepare_data.py', '--input', many, '--output', many.parent / 'out', *more]

    @pytest.mark.parametrize('more', [['--test'], ['--crop-size', '48', '--step', '12']])
    def test_killed_and_gone_on_with(self, many: Path, tmp_path: Path, more: list[str]) -> None:
        journal = tmp_path / 'out' / ('.preparing_HR' if more == ['--test'] else '.preparing_DIV2K_train_HR_sub.lmdb')
        quiet = subprocess.DEVNULL
        with start(self.words(many, *more, '--workers', '1'), stdout=quiet, stderr=quiet) as process:
            while not (journal / 'done.jsonl').exists() or (journal / 'done.jsonl').read_text().count('\n') < 2:
                assert process.poll() is None
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
        kept = (journal / 'done.jsonl').read_text()
        (journal / 'done.jsonl').write_text(kept + '["10.png", [[')  # the line that was being written

        done = run(*self.words(many, *more), cwd=tmp_path)
        assert f'{kept.count(chr(10))} of 12 images were made before, going on' in done.stdout
        assert not journal.exists()
        if more == ['--test']:
            undisturbed = prepare_test_data(many, tmp_path / 'undisturbed', [2])
            for folder in undisturbed:
                for path in folder.iterdir():
                    assert (
                        path.read_bytes()
                        == (tmp_path / 'out' / path.relative_to(tmp_path / 'undisturbed')).read_bytes()
                    )
        else:
            for path in prepare_training_data(many, tmp_path / 'undisturbed', crop_size=48, step=12):
                found = tmp_path / 'out' / path.name
                assert (found / 'meta_info.txt').read_text() == (path / 'meta_info.txt').read_text()
                expected = read_lmdb(path)
                assert read_lmdb(found).keys() == expected.keys()
                assert all((image == expected[key]).all() for key, image in read_lmdb(found).items())

    def test_other_settings_begin_anew(self, many: Path, tmp_path: Path) -> None:
        workshop = tmp_path / 'out' / '.preparing_train_HR_sub.lmdb'
        workshop.mkdir(parents=True)
        (workshop / 'plan.json').write_text('[]')
        (workshop / 'done.jsonl').write_text('["00.png", [[], []]]\n')
        hr, _ = prepare_training_data(many, tmp_path / 'out', 'train', [2], crop_size=48, step=48)
        assert '00_s001' in read_lmdb(hr)

    def test_two_at_once(self, many: Path, tmp_path: Path) -> None:
        workshop = tmp_path / 'out' / '.preparing_HR'
        workshop.mkdir(parents=True)
        hold = "import fcntl, sys; file = open('lock', 'w'); fcntl.lockf(file, fcntl.LOCK_EX); print(flush=True); "
        hold += 'sys.stdin.read()'
        pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE}
        with subprocess.Popen([sys.executable, '-c', hold], cwd=workshop, **pipes) as other:
            other.stdout.readline()
            with pytest.raises(UserError, match=r'another process is writing to .*preparing_HR'):
                prepare_test_data(many, tmp_path / 'out', [2])
            other.stdin.close()
        prepare_test_data(many, tmp_path / 'out', [2])

    def test_a_full_disk_is_named_and_what_was_made_is_kept(self, many: Path) -> None:
        words = self.words(many, '--crop-size', '48', '--step', '12')
        full = run('-c', limited(1_500_000), *words, cwd=many.parent, check=False)
        assert full.returncode == 1
        assert 'Traceback' not in full.stderr
        last = full.stderr.splitlines()[-1]
        assert 'cannot write to' in last
        assert 'what was made so far is kept' in last
        assert 'were made before, going on' in run(*words, cwd=many.parent).stdout


@pytest.mark.parametrize(
    'prepare', [prepare_test_data, lambda s, o, scales: prepare_training_data(s, o, 'x', scales, 48, 24)]
)
class TestWhatCannotBePrepared:
    def test_no_folder(self, tmp_path: Path, prepare) -> None:
        with pytest.raises(UserError, match=r'there is no folder .*nowhere'):
            prepare(tmp_path / 'nowhere', tmp_path / 'out', [2])

    def test_no_images(self, tmp_path: Path, prepare) -> None:
        (tmp_path / 'notes.txt').touch()
        with pytest.raises(UserError, match='holds no images'):
            prepare(tmp_path, tmp_path / 'out', [2])

    @pytest.mark.parametrize('content', [b'', b'not an image'])
    def test_a_bad_image_is_named_and_nothing_is_made(
        self, tmp_path: Path, photographs: Path, prepare, content
    ) -> None:
        source = tmp_path / 'source'
        source.mkdir()
        (source / 'a.png').write_bytes((photographs / 'coffee.png').read_bytes())
        (source / 'b.png').write_bytes(content)
        with pytest.raises(UserError, match=r'b\.png does not read as an image'):
            prepare(source, tmp_path / 'out', [2])
        assert not (tmp_path / 'out').exists()

    def test_all_faults_are_listed_at_once(self, tmp_path: Path, photographs: Path, prepare) -> None:
        photograph = (photographs / 'coffee.png').read_bytes()
        (tmp_path / 'a.png').write_bytes(photograph[: len(photograph) // 2])
        (tmp_path / 'b.png').write_bytes(photograph)
        (tmp_path / 'c.png').write_bytes(b'')
        cv2.imwrite(str(tmp_path / 'd.png'), np.zeros((60, 60, 4), np.uint8))
        jpeg = cv2.imencode('.jpg', cv2.imread(str(photographs / 'coffee.png')))[1].tobytes()
        (tmp_path / 'e.jpg').write_bytes(jpeg[:-300])
        with pytest.raises(UserError) as error:
            prepare(tmp_path, tmp_path / 'out', [2])
        first, *faults = str(error.value).splitlines()
        assert first == '4 faults, nothing was made:'
        for name, fault in zip('acde', faults):
            assert f'{tmp_path / name}.' in fault
        assert 'd.png has an alpha channel' in faults[2]

    def test_an_alpha_channel_and_16_bits_are_named(self, tmp_path: Path, prepare) -> None:
        path = tmp_path / 'a.png'
        cv2.imwrite(str(path), np.zeros((60, 60, 4), np.uint8))
        with pytest.raises(UserError, match=r'a\.png has an alpha channel'):
            prepare(tmp_path, tmp_path / 'out', [2])
        cv2.imwrite(str(path), np.zeros((60, 60, 3), np.uint16))
        with pytest.raises(UserError, match=r'a\.png has uint16 pixels: 8-bit'):
            prepare(tmp_path, tmp_path / 'out', [2])

    def test_a_tiny_image_is_named(self, tmp_path: Path, prepare) -> None:
        cv2.imwrite(str(tmp_path / 'a.png'), np.zeros((7, 50, 3), np.uint8))
        with pytest.raises(UserError, match=r'a\.png is of 50x7 pixels: at least 24'):
            prepare(tmp_path, tmp_path / 'out', [2])

    def test_a_place_that_cannot_be_written_to(self, tmp_path: Path, photographs: Path, prepare) -> None:
        (tmp_path / 'out').touch()
        with pytest.raises(UserError, match=r'cannot write to .*out'):
            prepare(photographs, tmp_path / 'out', [2])

    def test_a_scale_given_twice_is_made_once(self, tmp_path: Path, photographs: Path, prepare) -> None:
        assert len(prepare(photographs, tmp_path / 'out', [2, 2])) == 2

    def test_two_images_of_one_name(self, tmp_path: Path, prepare) -> None:
        for name in ('a.png', 'a.jpg'):
            cv2.imwrite(str(tmp_path / name), np.zeros((60, 60, 3), np.uint8))
        with pytest.raises(UserError, match='several images named a'):
            prepare(tmp_path, tmp_path / 'out', [2])

    def test_existing_data_are_not_touched(self, tmp_path: Path, photographs: Path, prepare, capsys) -> None:
        made = prepare(photographs, tmp_path / 'out', [2])
        before = stamps(tmp_path / 'out')
        assert prepare(photographs, tmp_path / 'out', [2]) == made
        assert capsys.readouterr().out.count('is there already, made from the same images') == 2
        assert stamps(tmp_path / 'out') == before

        other = shutil.copytree(photographs, tmp_path / 'other')
        (other / 'coffee.png').unlink()
        with pytest.raises(UserError, match='exists already, and was made with other images: remove it'):
            prepare(other, tmp_path / 'out', [2])
        for path in made:
            (path / '.prepared.json').unlink()
        with pytest.raises(UserError, match='exists already: remove it, or give another --output'):
            prepare(photographs, tmp_path / 'out', [2])

    def test_a_disk_without_room_is_refused_before_anything_is_written(
        self, tmp_path: Path, photographs: Path, prepare, monkeypatch
    ) -> None:
        monkeypatch.setattr(shutil, 'disk_usage', lambda path: SimpleNamespace(free=50_000))
        with pytest.raises(UserError, match=r'has 0\.00 GB free, and about 0\.00 GB are needed'):
            prepare(photographs, tmp_path / 'out', [2])
        assert not any(path.read_text() for path in (tmp_path / 'out').rglob('done.jsonl'))
