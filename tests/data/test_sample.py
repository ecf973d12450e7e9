from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import pytest
import skimage.data

from nlsn_plugin.data.sample import TRAINING_PHOTOGRAPHS, prepare_sample_data
from nlsn_plugin.errors import SaveError


def test_the_quickstarts_data_are_pairs_for_training_and_a_photograph_never_trained_on(tmp_path: Path) -> None:
    output = tmp_path / 'datasets' / 'quickstart'
    prepare_sample_data(output, 2)
    keys = {}
    for name in ('sample_train_HR_sub', 'sample_train_LR_bicubic_X2_sub'):
        meta = (output / f'{name}.lmdb' / 'meta_info.txt').read_text().splitlines()
        keys[name] = [line.split('.png')[0] for line in meta]
    trained_on = {key.rsplit('_s', 1)[0] for key in keys['sample_train_HR_sub']}
    assert trained_on == {Path(name).stem for name in TRAINING_PHOTOGRAPHS}
    assert keys['sample_train_HR_sub'] == keys['sample_train_LR_bicubic_X2_sub']
    held_out = cv2.imread(str(output / 'sample_test' / 'HR' / 'chelsea.png'))
    assert (held_out[..., ::-1] == skimage.data.chelsea()).all()
    assert 'chelsea' not in trained_on
    assert (output / 'sample_test' / 'LR_bicubic' / 'X2' / 'chelseax2.png').is_file()
    assert sorted(path.name for path in output.parent.iterdir()) == ['quickstart']


def test_data_that_another_run_has_made_meanwhile_are_taken(tmp_path: Path) -> None:
    output = tmp_path / 'quickstart'
    prepare_sample_data(output, 2)
    before = {path: path.stat().st_ino for path in output.rglob('*')}
    prepare_sample_data(output, 2)
    assert {path: path.stat().st_ino for path in output.rglob('*')} == before
    shutil.rmtree(output / 'sample_test')
    with pytest.raises(SaveError, match=r'cannot write to .*quickstart: Directory not empty'):
        prepare_sample_data(output, 2)
