from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nlsn_plugin.models.inference import cuts, in_tiles, over_orientations


def enlarge(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode='nearest')


@pytest.mark.parametrize('size', [(7, 9), (16, 16), (33, 50), (17, 15), (64, 31)])
@pytest.mark.parametrize(('tile', 'overlap'), [(16, 0), (16, 5), (15, 14), (100, 8)])
def test_what_sees_only_its_own_pixel_is_the_same_in_tiles(size: tuple[int, int], tile: int, overlap: int) -> None:
    x = torch.rand(2, 3, *size)
    assert in_tiles(enlarge, x, 2, tile, overlap).equal(enlarge(x))


@pytest.mark.parametrize('length', [1, 15, 16, 17, 30, 101])
def test_a_seam_is_half_the_overlap_away_from_where_a_tile_ends(length: int) -> None:
    found = cuts(length, 16, 6)
    assert (found[0].first, found[-1].last) == (0, length)
    for before, behind in pairwise(found):
        assert before.last == behind.first
        assert before.begin + 16 - before.last >= 3  # context beyond the seam, on both sides
        assert behind.first - behind.begin >= 3


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
