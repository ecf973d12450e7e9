"""Steps that run with oneDNN's products of float32 matrices; see `ops.cpu_matmul`."""

from __future__ import annotations

from typing import Any

from nlsn_plugin.engine.measuring.timing import Step
from nlsn_plugin.errors import BackendError
from nlsn_plugin.ops.cpu_matmul import onednn_matmul


def why_not(device: str, dtype: str) -> str | None:
    """The reason why oneDNN's products cannot be used here or would change nothing; None if they can be used."""
    if (device, dtype) != ('cpu', 'float32'):
        return 'is for float32 on a CPU'
    try:
        with onednn_matmul():
            return None
    except BackendError as error:
        return str(error)


def with_onednn(step: Step) -> Step:
    """Wrap a step so that it runs with oneDNN's products; `why_not` must have returned None."""

    def run() -> Any:
        with onednn_matmul():
            return step()

    return run
