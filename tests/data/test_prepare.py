from __future__ import annotations

import math
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest

from nlsn_plugin.data.prepare import crop_to_multiple, enlarge, prepare_test_data, prepare_training_data, reduce, starts
from nlsn_plugin.errors import ArgumentError, UserError


def read_lmdb(path: Path) -> dict[str, np.ndarray]:
    with lmdb.open(str(path), readonly=True, lock=False) as environment, environment.begin() as transaction:
        return {
            key.decode(): cv2.imdecode(np.frombuffer(value, np.uint8), cv2.IMREAD_UNCHANGED)
            for key, value in transaction.cursor()
        }


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
    photograph = crop_to_multiple(cv2.imread(str(photographs / 'coffee.png')), unit, photographs)
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
    assert sorted(path.name for path in x3.iterdir()) == [
        'astronautx3.png',
        'camerax3.png',
        'chelseax3.png',
        'coffeex3.png',
    ]
    original = cv2.imread(str(photographs / 'astronaut.png'))
    assert (cv2.imread(str(hr / 'astronaut.png')) == original).all()
    assert (cv2.imread(str(x3 / 'astronautx3.png')) == reduce(crop_to_multiple(original, 3, hr), 3)).all()
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
    def test_a_bad_image_is_named_and_leaves_nothing_behind(
        self, tmp_path: Path, photographs: Path, prepare, content
    ) -> None:
        source = tmp_path / 'source'
        source.mkdir()
        (source / 'a.png').write_bytes((photographs / 'coffee.png').read_bytes())
        (source / 'b.png').write_bytes(content)
        with pytest.raises(UserError, match=r'b\.png does not read as an image'):
            prepare(source, tmp_path / 'out', [2])
        assert list((tmp_path / 'out').iterdir()) == []

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

    def test_existing_data_are_not_touched(self, tmp_path: Path, photographs: Path, prepare) -> None:
        prepare(photographs, tmp_path / 'out', [2])
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / 'out').rglob('*')}
        with pytest.raises(UserError, match='exists already: remove it, or give another --output or --name'):
            prepare(photographs, tmp_path / 'out', [2])
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / 'out').rglob('*')} == before
