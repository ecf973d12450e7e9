"""The choice of tiles, for GPUs that need not be here."""

from __future__ import annotations

import itertools

import pytest
import torch

tiles = pytest.importorskip('nlsn_plugin.ops.tiles', reason='needs Triton')

MACHINES = {
    'H100': tiles.Machine((9, 0), 232_448),
    'A100': tiles.Machine((8, 0), 166_912),
    'RTX 4090': tiles.Machine((8, 9), 101_376),
}
WIDTHS = (16, 32, 64, 128, 256, 512)


@pytest.mark.parametrize('machine', MACHINES.values(), ids=MACHINES)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_chosen_fits_and_what_does_not_has_a_reason(machine: tiles.Machine, dtype: torch.dtype) -> None:
    for widths in itertools.product(WIDTHS, WIDTHS):
        chosen = {kernel: tiles.choose(kernel, *widths, dtype, machine) for kernel in tiles.KERNELS}
        assert (tiles.too_large(*widths, dtype, machine) is None) == all(chosen.values())
        for kernel, cut in chosen.items():
            assert cut is None or tiles.needed(kernel, cut, *widths, dtype) <= machine.shared_memory


@pytest.mark.parametrize('machine', MACHINES.values(), ids=MACHINES)
@pytest.mark.parametrize('channels', [64, 256])
def test_the_layers_of_the_paper_fit_everywhere(machine: tiles.Machine, channels: int) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert tiles.too_large(channels // 4, channels, dtype, machine) is None


def test_what_does_not_fit_says_how_much_is_needed_and_there() -> None:
    said = tiles.too_large(512, 512, torch.float32, MACHINES['RTX 4090'])
    assert said.startswith('fused needs about ')
    assert said.endswith('bytes of shared memory for 512 and 512 channels of torch.float32, and this GPU has 101376')


@pytest.mark.parametrize('kernel', tiles.KERNELS)
def test_a_kernel_asks_for_more_memory_with_larger_tiles(kernel: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        needs = [tiles.needed(kernel, tiles.Tiles(*size), 64, 256, dtype) for size in ((16, 16), (32, 16), (32, 32))]
        assert needs == sorted(set(needs))


SEEN = [
    ('forward', torch.bfloat16, (64, 256), tiles.Tiles(64, 64, 256, 4, 2), 92_416),
    ('forward', torch.bfloat16, (64, 256), tiles.Tiles(64, 64, 128, 4, 2, parts=2), 92_416),
    ('forward', torch.bfloat16, (64, 256), tiles.Tiles(64, 64), 101_120),
    ('query', torch.bfloat16, (64, 256), tiles.Tiles(64, 64, 512), 131_840),
    ('query', torch.bfloat16, (128, 512), tiles.Tiles(64, 32, 512), 168_320),
    ('key', torch.bfloat16, (64, 256), tiles.Tiles(64, 32, 512, 4, 2), 82_176),
    ('query', torch.float32, (64, 256), tiles.Tiles(64, 32, 64, 4, 2), 221_312),
    ('query', torch.float32, (512, 512), tiles.Tiles(16, 16, 64, 4), 196_736),
    ('query', torch.float32, (256, 64), tiles.Tiles(64, 32, 64, 4, 2), 270_464),
    ('query', torch.float32, (128, 128), tiles.Tiles(64, 32, 64, 4, 2), 196_736),
    ('query', torch.float32, (512, 32), tiles.Tiles(16, 16, 64, 8, 1), 102_400),
    ('key', torch.float32, (64, 256), tiles.Tiles(32, 32, 64), 188_928),
    ('forward', torch.float32, (64, 256), tiles.Tiles(64, 64, 256, 8, 2, 'ieee'), 200_960),  # as TF32
    ('forward', torch.float32, (256, 256), tiles.Tiles(64, 32, 256, 8, 2, 'ieee'), 206_976),
]


@pytest.mark.parametrize(('kernel', 'dtype', 'widths', 'cut', 'taken'), SEEN)
def test_a_kernel_takes_no_more_memory_than_it_is_said_to_need(
    kernel: str, dtype: torch.dtype, widths: tuple[int, int], cut: tiles.Tiles, taken: int
) -> None:
    """taken: what Triton 3.6 and 3.8 told of the compiled kernel at most."""
    assert taken <= tiles.needed(kernel, cut, *widths, dtype) < 1.7 * taken
