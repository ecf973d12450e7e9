"""LR images that are given: which belongs to which photograph, and how their folders are named."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from nlsn_plugin.cli import main
from nlsn_plugin.data.benchmark_sets import open_set
from nlsn_plugin.data.prepare import prepare_test_data
from nlsn_plugin.errors import UserError


def test_names_that_end_as_those_of_given_lr_images_do(photographs: Path, tmp_path: Path) -> None:
    """HR images foo and foox2, their LR images with the scale behind their names, without it, and some missing."""
    hr, lr = tmp_path / 'hr', tmp_path / 'lr'
    hr.mkdir()
    shutil.copy(photographs / 'coffee.png', hr / 'foo.png')
    shutil.copy(photographs / 'coffee.png', hr / 'foox2.png')
    height, width = (edge // 2 for edge in cv2.imread(str(hr / 'foo.png')).shape[:2])
    for number, names in enumerate([('foox2', 'foox2x2'), ('foo', 'foox2')]):
        lr.mkdir()
        for value, name in enumerate(names):
            cv2.imwrite(str(lr / f'{name}.png'), np.full((height, width, 3), value, np.uint8))
        _, made = prepare_test_data(hr, tmp_path / f'test_{number}', [2], str(lr))
        assert [cv2.imread(str(made / f'{name}x2.png')).max() for name in ('foo', 'foox2')] == [0, 1]
        (lr / f'{names[names.index("foox2") - 1]}.png').unlink()
        with pytest.raises(UserError, match=r'foox2\.png has no LR image foox2x2 or foox2 in'):
            prepare_test_data(hr, tmp_path / 'other', [2], str(lr))  # foox2 is foo's
        shutil.rmtree(lr)


def test_braces_in_the_name_of_a_folder_are_its_own(photographs: Path, tmp_path: Path) -> None:
    _, made = prepare_test_data(photographs, tmp_path / 'test', [2])
    folder = made.rename(tmp_path / 'HR{1}')
    benchmark = open_set('mine', photographs, 2, str(folder), workers=1)
    assert {photograph.lr.parent for photograph in benchmark.photographs} == {folder}
    prepare_test_data(photographs, tmp_path / 'again', [2], str(folder))
    with pytest.raises(UserError, match=r'there is no folder l\{set\}'):
        prepare_test_data(photographs, tmp_path / 'other', [2], 'l{set}')


def test_a_folder_that_is_read_is_not_to_be_removed(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """HR images, or given LR images, that lie where `nlsn prepare` would make them."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(photographs, 'benchmark/mine/HR')
    words = ['prepare', '--workers', '1', '--input']
    prepare_test_data(photographs, Path('made'), [2])
    Path('other/LR_bicubic').mkdir(parents=True)
    Path('made/LR_bicubic/X2').rename('other/LR_bicubic/X2')
    hr, lr, read = 'benchmark/mine/HR', 'other/LR_bicubic/X{scale}', 'holds images that are to be read: give another'
    for given, expected in (
        ([hr, '--output', 'benchmark/mine', '--test'], f'nlsn: {hr} {read} --output'),
        ([hr, '--output', 'DIV2K', '--validation', hr], f'nlsn: {hr} {read} --output, or leave --validation'),
        ([str(photographs), '--output', 'other', '--test', '--lr', lr], f'nlsn: other/LR_bicubic/X2 {read} --output'),
    ):
        with pytest.raises(SystemExit):
            main([*words, *given])
        assert capsys.readouterr().err.splitlines()[-1].startswith(expected)
