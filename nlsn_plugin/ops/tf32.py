"""Whether a GPU multiplies float32 as TF32, which keeps 10 bits of the 23: PyTorch's setting, by either of its names.

PyTorch 2.9 renamed it. The old name then sets the new one too, but fails to read what the new one has set.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

BY_OLD_NAME: tuple[Any, Any] = torch.backends.cuda.matmul, torch.backends.cudnn
"""The settings of matrix products and of convolutions, by their old names."""

RENAMED = hasattr(torch.backends.cuda.matmul, 'fp32_precision')
BY_NEW_NAME: tuple[Any, Any] = (BY_OLD_NAME[0], BY_OLD_NAME[1].conv) if RENAMED else BY_OLD_NAME

OF_CPU: Any = torch.backends.mkldnn
TOUCHED: tuple[Any, ...] = (*BY_NEW_NAME, torch.backends.cudnn.rnn, OF_CPU.matmul) if RENAMED else ()
"""All that the old names set, and the setting of a CPU's products: torch.set_float32_matmul_precision sets it too."""


def of_products() -> bool:
    """Whether matrix products are computed in TF32."""
    return is_on(BY_NEW_NAME[0])


def of_convolutions() -> bool:
    """Whether convolutions are computed in TF32, as they are by default."""
    return is_on(BY_NEW_NAME[1])


def is_on(place: Any) -> bool:
    return place.fp32_precision == 'tf32' if RENAMED else place.allow_tf32


@contextlib.contextmanager
def switched(on: bool) -> Iterator[None]:
    """Within the block TF32 is on, or off, for products and convolutions; afterwards all settings are as before."""
    were_on = [is_on(place) for place in BY_NEW_NAME]
    precisions = [place.fp32_precision for place in TOUCHED]
    in_words = described()
    for place in BY_OLD_NAME:  # so that both names agree, whichever PyTorch's own code asks
        place.allow_tf32 = on
    for place in TOUCHED[:3]:  # else a setting for all of PyTorch counts where the old name says no
        place.fp32_precision = 'tf32' if on else 'ieee'
    try:
        yield
    finally:
        for place, was_on in zip(BY_OLD_NAME, were_on):
            place.allow_tf32 = was_on
        if in_words:
            torch.set_float32_matmul_precision(in_words)
        for place, precision in zip(TOUCHED, precisions):
            place.fp32_precision = precision


def described() -> str | None:
    """PyTorch's setting of products on CPUs and GPUs in a word, of which those above are half; None if they differ."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None
