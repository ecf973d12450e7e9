"""Protocols against figures computed here from their definitions, and against scikit-image's SSIM."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from basicsr.utils.matlab_functions import imresize
from skimage.color import rgb2ycbcr
from skimage.metrics import structural_similarity

from nlsn_plugin.data.images import crop_to_multiple, enlarge, read_image, reduce
from nlsn_plugin.errors import DataError, UserError
from nlsn_plugin.metrics.protocols import PROTOCOLS, Protocol, bicubic_planes, find_protocol, mean, planes, score

BASICSR, MATLAB, VDSR = (PROTOCOLS[name] for name in ('basicsr', 'matlab', 'vdsr'))


def pair(photographs: Path, name: str, scale: int) -> tuple[np.ndarray, np.ndarray]:
    truth = crop_to_multiple(read_image(photographs / f'{name}.png', keep_gray=True), scale)
    return truth, reduce(truth, scale)


def luma(bgr: np.ndarray) -> np.ndarray:
    return rgb2ycbcr(bgr[..., ::-1])[..., 0]


def psnr(first: np.ndarray, second: np.ndarray, border: int) -> float:
    difference = (first.astype(np.float64) - second)[border:-border, border:-border]
    return float(10 * np.log10(255**2 / (difference**2).mean()))


def ssim(first: np.ndarray, second: np.ndarray, border: int) -> float:
    first, second = (image.astype(np.float64)[border:-border, border:-border] for image in (first, second))
    options = {'gaussian_weights': True, 'sigma': 1.5, 'use_sample_covariance': False, 'data_range': 255}
    return float(structural_similarity(first, second, channel_axis=2 if first.ndim == 3 else None, **options))


@pytest.mark.parametrize('scale', [2, 3, 4])
@pytest.mark.parametrize('name', ['astronaut', 'chelsea', 'coffee'])
def test_bicubic_by_each_protocol_is_what_its_definition_says(photographs: Path, name: str, scale: int) -> None:
    truth, lr = pair(photographs, name, scale)
    output = enlarge(lr, scale)
    y = luma(truth)
    direct = imresize(imresize(y.round().astype(np.float32) / 255, 1 / scale), scale) * 255
    expected = {
        BASICSR: (luma(output), y),
        MATLAB: (luma(output).round(), y.round()),
        VDSR: (direct.round().clip(0, 255), y.round()),
    }
    for protocol, (ours, theirs) in expected.items():
        found = score(bicubic_planes(lr, truth, scale, protocol), planes(truth, protocol, False), scale)
        assert found['psnr_y'] == pytest.approx(psnr(ours, theirs, scale), abs=2e-3)
        assert found['ssim_y'] == pytest.approx(ssim(ours, theirs, scale), abs=1e-4)
        assert found['psnr_rgb'] == pytest.approx(psnr(output, truth, scale), abs=1e-6)
        assert found['ssim_rgb'] == pytest.approx(ssim(output, truth, scale), abs=1e-4)
    figures = {round(psnr(*planes, scale), 6) for planes in expected.values()}
    assert len(figures) == 3


def test_gray_files_are_scored_by_a_named_rule(photographs: Path) -> None:
    truth, lr = pair(photographs, 'camera', 2)
    assert truth.ndim == 2
    output = cv2.cvtColor(enlarge(lr, 2), cv2.COLOR_GRAY2BGR)  # as a network gives it
    as_rgb, raw = BASICSR, find_protocol('basicsr', 'raw')
    assert raw.name == 'basicsr, gray raw'
    assert find_protocol('vdsr', 'raw') is VDSR
    found = {
        protocol.gray: score(planes(output, protocol, True), planes(truth, protocol, True), 2)
        for protocol in (as_rgb, raw)
    }
    assert found['raw']['psnr_y'] == found['raw']['psnr_rgb'] == pytest.approx(psnr(output[..., 0], truth, 2))
    assert found['rgb']['psnr_rgb'] == pytest.approx(found['raw']['psnr_rgb'])
    assert found['rgb']['psnr_y'] - found['raw']['psnr_y'] == pytest.approx(20 * np.log10(255 / 219), abs=1e-3)
    direct = imresize(imresize(truth.astype(np.float32) / 255, 0.5), 2) * 255
    by_vdsr = score(bicubic_planes(lr, truth, 2, VDSR), planes(truth, VDSR, True), 2)
    assert by_vdsr['psnr_y'] == pytest.approx(psnr(direct.round().clip(0, 255), truth, 2), abs=1e-6)


def test_equal_images_and_other_borders(photographs: Path) -> None:
    truth, lr = pair(photographs, 'coffee', 2)
    same = planes(truth, BASICSR, False)
    assert score(same, same, 2)['psnr_y'] == float('inf')
    output = enlarge(lr, 2)
    wide = score(planes(output, BASICSR, False), same, 10)
    assert wide['psnr_y'] == pytest.approx(psnr(luma(output), luma(truth), 10), abs=2e-3)
    with pytest.raises(DataError, match='96x120 pixels are too few for SSIM within a border of 43: at least 97 each'):
        score(same, same, 43)


def test_a_protocol_that_is_not_there() -> None:
    with pytest.raises(UserError, match='there is no protocol matlap: did you mean matlab'):
        find_protocol('matlap')


def test_of_no_images_there_is_no_mean() -> None:
    with pytest.raises(DataError, match='no image was measured'):
        mean([])


@pytest.mark.parametrize(('protocol', 'levels'), [(BASICSR, 219), (MATLAB, 219), (VDSR, 255)])
def test_gray_files_span_as_many_levels_as_their_protocol_says(protocol: Protocol, levels: int) -> None:
    black, white = (planes(np.full((2, 2), level, np.uint8), protocol, True).y for level in (0, 255))
    assert (white.astype(np.float64) - black).max() == pytest.approx(levels, abs=1e-3)
