"""Arrays and Pillow images in memory, enlarged: `nlsn_plugin.upscale`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from skimage import data

import nlsn_plugin
from nlsn_plugin.errors import ArgumentError, DataError, UserError


def repeated(image: np.ndarray, scale: int) -> np.ndarray:
    return image.repeat(scale, axis=0).repeat(scale, axis=1)


@pytest.mark.parametrize('scale', [2, 3, 4])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize('shape', [(9, 7), (9, 7, 3), (9, 7, 4), (1, 1), (1, 20, 3)])
def test_an_array_comes_back_in_its_own_kind(
    repeating: dict[int, Path], scale: int, dtype: type, shape: tuple[int, ...]
) -> None:
    image = np.random.default_rng(0).random(shape, np.float32)
    if np.dtype(dtype).kind == 'u':
        image = (image * np.iinfo(dtype).max).round()
    image = image.astype(dtype)
    if shape[2:] == (4,):
        image[..., 3] = np.iinfo(dtype).max if np.dtype(dtype).kind == 'u' else 1
    larger = nlsn_plugin.upscale(image, scale, repeating[scale])
    assert larger.dtype == dtype
    np.testing.assert_allclose(larger, repeated(image, scale), rtol=1e-6 if np.dtype(dtype).kind == 'f' else 0)


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK', 'I;16'])
def test_a_pillow_image_comes_back_as_one(repeating: dict[int, Path], mode: str) -> None:
    if mode == 'I;16':
        image = Image.fromarray(np.arange(30, dtype=np.uint16).reshape(5, 6) * 2000)
    else:
        image = Image.fromarray(data.chelsea()[100:105, 100:106]).convert(mode)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    image.info['icc_profile'] = profile
    larger = nlsn_plugin.upscale(image, weights=repeating[2])
    assert larger.size == (12, 10)
    assert larger.mode == {'1': 'L', 'P': 'RGB', 'CMYK': 'RGB'}.get(mode, mode)
    if mode in ('LA', 'RGBA'):
        assert larger.getextrema()[-1] == (255, 255)  # opaque, and still there
    if mode in ('RGB', 'I;16'):
        np.testing.assert_array_equal(np.asarray(larger), repeated(np.asarray(image), 2))
    assert larger.info.get('icc_profile') == (profile if mode in ('RGB', 'RGBA', 'P') else None)


@pytest.mark.parametrize(
    ('image', 'said'),
    [
        (np.zeros((4, 4, 2), np.uint8), r'image has the shape \[4, 4, 2\]: \[H, W\], \[H, W, 3\] or \[H, W, 4\]'),
        (np.zeros((0, 4), np.uint8), r'image has the shape \[0, 4\]'),
        (np.zeros((4, 4), np.int64), 'image has int64 pixels: uint8, uint16 or floats'),
        (np.full((4, 4), 255.0), r'image has values from 255 to 255: floats in \[0, 1\] are expected'),
        (np.full((4, 4), np.nan), 'image has values from nan to nan'),
        ([[1, 2]], 'image is a list: a NumPy array or a Pillow image is expected'),
    ],
)
def test_what_is_no_image_is_refused(repeating: dict[int, Path], image: object, said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        nlsn_plugin.upscale(image, weights=repeating[2])


def test_a_pillow_image_is_turned_upright(repeating: dict[int, Path]) -> None:
    image, exif = Image.fromarray(data.chelsea()[100:105, 100:106]), Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    image.save(stream, 'PNG', exif=exif, icc_profile=profile)
    larger = nlsn_plugin.upscale(Image.open(stream), weights=repeating[2])
    assert larger.size == (10, 12)
    np.testing.assert_array_equal(np.asarray(larger), repeated(np.rot90(np.asarray(image), -1), 2))
    assert larger.info['icc_profile'] == profile
    assert 0x0112 not in larger.getexif()


def test_a_truncated_pillow_image_is_one_line(repeating: dict[int, Path]) -> None:
    stream = io.BytesIO()
    Image.fromarray(data.chelsea()).save(stream, 'JPEG')
    image = Image.open(io.BytesIO(stream.getvalue()[:2000]))
    with pytest.raises(DataError, match=r'^the image is truncated or damaged: .+$'):
        nlsn_plugin.upscale(image, weights=repeating[2])


def test_transparency_of_16_bits_in_gray_is_not_lost_in_silence(repeating: dict[int, Path]) -> None:
    image = Image.fromarray(np.arange(30, dtype=np.uint16).reshape(5, 6) * 2000)
    image.info['transparency'] = 4000
    with pytest.raises(ArgumentError, match='the image is gray of 16 bits with transparency'):
        nlsn_plugin.upscale(image, weights=repeating[2])


def test_whole_numbers_of_any_kind_are_taken(repeating: dict[int, Path]) -> None:
    image = np.zeros((8, 8), np.uint8)
    for scale in (2, 2.0, np.int64(2), np.float32(2)):
        assert nlsn_plugin.upscale(image, scale, repeating[2], chunk_size=np.int64(64)).shape == (16, 16)


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        ({'scale': [2]}, r'scale=\[2\] is not allowed: a whole number of at least 1 is expected'),
        ({'scale': 2.5}, 'scale=2.5 is not allowed: a whole number'),
        ({'scale': '2'}, "scale='2' is not allowed: a whole number"),
        ({'weights': 3}, 'weights=3 is not allowed: a path is expected'),
        ({'device': [0]}, r"device=\[0\] is not allowed: 'cpu', 'cuda' or 'cuda:N' is expected"),
        ({'n_hashes': [1]}, r'n_hashes=\[1\] is not allowed: a whole number'),
        ({'tile': [64]}, r'tile=\[64\] is not allowed: a whole number'),
        ({'overlap': [1]}, r'overlap=\[1\] is not allowed: a whole number'),
        ({'self_ensemble': [1]}, r'self_ensemble=\[1\] is not allowed: true or false'),
        ({'dtype': ['float32']}, r"dtype=\['float32'\] is not allowed: choose one of"),
        ({'chunk_size': {1}}, r'chunk_size=\{1\} is not allowed: a number, a text or a list of them is expected'),
    ],
)
def test_arguments_of_other_kinds_are_refused(
    repeating: dict[int, Path], arguments: dict[str, object], said: str
) -> None:
    with pytest.raises(ArgumentError, match=said):
        nlsn_plugin.upscale(np.zeros((4, 4), np.uint8), **{'weights': repeating[2], **arguments})


def test_weights_that_changed_are_loaded_again(repeating: dict[int, Path], tmp_path: Path) -> None:
    path, image = tmp_path / 'weights.safetensors', np.ones((4, 4), np.uint8)
    path.write_bytes(repeating[2].read_bytes())
    assert nlsn_plugin.upscale(image, weights=path).shape == (8, 8)
    path.write_bytes(repeating[4].read_bytes())
    assert nlsn_plugin.upscale(image, weights=path).shape == (16, 16)


def test_memory_that_runs_out_behind_the_network_is_one_line(
    repeating: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError('DefaultCPUAllocator: not enough memory')

    monkeypatch.setattr('nlsn_plugin.engine.upscaling.upscaler.larger_alpha', fail)
    with pytest.raises(UserError, match=r'^the image: too little memory$'):
        nlsn_plugin.upscale(np.zeros((4, 4, 4)), weights=repeating[2])


def test_colours_that_nobody_sees_make_no_halo(repeating: dict[int, Path]) -> None:
    rows, columns = np.mgrid[:24, :24]
    disc = np.where((rows - 12) ** 2 + (columns - 12) ** 2 < 64, 255, 0).astype(np.uint8)
    red = np.zeros((24, 24, 4), np.uint8)
    red[disc > 0] = (255, 0, 0, 255)
    larger = nlsn_plugin.upscale(red, weights=repeating[2])
    seen = larger[..., 3] > 0
    assert seen.any()
    assert (larger[seen][:, :3] == (255, 0, 0)).all()  # not darker, where it is half transparent
    assert larger[24, 24, 3] == 255
    assert larger[0, 0, 3] == 0
    green = red.copy()
    green[disc == 0] = (0, 255, 0, 0)
    np.testing.assert_array_equal(larger[..., 3], nlsn_plugin.upscale(green, weights=repeating[2])[..., 3])
    np.testing.assert_array_equal(larger[seen], nlsn_plugin.upscale(green, weights=repeating[2])[seen])
