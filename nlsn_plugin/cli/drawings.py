"""Checks for drawings that commands write."""

from __future__ import annotations

from pathlib import Path

from nlsn_plugin.errors import ArgumentError
from nlsn_plugin.files import check_writable


def check_drawing(path: Path) -> None:
    """Refuse, before the work begins, a path where Matplotlib could not write a drawing.

    Raises:
        ArgumentError: its ending is of no format that Matplotlib writes.
        SaveError: see `check_writable`.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    endings = FigureCanvasBase.get_supported_filetypes().keys() - {'pgf'}  # pgf needs an installed TeX
    if path.suffix[1:].lower() not in endings:
        raise ArgumentError(f'{path}: the ending of a drawing is expected: .{", .".join(sorted(endings))}')
    check_writable(path, whole=True)
