"""Details of images: the small square to show magnified, where most is to be seen."""

from __future__ import annotations

import cv2
import numpy as np

DETAIL = 56
"""Edge of a magnified detail, in pixels of the ground truth."""


def densest(amount: np.ndarray, height: int, width: int) -> tuple[int, int, float]:
    """Top and left of the part that holds most of an amount for each pixel, and how much that is.

    Args:
        amount: [H, W], floating.
        height, width: of the part; that of the whole where it is smaller.
    """
    height, width = min(height, amount.shape[0]), min(width, amount.shape[1])
    sums = cv2.boxFilter(amount, -1, (width, height), anchor=(0, 0), normalize=False)
    inner = sums[: amount.shape[0] - height + 1, : amount.shape[1] - width + 1]
    top, left = np.unravel_index(inner.argmax(), inner.shape)
    return int(top), int(left), float(inner[top, left])
