"""Going on from a saved state, on any machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from basicsr.utils import check_resume

from nlsn_plugin.errors import UserError

Options = dict[str, Any]


def load_resume_state(opt: Options) -> dict[str, Any] | None:
    """Stands in for basicsr/train.py:71, which maps every state to CUDA (line 85) and so fails without a GPU,
    and with --auto_resume looks below the working directory alone.

    Here the state comes to the CPU; optimisers move theirs to their parameters' device.

    Raises:
        UserError: the file named in the options is not there.
    """
    if opt['auto_resume']:
        states = sorted(Path(opt['path']['training_states']).glob('*.state'), key=lambda path: int(path.stem))
        if states:
            opt['path']['resume_state'] = str(states[-1])
    path = opt['path'].get('resume_state')
    if path is None:
        return None
    if not Path(path).is_file():
        raise UserError(f'there is no training state {path} (path: resume_state)')
    state = torch.load(path, map_location='cpu', weights_only=True)
    check_resume(opt, state['iter'])
    return state
