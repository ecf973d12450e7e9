"""`network.one_image` of a smaller network than the paper's, by a name that another process can import."""

from __future__ import annotations

import functools
from typing import Any

from nlsn_plugin.archs import NLSN
from nlsn_plugin.compat import substituted
from nlsn_plugin.engine.benchmarks import network
from nlsn_plugin.engine.measuring.timing import Step


def one_image(device: str, form: str, size: list[int], dtype: str, arguments: dict[str, Any]) -> tuple[Step, Step]:
    """For `peak_memories`; arguments: of NLSN."""
    with substituted(network, NLSN=functools.partial(NLSN, **arguments)):
        return network.one_image(device, form, size, dtype)
