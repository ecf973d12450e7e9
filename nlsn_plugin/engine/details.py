"""Details of images: the choice of a small part to show magnified, where there is most to see."""

from __future__ import annotations

import cv2
import numpy as np

DETAIL = 56
"""Edge length of a magnified detail, in pixels of the ground truth."""


def densest(amount: np.ndarray, height: int, width: int) -> tuple[int, int, float]:
    """Find the window with the largest sum of a per-pixel amount; return its top, its left and that sum.

    Args:
        amount: [H, W], of a floating type.
        height, width: size of the window; cut to that of `amount` where that is smaller.
    """
    height, width = min(height, amount.shape[0]), min(width, amount.shape[1])
    sums = cv2.boxFilter(amount, -1, (width, height), anchor=(0, 0), normalize=False)
    inner = sums[: amount.shape[0] - height + 1, : amount.shape[1] - width + 1]
    top, left = np.unravel_index(inner.argmax(), inner.shape)
    return int(top), int(left), float(inner[top, left])
