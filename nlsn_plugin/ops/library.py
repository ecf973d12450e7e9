"""The fast backends as PyTorch operators, torch.ops.nlsn_plugin.*.

As operators they are opaque to torch.compile, which then takes the whole network in one graph, they have gradients,
and FlopCounterMode counts them. What they need for it is said here once for all forms.
"""

# No `from __future__ import annotations`: PyTorch reads an operator's types as they stand.

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from nlsn_plugin.errors import BackendError
from nlsn_plugin.ops import lsh, reference
from nlsn_plugin.ops.context import without_autocast

CPU = torch.device('cpu')
Attention = Callable[[Tensor, Tensor, Tensor, int, str], Tensor]


@torch.library.custom_op('nlsn_plugin::pixel_order', mutates_args=())
def pixel_order(match: Tensor, rotations: Tensor) -> Tensor:
    """The pixels sorted by hash code, [N, L, c], [c, r, m/2] -> [N, r, L].

    An operator, so that the codes are the same whoever compiles what stands before it.
    """
    return lsh.bucket_order(hash_by(match)(match, onto(match.device, rotations)))


def onto(device: torch.device, drawn: Tensor) -> Tensor:
    """Copy what was drawn on the CPU to a device; on a GPU without waiting for the work that it still has to do.

    Raises:
        BackendError: a CUDA graph is being recorded, which would not draw again.
    """
    if device.type == 'cuda' and drawn.device.type == 'cpu' and not torch.compiler.is_compiling():
        if drawn.numel() and torch.cuda.is_current_stream_capturing():
            raise BackendError(
                'a CUDA graph cannot be recorded of a layer that draws random numbers, as it does not draw again when '
                'it is replayed: call eval() first, or give the layer its rotations'
            )
        drawn = drawn.pin_memory()
    return drawn.to(device, non_blocking=True)


def hash_by(match: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Return `lsh.hash_codes`, or its kernel if that can run on `match`."""
    if match.device.type == 'cuda':
        with contextlib.suppress(ImportError):  # of Triton
            from nlsn_plugin.ops import fused

            known = match.dtype in fused.DTYPES and match.shape[0] <= fused.MAX_IMAGES
            if known and not fused.cannot_run(match.device):
                return fused.hash_codes
    return lsh.hash_codes


@pixel_order.register_fake
def _(match: Tensor, rotations: Tensor) -> Tensor:
    return match.new_empty(match.shape[0], rotations.shape[1], match.shape[1], dtype=torch.int64)


@register_flop_formula(torch.ops.nlsn_plugin.pixel_order)
def _(match: torch.Size, rotations: torch.Size, **_: Any) -> int:
    return 2 * match.numel() * rotations[1] * rotations[2]


torch.library.define(
    'nlsn_plugin::draw_rotations',
    '(SymInt channels, SymInt n_hashes, SymInt half, *, Device device) -> Tensor',
    tags=[torch.Tag.nondeterministic_seeded],
)


def draw_rotations(channels: int, n_hashes: int, half: int) -> Tensor:
    """Rotations [c, r, m/2] from the global generator, on the CPU whatever the device.

    An operator, so that a compiled network draws the numbers that the network draws.
    """
    return torch.ops.nlsn_plugin.draw_rotations(channels, n_hashes, half, device=CPU)


torch.library.impl(
    'nlsn_plugin::draw_rotations',
    'CompositeExplicitAutograd',
    lambda channels, n_hashes, half, *, device: torch.randn(
        1, channels, n_hashes, half, dtype=torch.float32, device='cpu'
    )[0],
)
torch.library.register_fake(
    'nlsn_plugin::draw_rotations',
    lambda channels, n_hashes, half, *, device: torch.empty(
        channels, n_hashes, half, dtype=torch.float32, device='cpu'
    ),
)


torch.library.define(
    'nlsn_plugin::draw_orders',
    '(SymInt length, SymInt n_hashes, SymInt? seed, *, Device device) -> Tensor',
    tags=[torch.Tag.nondeterministic_seeded],
)


def draw_orders(length: int, n_hashes: int, seed: int | None) -> Tensor:
    """Random orders of the pixels [r, L], drawn on the CPU round by round: from the global generator, or from `seed`.

    An operator for the same reason.
    """
    return torch.ops.nlsn_plugin.draw_orders(length, n_hashes, seed, device=CPU)


def draw_orders_eagerly(length: int, n_hashes: int, seed: int | None, *, device: torch.device) -> Tensor:
    generator = torch.default_generator if seed is None else torch.Generator('cpu').manual_seed(seed)
    return torch.stack([torch.randperm(length, generator=generator, device='cpu') for _ in range(n_hashes)])


torch.library.impl('nlsn_plugin::draw_orders', 'CompositeExplicitAutograd', draw_orders_eagerly)
torch.library.register_fake(
    'nlsn_plugin::draw_orders',
    lambda length, n_hashes, seed, *, device: torch.empty(n_hashes, length, dtype=torch.int64, device='cpu'),
)


def operator(
    name: str,
    forward: Callable[[Tensor, Tensor, Tensor, int, bool, str], tuple[Tensor, Tensor, Tensor]],
    backward: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, int, str], tuple[Tensor, Tensor]],
) -> Attention:
    """Register `forward` and `backward`, as in `streamed.py`, as the operators `name` and `name_backward`.

    Returns:
        match [N, L, c], value [N, L, C], order [N, r, L], k, neighbours -> y [N, L, C].
    """

    @torch.library.custom_op(f'nlsn_plugin::{name}', mutates_args=())
    def attend(
        match: Tensor, value: Tensor, order: Tensor, chunk_size: int, differentiable: bool, neighbours: str = 'both'
    ) -> tuple[Tensor, Tensor, Tensor]:
        with without_autocast(match.device):
            return forward(match, value, order, chunk_size, differentiable, neighbours)

    @torch.library.custom_op(f'nlsn_plugin::{name}_backward', mutates_args=())
    def attend_backward(
        grad: Tensor,
        match: Tensor,
        value: Tensor,
        kept: Tensor,
        mass: Tensor,
        order: Tensor,
        chunk_size: int,
        neighbours: str = 'both',
    ) -> tuple[Tensor, Tensor]:
        with without_autocast(match.device):
            return backward(grad, match, value, kept, mass, order, chunk_size, neighbours)

    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.set_materialize_grads(False)  # of mass and shift there are none: no zeros for them
        match, value, order, ctx.chunk_size, _, ctx.neighbours = inputs
        out, mass, shift = output
        ctx.save_for_backward(match, value, shift if value.dtype in reference.HALF else out, mass, order)

    def differentiate(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 6
        gradients = attend_backward(grad.contiguous(), *ctx.saved_tensors, ctx.chunk_size, ctx.neighbours)
        return *gradients, None, None, None, None

    def refuse(ctx: Any, *_: Tensor | None) -> None:
        raise BackendError(f"backend={name!r} can be differentiated once; 'reference' as often as is wanted")

    attend.register_fake(fake_forward)
    attend.register_autograd(differentiate, setup_context=keep)
    attend_backward.register_fake(fake_backward)
    attend_backward.register_autograd(refuse)
    register_flop_formula(getattr(torch.ops.nlsn_plugin, name))(flops_forward)
    register_flop_formula(getattr(torch.ops.nlsn_plugin, f'{name}_backward'))(flops_backward)

    def run(match: Tensor, value: Tensor, order: Tensor, chunk_size: int, neighbours: str) -> Tensor:
        differentiable = torch.is_grad_enabled() and (match.requires_grad or value.requires_grad)
        return attend(match.contiguous(), value.contiguous(), order, chunk_size, differentiable, neighbours)[0]

    return run


def fake_forward(
    match: Tensor, value: Tensor, order: Tensor, chunk_size: int, differentiable: bool, neighbours: str = 'both'
) -> tuple[Tensor, Tensor, Tensor]:
    """Fake implementation of the forward pass: empty results of the right shapes and types."""
    mass = match.new_empty(match.shape[:2], dtype=torch.promote_types(match.dtype, torch.float32))
    shift = value.shape if differentiable and value.dtype in reference.HALF else (0,)
    return value.new_empty(value.shape), mass, value.new_empty(shift)


def fake_backward(
    grad: Tensor,
    match: Tensor,
    value: Tensor,
    kept: Tensor,
    mass: Tensor,
    order: Tensor,
    chunk_size: int,
    neighbours: str = 'both',
) -> tuple[Tensor, Tensor]:
    """Fake implementation of the backward pass: empty gradients of the right shapes and types."""
    return match.new_empty(match.shape), value.new_empty(value.shape)


def flops_forward(
    match: torch.Size, value: torch.Size, order: torch.Size, k: int, _: bool, neighbours: str = 'both', **__: Any
) -> int:
    """FLOPs of the forward pass: the scores, and the weighted sums of values."""
    return 2 * count_scores(order, k, neighbours) * (match[-1] + value[-1])


def flops_backward(
    grad: torch.Size,
    match: torch.Size,
    value: torch.Size,
    kept: torch.Size,
    mass: torch.Size,
    order: torch.Size,
    k: int,
    neighbours: str = 'both',
    **_: Any,
) -> int:
    """FLOPs of the backward pass: the scores again, then two products for each of those of the forward pass."""
    return 2 * count_scores(order, k, neighbours) * (3 * match[-1] + 2 * value[-1])


def count_scores(order: torch.Size, chunk_size: int, neighbours: str) -> int:
    """Number of pairs of a query and a key, in all rounds."""
    images, rounds, length = order
    span = 1 + sum(reference.NEIGHBOURS[neighbours])
    return images * rounds * -(-length // chunk_size) * span * chunk_size**2
