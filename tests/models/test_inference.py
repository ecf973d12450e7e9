from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nlsn_plugin.models.inference import cuts, in_tiles, in_whole_windows, over_orientations, window_of


def enlarge(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode='nearest')


@pytest.mark.parametrize('size', [(16, 24), (13, 21), (5, 8), (4, 3), (2, 40), (1, 1)])
def test_images_of_any_size_are_mirrored_to_whole_windows(size: tuple[int, int]) -> None:
    seen = []

    def note(x: Tensor) -> Tensor:
        seen.append(x)
        return enlarge(x)

    x = torch.rand(2, 3, *size)
    assert in_whole_windows(note, 8, 2)(x).equal(enlarge(x))
    more = [(0, -edge % 8) for edge in size]
    assert np.array_equal(seen[0], np.pad(x, [(0, 0), (0, 0), *more], 'reflect'))
    if all(behind < edge for edge, (_, behind) in zip(size, more)):  # as far as BasicSR's SwinIRModel goes
        assert seen[0].equal(F.pad(x, (*more[1], *more[0]), 'reflect'))


@pytest.mark.parametrize('size', [(7, 9), (16, 16), (33, 50), (17, 15), (64, 31)])
@pytest.mark.parametrize(('tile', 'overlap'), [(16, 0), (16, 5), (15, 14), (100, 8)])
def test_what_sees_only_its_own_pixel_is_the_same_in_tiles(size: tuple[int, int], tile: int, overlap: int) -> None:
    x = torch.rand(2, 3, *size)
    assert in_tiles(enlarge, x, 2, tile, overlap).equal(enlarge(x))


@pytest.mark.parametrize('length', [1, 15, 16, 17, 30, 101])
@pytest.mark.parametrize('overlap', [0, 1, 6, 8, 15])
def test_tiles_cover_the_edge_and_take_over_in_the_middle_of_what_they_share(length: int, overlap: int) -> None:
    found = cuts(length, 16, overlap)
    assert found[0] == (0, 0, 0)
    assert found[-1].begin + 16 >= length
    assert len(found) == 1 or found[-1].begin + 16 == length
    for before, behind in pairwise(found):
        end = before.begin + 16
        assert end - behind.begin >= overlap
        assert behind.begin <= behind.fade <= behind.full <= end
        assert before.fade <= behind.fade
        assert end - behind.full == behind.fade - behind.begin >= overlap // 4  # context beyond, on both sides


def test_where_tiles_overlap_one_fades_into_the_other() -> None:
    """Tiles that know nothing but their number: the result leads from one to the next in small even steps."""
    number = iter(range(100))

    def flat(x: Tensor) -> Tensor:
        return torch.full_like(enlarge(x), next(number))

    (row,) = in_tiles(flat, torch.zeros(1, 1, 1, 40), 2, 16, 8)[0, 0, :1]
    steps = row.diff()
    assert (row[0], row[-1]) == (0, 3)
    assert steps.min() == 0
    assert steps.max() == pytest.approx(1 / 8)  # half an overlap of 8 is 4 pixels, 8 of the result
    assert (steps > 0).sum() == 3 * 9


def test_no_tile_is_larger_than_asked_for() -> None:
    sizes = []

    def note(x: Tensor) -> Tensor:
        sizes.append(x.shape[-2:])
        return enlarge(x)

    in_tiles(note, torch.rand(1, 3, 40, 25), 2, 16, 4)
    assert set(sizes) == {(16, 16)}


def test_the_ensemble_is_the_mean_over_eight_orientations() -> None:
    seen = []

    def first_pixel_counts(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return enlarge(x) + F.pad(torch.ones(1, 1, 1, 1), (0, 2 * x.shape[-1] - 1, 0, 2 * x.shape[-2] - 1))

    x = torch.rand(1, 1, 3, 4)
    y = over_orientations(first_pixel_counts, x)
    assert len({tuple(view.flatten().tolist()) for view in seen}) == 8
    corners = F.pad(torch.zeros(1, 1, 4, 6), (1, 1, 1, 1))
    corners[..., 0, 0] = corners[..., 0, -1] = corners[..., -1, 0] = corners[..., -1, -1] = 2 / 8
    torch.testing.assert_close(y, enlarge(x) + corners)


@pytest.mark.parametrize(
    ('network', 'window'),
    [
        ({'type': 'RRDBNet'}, 1),  # enlarges by 4 unless it says otherwise
        ({'type': 'SwinIR', 'window_size': [8, 12]}, 24),
        ({'type': 'WithNLSA', 'arch': {'type': 'SwinIR', 'window_size': [4, 6]}}, 12),
    ],
)
def test_images_are_mirrored_to_what_all_windows_divide(network: dict[str, Any], window: int) -> None:
    assert window_of(network) == window
