"""Going on from a saved state, on any machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from basicsr.utils import check_resume

from nlsn_plugin.engine.options import Options
from nlsn_plugin.models.checkpoint import load_safely


def load_resume_state(opt: Options) -> dict[str, Any] | None:
    """Stands in for basicsr/train.py:71, which maps every state to CUDA (line 85) and so fails without a GPU.

    Here the state comes to the CPU; optimisers move theirs to their parameters' device.

    Raises:
        CheckpointError: the state is not there, or is damaged.
    """
    if opt['auto_resume']:
        states = [path for path in Path(opt['path']['training_states']).glob('*.state') if path.stem.isdigit()]
        if states:
            opt['path']['resume_state'] = str(max(states, key=lambda path: int(path.stem)))
    path = opt['path'].get('resume_state')
    if path is None:
        return None
    state: dict[str, Any] = load_safely(path)
    check_resume(opt, state['iter'])
    return state
