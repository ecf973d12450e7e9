"""The fast forms as PyTorch operators, torch.ops.nlsn_plugin.*.

As operators they are opaque to torch.compile, which then takes the whole network in one graph, they have gradients,
and FlopCounterMode counts them. What they need for it is said here once for all forms.
"""

# No `from __future__ import annotations`: PyTorch 2.4 reads an operator's types as they stand.

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from nlsn_plugin.ops import lsh, reference

Attention = Callable[[Tensor, Tensor, Tensor, int], Tensor]


@torch.library.custom_op('nlsn_plugin::pixel_order', mutates_args=())
def pixel_order(match: Tensor, rotations: Tensor) -> Tensor:
    """The pixels sorted by hash code, [N, L, c], [c, r, m/2] -> [N, r, L].

    An operator, so that the codes are the same whoever compiles what stands before it.
    """
    if match.device.type == 'cuda':
        with contextlib.suppress(ImportError):  # of Triton
            from nlsn_plugin.ops import fused

            return lsh.bucket_order(fused.hash_codes(match, rotations))
    return lsh.bucket_order(lsh.hash_codes(match, rotations))


@pixel_order.register_fake
def _(match: Tensor, rotations: Tensor) -> Tensor:
    return match.new_empty(match.shape[0], rotations.shape[1], match.shape[1], dtype=torch.int64)


@register_flop_formula(torch.ops.nlsn_plugin.pixel_order)
def _(match: torch.Size, rotations: torch.Size, **_: Any) -> int:
    return 2 * match.numel() * rotations[1] * rotations[2]


torch.library.define(
    'nlsn_plugin::draw_rotations',
    '(SymInt channels, SymInt n_hashes, SymInt half) -> Tensor',
    tags=[torch.Tag.nondeterministic_seeded],
)


def draw_rotations(channels: int, n_hashes: int, half: int) -> Tensor:
    """Rotations [c, r, m/2] from the global generator, on the CPU whatever the device.

    An operator, so that a compiled network draws the numbers that the network draws.
    """
    return torch.ops.nlsn_plugin.draw_rotations(channels, n_hashes, half)


torch.library.impl(
    'nlsn_plugin::draw_rotations',
    'CompositeExplicitAutograd',
    lambda channels, n_hashes, half: torch.randn(1, channels, n_hashes, half, device='cpu')[0],
)
torch.library.register_fake(
    'nlsn_plugin::draw_rotations',
    lambda channels, n_hashes, half: torch.empty(channels, n_hashes, half, device='cpu'),
)


def operator(
    name: str,
    forward: Callable[[Tensor, Tensor, Tensor, int, bool], tuple[Tensor, Tensor, Tensor]],
    backward: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]],
) -> Attention:
    """Register `forward` and `backward`, as in `streamed.py`, as the operators `name` and `name_backward`.

    Returns:
        match [N, L, c], value [N, L, C], order [N, r, L], k -> y [N, L, C].
    """

    @torch.library.custom_op(f'nlsn_plugin::{name}', mutates_args=())
    def attend(
        match: Tensor, value: Tensor, order: Tensor, chunk_size: int, differentiable: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        with lsh.without_autocast(match.device):
            return forward(match, value, order, chunk_size, differentiable)

    @attend.register_fake
    def _(
        match: Tensor, value: Tensor, order: Tensor, chunk_size: int, differentiable: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        mass = match.new_empty(match.shape[:2], dtype=torch.promote_types(match.dtype, torch.float32))
        shift = value.shape if differentiable and value.dtype in reference.HALF else (0,)
        return value.new_empty(value.shape), mass, value.new_empty(shift)

    @torch.library.custom_op(f'nlsn_plugin::{name}_backward', mutates_args=())
    def attend_backward(
        grad: Tensor, match: Tensor, value: Tensor, kept: Tensor, mass: Tensor, order: Tensor, chunk_size: int
    ) -> tuple[Tensor, Tensor]:
        with lsh.without_autocast(match.device):
            return backward(grad, match, value, kept, mass, order, chunk_size)

    @attend_backward.register_fake
    def _(
        grad: Tensor, match: Tensor, value: Tensor, kept: Tensor, mass: Tensor, order: Tensor, chunk_size: int
    ) -> tuple[Tensor, Tensor]:
        return match.new_empty(match.shape), value.new_empty(value.shape)

    def keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int, bool], output: tuple[Tensor, Tensor, Tensor]) -> None:
        match, value, order, ctx.chunk_size, _ = inputs
        out, mass, shift = output
        ctx.save_for_backward(match, value, shift if value.dtype in reference.HALF else out, mass, order)

    def differentiate(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return *attend_backward(grad.contiguous(), *ctx.saved_tensors, ctx.chunk_size), None, None, None

    attend.register_autograd(differentiate, setup_context=keep)

    def multiply_adds(order: torch.Size, chunk_size: int) -> int:
        """One for each score and channel."""
        images, rounds, length = order
        return images * rounds * -(-length // chunk_size) * 3 * chunk_size**2

    @register_flop_formula(getattr(torch.ops.nlsn_plugin, name))
    def _(match: torch.Size, value: torch.Size, order: torch.Size, chunk_size: int, *_: Any, **__: Any) -> int:
        return 2 * multiply_adds(order, chunk_size) * (match[-1] + value[-1])

    @register_flop_formula(getattr(torch.ops.nlsn_plugin, f'{name}_backward'))
    def _(
        grad: Any, match: torch.Size, value: torch.Size, kept: Any, mass: Any, order: torch.Size, k: int, **_: Any
    ) -> int:
        return 2 * multiply_adds(order, k) * (3 * match[-1] + 2 * value[-1])  # the scores anew, then both products' two

    def run(match: Tensor, value: Tensor, order: Tensor, chunk_size: int) -> Tensor:
        differentiable = torch.is_grad_enabled() and (match.requires_grad or value.requires_grad)
        return attend(match.contiguous(), value.contiguous(), order, chunk_size, differentiable)[0]

    return run
