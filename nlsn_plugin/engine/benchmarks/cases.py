"""The inputs and settings with which the layer is measured."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Case:
    """Features [images, channels, height, width] to attend over, and the arguments of the layer."""

    channels: int
    height: int
    width: int
    images: int = 1
    n_hashes: int = 4
    chunk_size: int = 144

    def __str__(self) -> str:
        images = f'{self.images} x ' if self.images > 1 else ''
        return f'{images}{self.height}x{self.width}, C {self.channels}, r {self.n_hashes}, k {self.chunk_size}'


LAYER = Case(64, 100, 100)  # the size of the paper's Table 5
SUITES = {
    'quick': [Case(64, 40, 40)],
    'layer': [LAYER, Case(256, 48, 48, images=16), Case(256, 512, 384)],
    'n': [replace(LAYER, height=edge, width=edge) for edge in (64, 128, 256, 512, 1024)],
    'small': [replace(LAYER, height=edge, width=edge) for edge in (16, 24, 32, 48)],
    'r': [replace(LAYER, n_hashes=rounds) for rounds in (1, 2, 4, 8, 16)],
    'k': [replace(LAYER, chunk_size=chunk_size) for chunk_size in (36, 72, 144, 288, 576)],
    'c': [replace(LAYER, channels=channels) for channels in (16, 32, 64, 128, 256, 512)],
}
