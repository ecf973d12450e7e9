"""Choice of the device that networks run on: the CPU, or a GPU."""

from __future__ import annotations

import torch

from nlsn_plugin.errors import BackendError


def device_of(asked: str | torch.device | None) -> str:
    """The name of a usable device: the one asked for, or by default a GPU if there is one and else the CPU.

    Raises:
        BackendError: there is no such device, or it cannot be used.
    """
    if asked is None:
        return 'cuda' if torch.cuda.is_available() else 'cpu'
    subject = f'device {str(asked)!r} cannot be used'
    try:
        device = torch.device(asked)
    except (RuntimeError, TypeError) as error:
        raise BackendError(f"{subject}: 'cpu', 'cuda' or 'cuda:N' is expected") from error
    if device.type not in ('cpu', 'cuda'):
        raise BackendError(f"{subject}: 'cpu', 'cuda' or 'cuda:N' is expected")
    if device.type == 'cuda' and not torch.cuda.is_available():
        raise BackendError(f'{subject}: PyTorch finds no GPU')
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split('. ')[0]
        raise BackendError(f'{subject}: {reason}') from error
    return 'cpu' if device.type == 'cpu' else str(device)
