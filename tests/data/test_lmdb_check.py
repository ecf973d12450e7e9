from __future__ import annotations

import shutil
from pathlib import Path

import lmdb
import numpy as np
import pytest
from conftest import error_of

from nlsn_plugin.cli import main
from nlsn_plugin.data.images import encode
from nlsn_plugin.data.prepare import prepare_training_data


@pytest.fixture
def folder(photographs: Path, tmp_path: Path) -> Path:
    prepare_training_data(photographs, tmp_path, 'train', [2, 3], crop_size=48, step=48)
    return tmp_path


def change(path: Path, **values: bytes | None) -> None:
    with lmdb.open(str(path), lock=False) as environment, environment.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.delete(key.encode()) if value is None else transaction.put(key.encode(), value)


def test_whole_lmdbs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(['prepare', '--check', str(folder)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split('/')[-1] for line in lines] == [
        f'train_{name}_sub.lmdb: 24 images, all whole' for name in ('HR', 'LR_bicubic_X2', 'LR_bicubic_X3')
    ]


def test_what_is_hidden_is_not_finished_and_not_checked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / '.preparing_other_HR_sub.lmdb').mkdir()
    main(['prepare', '--check', str(folder)])
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_every_fault_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hr, x2 = folder / 'train_HR_sub.lmdb', folder / 'train_LR_bicubic_X2_sub.lmdb'
    with lmdb.open(str(hr), readonly=True, lock=False) as environment, environment.begin() as transaction:
        whole = bytes(transaction.get(b'coffee_s001'))
    change(hr, camera_s001=None, camera_s002=b'garbage', coffee_s003=whole[:-900], chelsea_s002=b'', stray=whole)
    change(x2, astronaut_s002=whole)
    listed = (x2 / 'meta_info.txt').read_text()
    (x2 / 'meta_info.txt').write_text(listed.replace('chelsea_s001.png (24,24,3) 1\n', 'nonsense\n'))
    with pytest.raises(SystemExit) as stop:
        main(['prepare', '--check', str(folder)])
    assert stop.value.code == 1
    said = capsys.readouterr().err.replace(f'{folder}/', '')
    for line in (
        'train_HR_sub.lmdb: 24 images, 5 faults',
        'train_LR_bicubic_X2_sub.lmdb: 23 images, 3 faults',
        'train_LR_bicubic_X3_sub.lmdb: 24 images, all whole',
        'train_HR_sub.lmdb has no key camera_s001, which its meta_info.txt lists',
        'train_HR_sub.lmdb, key camera_s002, does not read as an image',
        'train_HR_sub.lmdb, key coffee_s003,',
        'train_HR_sub.lmdb, key chelsea_s002, does not read as an image',
        'train_HR_sub.lmdb has the key stray, which its meta_info.txt does not list',
        'X2_sub.lmdb, key astronaut_s002, is of 48x48, 3 channels: its meta_info.txt lists (24, 24, 3)',
        "meta_info.txt, line 15: 'nonsense' is not like `baboon.png (120,125,3) 1`",
        'chelsea_s001 is in train_HR_sub.lmdb and not in train_LR_bicubic_X2_sub.lmdb',
    ):
        assert line in said


def test_pairs_of_other_sizes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x2, x3 = folder / 'train_LR_bicubic_X2_sub.lmdb', folder / 'train_LR_bicubic_X3_sub.lmdb'
    shutil.rmtree(x2)
    x3.rename(x2)
    with pytest.raises(SystemExit):
        main(['prepare', '--check', str(folder)])
    assert 'X2_sub.lmdb, key coffee_s001, is of 16x16, and' in capsys.readouterr().err


def test_truncated_and_absent(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hr = folder / 'train_HR_sub.lmdb'
    data = (hr / 'data.mdb').read_bytes()
    (hr / 'data.mdb').write_bytes(data[: len(data) // 2])
    with pytest.raises(SystemExit):
        main(['prepare', '--check', str(hr)])
    assert 'was cut short' in capsys.readouterr().err
    assert 'there is no' in error_of(['prepare', '--check', str(folder / 'none.lmdb')], capsys)


def test_bytes_that_are_no_text_are_faults(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x2 = folder / 'train_LR_bicubic_X2_sub.lmdb'
    listed = (x2 / 'meta_info.txt').read_bytes().replace(b'camera_s001', b'camera_\xff').replace(b'(24', b'\xfe', 1)
    (x2 / 'meta_info.txt').write_bytes(listed)
    with pytest.raises(SystemExit):
        main(['prepare', '--check', str(x2)])
    said = capsys.readouterr().err
    assert f'{x2} has no key camera_\\xff, which its meta_info.txt lists' in said
    assert f'{x2} has the key camera_s001, which its meta_info.txt does not list' in said
    assert "line 1: 'astronaut_s001.png \\\\xfe,24,3) 1' is not like" in said


@pytest.mark.parametrize('key', [b'', b'camera_s001'])
def test_damaged_pages_are_faults(key: bytes, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x2 = folder / 'train_LR_bicubic_X2_sub.lmdb'
    with lmdb.open(str(x2), readonly=True, lock=False) as environment:
        size = environment.stat()['psize']
    content = bytearray((x2 / 'data.mdb').read_bytes())
    for place in range(2 * size, len(content), size):
        if content[place + 10] & 2 and key in content[place : place + size]:  # a leaf, where keys are
            content[place : place + size] = bytes(size)
    (x2 / 'data.mdb').write_bytes(content)
    with pytest.raises(SystemExit):
        main(['prepare', '--check', str(folder)])
    said = capsys.readouterr().err
    assert f'{x2 / "data.mdb"} is damaged, its keys do not read: ' in said
    assert f'{x2}, key camera_s001, cannot be read: ' in said
    assert 'train_HR_sub.lmdb: 24 images, all whole' in said


def test_what_is_named_twice_or_checked_twice_is_checked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hr = folder / 'train_HR_sub.lmdb'
    for _ in range(2):
        main(['prepare', '--check', str(hr), str(folder), f'{folder}/../{folder.name}/{hr.name}', '--workers', '1'])
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 4
        assert all(line.endswith(': 24 images, all whole') for line in lines)


def test_options_that_would_do_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ['prepare', '--check', str(tmp_path), '--crop-size', '48']
    assert error_of(words, capsys) == 'nlsn: --crop-size is for making data: leave it or --check out'
    assert '--output is missing' in error_of(['prepare', '--input', str(tmp_path)], capsys)
    words = ['prepare', '--input', str(tmp_path), '--output', str(tmp_path), '--test', '--storage', 'raw']
    assert '--storage is for training data' in error_of(words, capsys)


def test_what_is_listed_twice_or_of_lr_alone_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hr, x2 = folder / 'train_HR_sub.lmdb', folder / 'train_LR_bicubic_X2_sub.lmdb'
    first, second, *others = (hr / 'meta_info.txt').read_text().splitlines(keepends=True)
    (hr / 'meta_info.txt').write_text(''.join([second, second, *others]))
    alone, twice = (line.split('.')[0] for line in (first, second))
    change(hr, **{alone: None})
    with pytest.raises(SystemExit):
        main(['prepare', '--check', str(folder)])
    said = capsys.readouterr().err
    assert f'{hr / "meta_info.txt"}, line 2: {twice} a second time' in said
    assert f'{alone} is in {x2} and not in {hr}' in said


def test_gray_images_have_one_channel(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x2 = folder / 'train_LR_bicubic_X2_sub.lmdb'
    change(x2, camera_s001=encode(np.zeros((24, 24), np.uint8), '.png'))
    listed = (x2 / 'meta_info.txt').read_text()
    (x2 / 'meta_info.txt').write_text(listed.replace('camera_s001.png (24,24,3)', 'camera_s001.png (24,24,1)'))
    main(['prepare', '--check', str(x2)])
    assert capsys.readouterr().out == f'{x2}: 24 images, all whole\n'
