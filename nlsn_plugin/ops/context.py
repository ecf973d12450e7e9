"""What surrounds a computation: autocast, a compiler, an exporter, a mode, derivatives taken in other ways."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Compute in the tensors' own precision, also on devices that know no autocast (meta)."""
    if is_exporting():  # a graph for other runtimes, which know no autocast
        return contextlib.nullcontext()
    # A compiled graph is not for the meta device, and PyTorch 2.6 cannot ask inside of one.
    if torch.compiler.is_compiling() or torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # or PyTorch 2.11 takes torch.compile for an export
def is_exporting() -> bool:
    """Whether torch.export is tracing; before PyTorch 2.7 there is no telling."""
    return getattr(torch.compiler, 'is_exporting', lambda: False)()


def is_recorded() -> bool:
    """Whether operations are recorded or transformed rather than merely executed: compiled or exported, then for images
    of other sizes too; seen by a dispatch mode, such as FakeTensorMode or a counter; or rewritten by a transform of
    torch.func."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return True
    return _get_current_dispatch_mode() is not None or torch._C._functorch.maybe_current_level() is not None


def has_tangent(*tensors: Tensor) -> bool:
    """Whether any of these tensors carries a forward-mode derivative."""
    return any(forward_ad.unpack_dual(x).tangent is not None for x in tensors)  # type: ignore[no-untyped-call]


def is_differentiated_otherwise(*tensors: Tensor) -> bool:
    """Whether any of these is differentiated other than by autograd in reverse: in forward mode or by torch.func."""
    if torch.compiler.is_compiling():  # Dynamo has no tensors to ask, and takes operators' gradients for torch.func's
        return forward_ad._current_level >= 0
    return any(map(is_tracked_by_transform, tensors)) or has_tangent(*tensors)  # in vmap tangents cannot be asked for


def is_tracked_by_transform(x: Tensor) -> bool:
    """Whether grad or another of torch.func's transforms that differentiate has wrapped a tensor."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(x):
        if functorch.is_gradtrackingtensor(x):
            return True
        x = functorch.get_unwrapped(x)
    return False
