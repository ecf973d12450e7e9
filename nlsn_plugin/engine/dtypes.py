"""Data types that features can be computed in."""

from __future__ import annotations

import torch

DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}
"""The data types, by the names that users write."""
