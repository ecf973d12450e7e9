"""Whether a GPU multiplies float32 as TF32, which keeps 10 bits of the 23: PyTorch's setting, by either of its names.

PyTorch 2.9 renamed it, and the old name fails once the new one was set.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

PRODUCTS: Any = torch.backends.cuda.matmul
CONVOLUTIONS: Any = torch.backends.cudnn
RENAMED = hasattr(PRODUCTS, 'fp32_precision')
if RENAMED:
    CONVOLUTIONS = CONVOLUTIONS.conv


def of_products() -> bool:
    """Whether matrix products are."""
    return is_on(PRODUCTS)


def of_convolutions() -> bool:
    """Whether convolutions are: by default."""
    return is_on(CONVOLUTIONS)


def is_on(where: Any) -> bool:
    return where.fp32_precision == 'tf32' if RENAMED else where.allow_tf32


@contextlib.contextmanager
def switched(on: bool) -> Iterator[None]:
    """Within, products and convolutions are, or are not."""
    name, value = ('fp32_precision', 'tf32' if on else 'ieee') if RENAMED else ('allow_tf32', on)
    places = PRODUCTS, CONVOLUTIONS
    before = [getattr(place, name) for place in places]
    for place in places:
        setattr(place, name, value)
    try:
        yield
    finally:
        for place, setting in zip(places, before):
            setattr(place, name, setting)
