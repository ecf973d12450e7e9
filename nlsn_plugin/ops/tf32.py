"""Whether a GPU multiplies float32 as TF32, which keeps 10 bits of the 23: PyTorch's setting, by either of its names.

PyTorch 2.9 renamed it, and the old name fails once the new one was set.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

RENAMED = hasattr(torch.backends.cuda.matmul, 'fp32_precision')


def of_products() -> bool:
    """Whether matrix products are."""
    return is_on(torch.backends.cuda.matmul)


def of_convolutions() -> bool:
    """Whether convolutions are: by default."""
    return is_on(torch.backends.cudnn.conv if RENAMED else torch.backends.cudnn)


def is_on(where: Any) -> bool:
    return where.fp32_precision == 'tf32' if RENAMED else where.allow_tf32


@contextlib.contextmanager
def switched(on: bool) -> Iterator[None]:
    """Within, products and convolutions are, or are not."""
    name, value = ('fp32_precision', 'tf32' if on else 'ieee') if RENAMED else ('allow_tf32', on)
    places: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn.conv if RENAMED else torch.backends.cudnn]
    before = [getattr(place, name) for place in places]
    for place in places:
        setattr(place, name, value)
    try:
        yield
    finally:
        for place, value in zip(places, before):
            setattr(place, name, value)
