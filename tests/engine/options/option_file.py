"""Option files for tests."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import yaml
from conftest import ROOT


def write(path: Path, change: dict[str, object] | str, base: str = 'train_NLSN_x2') -> str:
    """An option file: the text, or the shipped one with some values (train:total_iter, say) set or (...) left out."""
    if isinstance(change, str):
        path.write_text(change)
        return str(path)
    options = yaml.safe_load((ROOT / 'options' / f'{base}.yml').read_text())
    for keys, value in change.items():
        *above, key = keys.split(':')
        section = options
        for name in above:
            section = section[name]
        if value is ...:
            del section[key]
        else:
            section[key] = deepcopy(value)  # later changes may be of what is in it
    path.write_text(yaml.safe_dump(options, sort_keys=False))
    return str(path)
