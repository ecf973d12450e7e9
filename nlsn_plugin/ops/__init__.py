"""The mathematics of non-local sparse attention: no modules, no toolbox.

`attend` is the way in, `attend_in_order` that for pixels sorted otherwise than by their hash codes.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nlsn_plugin import checks
from nlsn_plugin.errors import ArgumentError, BackendError
from nlsn_plugin.ops import library, reference, streamed
from nlsn_plugin.ops.context import is_differentiated_otherwise, without_autocast
from nlsn_plugin.ops.library import draw_orders, draw_rotations
from nlsn_plugin.ops.lsh import MAX_BUCKETS, bucket_order, count_buckets, hash_codes
from nlsn_plugin.ops.reference import NEIGHBOURS

__all__ = [
    'BACKENDS',
    'MAX_BUCKETS',
    'NEIGHBOURS',
    'attend',
    'attend_in_order',
    'bucket_order',
    'count_buckets',
    'draw_orders',
    'draw_rotations',
    'hash_codes',
    'named',
]

BACKENDS = ('auto', 'reference', 'streamed', 'fused')

BACKEND_VARIABLE = 'NLSN_BACKEND'
"""Environment variable: the backend to take wherever 'auto' is asked for."""

SMALL = 4_000_000
"""Multiply-adds in all pixels' own chunks below which 'reference' is the faster: there the number of steps decides."""


def attend(
    match: Tensor,
    value: Tensor,
    rotations: Tensor,
    chunk_size: int,
    backend: str = 'auto',
    neighbours: str = 'both',
) -> Tensor:
    """Non-local sparse attention over pixels (Eqs. 7 to 11 of the paper).

    Args:
        match: queries and keys in one, [N, L, c].
        value: [N, L, C]; of two dtypes all is computed in the wider.
        rotations: [c, r, m/2], m = count_buckets(L, chunk_size); r is the number of hashing rounds. Compiled, other
            numbers of columns are not noticed.
        chunk_size: pixels per chunk, k >= 1.
        backend: 'reference', 'streamed' or 'fused', which give the same numbers; or 'auto', the fastest that can run
            here (on a GPU without Triton, the one that needs the least memory), unless the environment variable
            NLSN_BACKEND names another.
        neighbours: the chunks that a chunk attends to besides itself: 'both', 'previous' or 'none'.

    Returns:
        y, [N, L, C], in the dtype of `value`.

    Raises:
        ArgumentError (a ValueError): no such backend, or no such neighbours; tensors that do not fit together or are
            not of a floating type, or no rounds, or k < 1.
        BackendError (a RuntimeError): the backend asked for by name cannot run on these tensors.
    """
    check_sizes(match, value, chunk_size)
    check_rotations(match, rotations, chunk_size)
    order = library.pixel_order(match.detach(), rotations) if match.shape[1] >= chunk_size else None
    return attend_in_order(match, value, order, chunk_size, backend, neighbours)


def attend_in_order(
    match: Tensor,
    value: Tensor,
    order: Tensor | None,
    chunk_size: int,
    backend: str = 'auto',
    neighbours: str = 'both',
) -> Tensor:
    """`attend`, with chunks cut from an order that is given.

    Args:
        match, value, chunk_size, backend, neighbours: as of `attend`.
        order: for each round all pixels, each once, [N, r, L], int64, which is not checked; None if there are fewer
            than a chunk holds, which all attend to one another.

    Returns:
        y, [N, L, C], in the dtype of `value`.

    Raises:
        ArgumentError, BackendError: as `attend`.
    """
    check_sizes(match, value, chunk_size)
    if order is not None:
        check_order(match, order, chunk_size)
    elif match.shape[1] >= chunk_size:
        raise ArgumentError(f'order=None is for fewer than chunk_size={chunk_size} pixels: there are {match.shape[1]}')
    checks.one_of('neighbours', neighbours, tuple(NEIGHBOURS))
    backend = named(backend)
    if match.dtype != value.dtype:
        wider = torch.promote_types(match.dtype, value.dtype)
        return attend_in_order(match.to(wider), value.to(wider), order, chunk_size, backend, neighbours).to(value.dtype)
    if backend == 'fused' and (reason := cannot_fuse(match, value)):
        raise BackendError(f"backend='fused' cannot run here: {reason}; 'auto' takes the fastest that can")
    if order is None:
        return attend_densely(match, value)
    if backend != 'reference' and is_differentiated_otherwise(match, value):
        if backend != 'auto':
            raise BackendError(
                f'backend={backend!r} can be differentiated by autograd alone, not forward nor by torch.func: '
                "'reference' can"
            )
        backend = 'reference'
    if backend == 'auto':
        backend = fastest(match, value, order.shape[1], chunk_size)
    return FORMS[backend](match, value, order, chunk_size, neighbours)


def check_rotations(match: Tensor, rotations: Tensor, chunk_size: int) -> None:
    """Refuse rotations that cannot hash `match`."""
    if rotations.dim() != 3 or rotations.shape[0] != match.shape[-1]:
        raise ArgumentError(
            f'rotations has the shape {list(rotations.shape)}, match {list(match.shape)}: [c, r, m/2] and [N, L, c] '
            'are expected'
        )
    check_rounds(rotations.shape[1])
    if torch.compiler.is_compiling():  # where asking would tie the graph to the image's size
        return
    half = count_buckets(match.shape[1], chunk_size) // 2
    if half and rotations.shape[2] != half:  # else nothing is hashed
        raise ArgumentError(
            f'rotations has the shape {list(rotations.shape)}: {half} columns are expected, half as many as buckets '
            f'({match.shape[1]} pixels in chunks of {chunk_size})'
        )


def check_order(match: Tensor, order: Tensor, chunk_size: int) -> None:
    """Refuse what is no order of the pixels of `match`, or one that fills no chunk."""
    images, length, _ = match.shape
    if order.dim() != 3 or order.shape[0] != images or order.shape[2] != length:
        raise ArgumentError(
            f'order has the shape {list(order.shape)}, match {list(match.shape)}: [N, r, L] and [N, L, c] are expected'
        )
    check_rounds(order.shape[1])
    if chunk_size > length:
        raise ArgumentError(f'chunk_size={chunk_size} is more than the {length} pixels: order=None is expected')


def check_rounds(rounds: int) -> None:
    if rounds < 1:
        raise ArgumentError(f'rounds={rounds} is not allowed: a whole number of at least 1 is expected')


def check_sizes(match: Tensor, value: Tensor, chunk_size: int) -> None:
    """Refuse shapes, types and chunks that no backend can compute with."""
    if match.shape[:-1] != value.shape[:-1] or match.dim() != 3:
        raise ArgumentError(
            f'match has the shape {list(match.shape)}, value {list(value.shape)}: [N, L, c] and [N, L, C] are expected'
        )
    if not (match.is_floating_point() and value.is_floating_point()):
        raise ArgumentError(f'match is of {match.dtype}, value of {value.dtype}: floating types are expected')
    if not torch.compiler.is_compiling() or chunk_size < 1:  # compiled, it may be a symbol
        checks.whole('chunk_size', chunk_size, least=1)


def named(backend: str) -> str:
    """Return `backend`, or for 'auto' the backend that the environment variable NLSN_BACKEND names, if any."""
    if checks.one_of('backend', backend, BACKENDS) == 'auto':
        return checks.one_of(BACKEND_VARIABLE, os.environ.get(BACKEND_VARIABLE, 'auto'), BACKENDS)
    return backend


def fastest(match: Tensor, value: Tensor, n_hashes: int, chunk_size: int) -> str:
    """The fastest backend that can run on these tensors; on a GPU without Triton the one of the least memory."""
    if match.device.type == 'cuda':
        reason = cannot_fuse(match, value)
        if not reason:
            return 'fused'
        if not torch.compiler.is_compiling():
            log_fallback(reason)
    multiply_adds = match.shape[0] * match.shape[1] * n_hashes * chunk_size * (match.shape[2] + value.shape[2])
    return 'reference' if multiply_adds < SMALL else 'streamed'


def cannot_fuse(match: Tensor, value: Tensor) -> str | None:
    """Why 'fused' cannot run on these tensors; None if it can."""
    try:
        from nlsn_plugin.ops import fused
    except ImportError as error:
        return f'Triton cannot be imported ({error})'
    return fused.unsupported(match, value)


@functools.cache
def log_fallback(reason: str) -> None:
    """Log, once per reason, why 'auto' does not take 'fused'."""
    logging.getLogger('nlsn_plugin').warning(
        "backend='auto' does without 'fused': %s ('streamed' needs the least memory; 'reference' may be faster)", reason
    )


def fused_forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    from nlsn_plugin.ops import fused  # here, since Triton is not on every machine

    return fused.forward(*arguments)


def fused_backward(*arguments: Any) -> tuple[Tensor, Tensor]:
    from nlsn_plugin.ops import fused

    return fused.backward(*arguments)


def in_its_own_precision(form: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`form` with autocast switched off, whatever the caller has set."""

    def run(match: Tensor, *arguments: Any) -> Tensor:
        with without_autocast(match.device):
            return form(match, *arguments)

    return run


attend_densely = in_its_own_precision(reference.attend_densely)

FORMS = {
    'reference': in_its_own_precision(reference.attend),
    'streamed': library.operator('streamed', streamed.forward, streamed.backward),
    'fused': library.operator('fused', fused_forward, fused_backward),
}
