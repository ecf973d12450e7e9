"""Faults in data, each named: on real LMDBs and folders."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import struct
import threading
import zlib
from pathlib import Path
from typing import Any

import cv2
import lmdb
import numpy as np
import pytest
from basicsr.data.paired_image_dataset import PairedImageDataset
from conftest import run, write_pairs
from torch.utils.data import DataLoader

from nlsn_plugin.data.mmengine_dataset import SuperResolutionDataset
from nlsn_plugin.data.paired import SafePairedImageDataset, build_dataset, is_cut_short, stored
from nlsn_plugin.engine.training.randomness import seeded
from nlsn_plugin.errors import DataError

HR, LR = 'DIV2K_train_HR_sub.lmdb', 'DIV2K_train_LR_bicubic_X2_sub.lmdb'
PAGE = os.sysconf('SC_PAGE_SIZE')
"""Bytes of a page of an LMDB that was made here."""


@pytest.fixture
def stores(workplace: Path, tmp_path: Path) -> Path:
    """A copy of the training LMDBs, to be damaged."""
    for name in (HR, LR):
        shutil.copytree(workplace / 'datasets' / 'DIV2K' / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def folders(workplace: Path, tmp_path: Path) -> Path:
    """A copy of the test images, to be damaged."""
    shutil.copytree(workplace / 'datasets' / 'benchmark' / 'Set5', tmp_path / 'Set5')
    return tmp_path / 'Set5'


def training(root: Path) -> dict[str, Any]:
    return {
        'name': 'a', 'type': 'PairedImageDataset', 'dataroot_gt': str(root / HR), 'dataroot_lq': str(root / LR),
        'io_backend': {'type': 'lmdb'}, 'gt_size': 32, 'use_hflip': True, 'use_rot': True, 'scale': 2, 'phase': 'train',
    }  # fmt: skip


def measuring(root: Path) -> dict[str, Any]:
    return {
        'name': 'a', 'type': 'PairedImageDataset', 'dataroot_gt': str(root / 'HR'),
        'dataroot_lq': str(root / 'LR_bicubic' / 'X2'), 'filename_tmpl': '{}x2', 'io_backend': {'type': 'disk'},
        'scale': 2, 'phase': 'val',
    }  # fmt: skip


def change(store: Path, key: bytes, value: bytes | None) -> None:
    with lmdb.open(str(store)) as environment, environment.begin(write=True) as transaction:
        if value is None:
            transaction.delete(key)
        else:
            transaction.put(key, value)


def first_key(store: Path) -> str:
    return (store / 'meta_info.txt').read_text().split('.png')[0]


@pytest.mark.parametrize('options', [training, measuring])
@pytest.mark.parametrize(
    'more',
    [
        {},
        {'color': 'y'},
        {'mean': [0.4, 0.5, 0.6], 'std': [0.5, 0.4, 0.3]},
        {'use_rot': False},
        {'use_hflip': False},
    ],
    ids=str,
)
def test_samples_are_those_of_basicsr(options: Any, more: dict[str, Any], stores: Path, folders: Path) -> None:
    root = stores if options is training else folders
    samples = []
    for build in (PairedImageDataset, build_dataset):
        dataset = build({**options(root), **more})
        samples.append([])
        for index in range(len(dataset)):
            with seeded(index):
                samples[-1].append(dataset[index])
        dataset.file_client = None  # an LMDB is opened but once in a process
    assert isinstance(dataset, SafePairedImageDataset)
    assert len(samples[0]) == len(samples[1]) > 0
    for expected, sample in zip(*samples):
        assert sample.keys() == expected.keys()
        assert all(sample[key].equal(expected[key]) for key in ('lq', 'gt'))
        assert all(sample[key] == expected[key] for key in ('lq_path', 'gt_path'))


def test_a_missing_key_is_named(stores: Path) -> None:
    key = first_key(stores / LR)
    change(stores / LR, key.encode(), None)
    with pytest.raises(DataError, match=rf'{LR} has no key {key}, which its meta_info.txt lists'):
        build_dataset(training(stores))[0]


def test_a_key_in_a_damaged_page_is_named(stores: Path) -> None:
    key = first_key(stores / HR)
    content = bytearray((stores / HR / 'data.mdb').read_bytes())
    for place in range(2 * PAGE, len(content), PAGE):
        if content[place + 10] & 2 and key.encode() in content[place : place + PAGE]:  # a leaf, where keys are
            content[place : place + PAGE] = bytes(PAGE)
    (stores / HR / 'data.mdb').write_bytes(content)
    with pytest.raises(DataError, match=rf'{HR}, key {key}, cannot be read: '):
        build_dataset(training(stores))[0]


@pytest.mark.parametrize('value', [b'', b'no image at all'])
def test_a_value_that_is_no_image_is_named(stores: Path, value: bytes) -> None:
    key = first_key(stores / HR)
    change(stores / HR, key.encode(), value)
    with pytest.raises(DataError, match=rf'{HR}, key {key}, is not an image, or a damaged one \({len(value)} bytes\)'):
        build_dataset(training(stores))[0]


def test_a_value_that_says_it_has_billions_of_pixels_is_named(stores: Path) -> None:
    key = first_key(stores / HR)
    whole = cv2.imencode('.png', np.zeros((96, 96, 3), np.uint8))[1].tobytes()
    chunk = b'IHDR' + struct.pack('>II', 65_000, 65_000) + whole[24:29]
    change(stores / HR, key.encode(), whole[:12] + chunk + struct.pack('>I', zlib.crc32(chunk)) + whole[33:])
    with pytest.raises(DataError, match=rf'{HR}, key {key}, is truncated or damaged: '):
        build_dataset(training(stores))[0]


def test_a_missing_store_is_named(stores: Path) -> None:
    shutil.rmtree(stores / LR)
    with pytest.raises(DataError, match=rf'there is no .*{LR} \(dataroot_lq\)'):
        build_dataset(training(stores))


def test_a_store_without_its_list_is_named(stores: Path) -> None:
    (stores / LR / 'meta_info.txt').unlink()
    with pytest.raises(DataError, match=r'is no LMDB of images: there is no .*meta_info.txt'):
        build_dataset(training(stores))


@pytest.mark.parametrize('left', [0.0, 0.3, 0.9])
def test_a_truncated_store_is_an_error_and_not_a_bus_error(stores: Path, left: float) -> None:
    data = stores / HR / 'data.mdb'
    content = data.read_bytes()
    with lmdb.open(str(stores / HR), readonly=True, lock=False) as environment:
        used = (environment.info()['last_pgno'] + 1) * environment.stat()['psize']
    data.write_bytes(content[: int(left * used)])
    code = f"""
import sys, nlsn_plugin
from nlsn_plugin.data.paired import build_dataset
from nlsn_plugin.errors import DataError
try:
    dataset = build_dataset({training(stores)!r})
    [dataset[index] for index in range(len(dataset))]
except DataError as error:
    sys.exit(str(error))
"""
    result = run('-c', code, cwd=stores, check=False)  # a bus error would end these tests as well
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith(str(data))
    assert 'was cut short' in result.stderr or 'is damaged' in result.stderr


def test_pairs_that_do_not_fit_are_named(folders: Path) -> None:
    path = folders / 'LR_bicubic' / 'X2' / 'coffeex2.png'
    cv2.imwrite(str(path), np.zeros((99, 99, 3), np.uint8))
    dataset = build_dataset(measuring(folders))
    index = next(i for i, pair in enumerate(dataset.paths) if 'coffee' in pair['gt_path'])
    with pytest.raises(DataError, match=r'coffee\.png is 97x121, and .*coffeex2\.png 99x99: the former should be'):
        dataset[index]


@pytest.mark.parametrize(
    ('size', 'fits'), [((49, 60), True), ((59, 75), True), ((72, 60), False), ((48, 92), False), ((47, 60), False)]
)
def test_images_to_validate_on_may_exceed_theirs_by_what_the_scale_leaves_alone(
    size: tuple[int, int], fits: bool, folders: Path
) -> None:
    cv2.imwrite(str(folders / 'HR' / 'coffee.png'), np.zeros((*size, 3), np.uint8))
    cv2.imwrite(str(folders / 'LR_bicubic' / 'X2' / 'coffeex2.png'), np.zeros((24, 30, 3), np.uint8))
    dataset = build_dataset(measuring(folders))
    index = next(i for i, pair in enumerate(dataset.paths) if 'coffee' in pair['gt_path'])
    if fits:
        assert dataset[index]['gt'].shape == (3, 48, 60)
    else:
        with pytest.raises(DataError, match=r'coffeex2\.png 30x24: the former should be 2 times as large'):
            dataset[index]


def test_a_jpeg_that_was_cut_short_is_no_image(folders: Path) -> None:
    """OpenCV before 5 makes gray rows of what is not there."""
    (folders / 'HR' / 'coffee.png').unlink()
    low = folders / 'LR_bicubic' / 'X2' / 'coffeex2.png'
    low.rename(low.with_suffix('.jpg'))
    path = folders / 'HR' / 'coffee.jpg'
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (48, 60, 3), np.uint8))
    whole = path.read_bytes()
    assert not is_cut_short(whole)
    assert not is_cut_short(whole + b'behind its end')
    path.write_bytes(whole[: len(whole) * 4 // 5])
    assert is_cut_short(path.read_bytes())
    dataset = build_dataset(measuring(folders))
    index = next(i for i, pair in enumerate(dataset.paths) if 'coffee' in pair['gt_path'])
    with pytest.raises(DataError, match=r'coffee\.jpg is not an image, or a damaged one'):
        dataset[index]


def test_what_a_data_set_of_another_class_lacks_is_named(folders: Path) -> None:
    with pytest.raises(DataError, match=r'^data set a: SingleImageDataset needs the key io_backend$'):
        build_dataset({'name': 'a', 'type': 'SingleImageDataset', 'dataroot_lq': str(folders / 'HR')})


def test_a_file_in_the_place_of_a_folder_is_named(folders: Path) -> None:
    options = {**measuring(folders), 'dataroot_gt': str(folders / 'HR' / 'coffee.png')}
    with pytest.raises(DataError, match=r'coffee\.png and .*X2 do not hold pairs: .*Not a directory'):
        build_dataset(options)


def test_an_lmdb_that_is_read_as_a_folder_is_named(stores: Path) -> None:
    options = {**training(stores), 'io_backend': {'type': 'disk'}}
    with pytest.raises(DataError, match=rf'{HR} is an LMDB \(dataroot_gt\), and folders of images'):
        build_dataset(options)


def test_names_that_a_template_would_pair_say_which(folders: Path) -> None:
    options = {**measuring(folders), 'filename_tmpl': '{}'}
    with pytest.raises(DataError, match=r"do not hold pairs: .* \(filename_tmpl: '\{\}x2' makes pairs of them\)"):
        build_dataset(options)


def test_an_empty_file_is_named(folders: Path) -> None:
    path = folders / 'HR' / 'coffee.png'
    path.write_bytes(b'')
    dataset = build_dataset(measuring(folders))
    index = next(i for i, pair in enumerate(dataset.paths) if 'coffee' in pair['gt_path'])
    with pytest.raises(DataError, match=r'coffee\.png is not an image, or a damaged one \(0 bytes\)'):
        dataset[index]


def test_lmdbs_may_be_named_as_folders_are(stores: Path) -> None:
    options = training(stores)
    for key in ('dataroot_gt', 'dataroot_lq'):
        options[key] += '/'
    assert len(build_dataset(options)) == len(build_dataset(training(stores)))
    dataset = SuperResolutionDataset(options['dataroot_gt'], options['dataroot_lq'], scale=2, gt_size=32)
    assert dataset[0]['inputs'].shape == (3, 16, 16)


def test_folders_that_hold_no_pairs_are_named(folders: Path) -> None:
    (folders / 'LR_bicubic' / 'X2' / 'coffeex2.png').unlink()
    with pytest.raises(DataError, match='do not hold pairs'):
        build_dataset(measuring(folders))


def test_an_lmdb_that_was_made_anew_is_read_anew(stores: Path) -> None:
    key = first_key(stores / HR)
    for gray in (10, 200):
        image = cv2.imencode('.png', np.full((32, 32, 3), gray, np.uint8))[1].tobytes()
        copy = stores / 'new'
        shutil.copytree(stores / HR, copy)
        change(copy, key.encode(), image)
        shutil.rmtree(stores / HR)
        copy.rename(stores / HR)
        dataset = build_dataset({**training(stores), 'phase': 'val', 'gt_size': 32})
        assert dataset.read(str(stores / HR), key)[0, 0, 0] * 255 == pytest.approx(gray)


def test_a_patch_larger_than_an_image_is_named(stores: Path, tmp_path: Path) -> None:
    """Of an LMDB, which lists the sizes of its images, before any is read."""
    said = r'is \d+x\d+: at least gt_size, 200x200, is expected$'
    with pytest.raises(DataError, match=rf'{HR}, key \S+, {said}'):
        build_dataset({**training(stores), 'gt_size': 200})
    write_pairs(tmp_path, 1)
    of_folders = {'dataroot_gt': str(tmp_path / 'HR'), 'dataroot_lq': str(tmp_path / 'LR')}
    dataset = build_dataset({**training(stores), **of_folders, 'gt_size': 200, 'io_backend': {'type': 'disk'}})
    with pytest.raises(DataError, match=rf'0\.png {said}'):
        dataset[0]


def test_what_was_read_from_is_read_from_in_forked_processes_too(stores: Path) -> None:
    dataset = build_dataset({**training(stores), 'phase': 'val'})
    for _ in range(2):  # and afterwards here again
        expected = dataset[0]
        loader = DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context='fork')
        samples = list(loader)
        assert len(samples) == len(dataset)
        assert samples[0]['gt'].equal(expected['gt'])
        assert samples[0]['lq'].equal(expected['lq'])


def test_threads_read_on_while_processes_are_forked(stores: Path) -> None:
    key, enough, failed = first_key(stores / HR), threading.Event(), []
    expected = stored(str(stores / HR), key)

    def read() -> None:
        while not enough.is_set():
            try:
                assert stored(str(stores / HR), key) == expected
            except Exception as error:  # noqa: BLE001 - of whatever kind
                failed.append(error)
                return

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            process = multiprocessing.get_context('fork').Process(target=stored, args=(str(stores / HR), key))
            process.start()
            process.join(60)
            assert process.exitcode == 0
    finally:
        enough.set()
        for thread in threads:
            thread.join()
    assert failed == []
