"""The page of an evaluation: which detail it shows, and that every network's picture is its own."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from nlsn_plugin.engine.details import densest
from nlsn_plugin.engine.evaluation import page


def test_the_detail_is_where_networks_differ(tmp_path: Path) -> None:
    folder = tmp_path / 'images'
    folder.mkdir()
    plain = np.full((120, 130, 3), 100, np.uint8)
    other = plain.copy()
    other[50:106, 60:116] = 140
    records = []
    for name, image in (('truth', plain), ('bicubic', plain + 50), ('one', plain), ('two', other)):
        cv2.imwrite(str(folder / f'{name}.png'), image)
        file = f'images/{name}.png'
        records.append({'hr': str(folder / 'truth.png'), 'scale': 2, 'network': name, 'file': file})
    assert page.where_they_differ(records[1:], tmp_path)[:2] == (50, 60)
    assert page.where_they_differ(records[1:2], tmp_path)[2] > 0
    assert page.error_map(plain, plain).max() <= 4
    assert page.error_map(plain, plain + 100).max() > 200


def test_labels_that_are_alike_or_the_truths_have_pictures_of_their_own(tmp_path: Path) -> None:
    shades = {'bicubic': 50, 'A+': 100, 'A*': 150, 'HR': 200, 'whole': 250}
    cv2.imwrite(str(tmp_path / 'a.png'), np.zeros((64, 64, 3), np.uint8))
    records = []
    for number, (label, shade) in enumerate(shades.items()):
        cv2.imwrite(str(tmp_path / f'{number}.png'), np.full((64, 64, 3), shade, np.uint8))
        figures = {'psnr_y': 30.0, 'ssim_y': 0.9}
        place = {'hr': str(tmp_path / 'a.png'), 'set': 'Set5', 'image': 'a', 'scale': 2, 'file': f'{number}.png'}
        records.append({**place, **figures, 'network': label})
    drawn = page.draw(records, 0, 0, tmp_path, 0)
    assert cv2.imread(str(tmp_path / drawn['whole'])).max() == 0
    found = {entry['label']: cv2.imread(str(tmp_path / entry['detail'])).max() for entry in drawn['details'][1:]}
    assert found == shades
    assert len({entry['error'] for entry in drawn['details'][1:]}) == len(shades)


def test_the_densest_part_may_lie_in_the_last_corner() -> None:
    amount = np.zeros((10, 12))
    amount[-1, -1] = 1
    assert densest(amount, 3, 4) == (7, 8, 1)
    assert densest(amount[-1:], 3, 4) == (0, 8, 1)
