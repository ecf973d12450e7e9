"""Whether a GPU multiplies float32 as TF32, which keeps 10 bits of the 23: PyTorch's setting, by either of its names.

PyTorch 2.9 renamed it. The old name then sets the new one too, but fails to read what the new one has set.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

BY_OLD_NAME: tuple[Any, Any] = torch.backends.cuda.matmul, torch.backends.cudnn
"""Of products, and of convolutions."""

RENAMED = hasattr(torch.backends.cuda.matmul, 'fp32_precision')
BY_NEW_NAME: tuple[Any, Any] = (BY_OLD_NAME[0], BY_OLD_NAME[1].conv) if RENAMED else BY_OLD_NAME


def of_products() -> bool:
    """Whether matrix products are."""
    return is_on(BY_NEW_NAME[0])


def of_convolutions() -> bool:
    """Whether convolutions are: by default."""
    return is_on(BY_NEW_NAME[1])


def is_on(place: Any) -> bool:
    return place.fp32_precision == 'tf32' if RENAMED else place.allow_tf32


@contextlib.contextmanager
def switched(on: bool) -> Iterator[None]:
    """Within, products and convolutions are, or are not."""
    were_on = [is_on(place) for place in BY_NEW_NAME]
    precisions = [place.fp32_precision for place in BY_NEW_NAME] if RENAMED else []
    for place in BY_OLD_NAME:  # so that both names agree, whichever PyTorch's own code asks
        place.allow_tf32 = on
    try:
        yield
    finally:
        for place, was_on in zip(BY_OLD_NAME, were_on):
            place.allow_tf32 = was_on
        for place, precision in zip(BY_NEW_NAME, precisions):
            place.fp32_precision = precision
