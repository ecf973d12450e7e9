"""The mathematics of non-local sparse attention: no modules, no toolbox. `attend` is the only way in."""

from __future__ import annotations

from torch import Tensor

from nlsn_plugin import checks
from nlsn_plugin.ops import reference
from nlsn_plugin.ops.lsh import MAX_BUCKETS, bucket_order, count_buckets, hash_codes, without_autocast

__all__ = [
    'BACKENDS',
    'MAX_BUCKETS',
    'attend',
    'bucket_order',
    'count_buckets',
    'hash_codes',
    'without_autocast',
]

BACKENDS = ('auto', 'reference')


def attend(match: Tensor, value: Tensor, rotations: Tensor, chunk_size: int, backend: str = 'auto') -> Tensor:
    """Non-local sparse attention over pixels (Eqs. 7 to 11 of the paper).

    Args:
        match: queries and keys in one, [N, L, c].
        value: [N, L, C].
        rotations: [c, r, m/2], m = count_buckets(L, chunk_size); r is the number of hashing rounds.
        chunk_size: pixels per chunk, k >= 1.
        backend: 'auto' takes the best form there is; a name takes that one or fails.

    Returns:
        y, [N, L, C].
    """
    checks.one_of('backend', backend, BACKENDS)
    return reference.attend(match, value, rotations, chunk_size)
