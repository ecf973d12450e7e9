"""Steps measured with oneDNN's products of float32 matrices; see `ops.cpu_matmul`."""

from __future__ import annotations

from typing import Any

from nlsn_plugin.engine.measuring.timing import Step
from nlsn_plugin.errors import BackendError
from nlsn_plugin.ops.cpu_matmul import onednn_matmul


def why_not(device: str, dtype: str) -> str | None:
    """Why that cannot be, or would change nothing; None if it can."""
    if (device, dtype) != ('cpu', 'float32'):
        return 'is for float32 on a CPU'
    try:
        with onednn_matmul():
            return None
    except BackendError as error:
        return str(error)


def with_onednn(step: Step) -> Step:
    """A step with those products, if `why_not` has nothing against it."""

    def run() -> Any:
        with onednn_matmul():
            return step()

    return run
