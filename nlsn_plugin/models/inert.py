"""Reading mmengine's checkpoints without running what is pickled in them.

Beside the weights, mmengine's Runner pickles objects of classes of its own (`message_hub` holds HistoryBuffers, which
torch.load refuses with weights_only=True). Here every class and function that a tensor does not need is replaced by a
stand-in that does nothing, whatever its name; no module is imported for it.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch._utils import _rebuild_parameter, _rebuild_tensor_v2


class Inert:
    """Takes the place of any other object: made from anything, filled with anything, and never looked at."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def nothing(self, *args: Any) -> None:
        """What a pickle may ask of an object while it is built."""

    __setstate__ = __setitem__ = append = extend = add = nothing


class Sealed:
    """A function that a pickle may call, and not change."""

    __slots__ = ('function',)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    def __setstate__(self, state: Any) -> None:
        pass


KNOWN = {
    ('collections', 'OrderedDict'): OrderedDict,
    ('torch._utils', '_rebuild_tensor_v2'): Sealed(_rebuild_tensor_v2),
    ('torch._utils', '_rebuild_parameter'): Sealed(_rebuild_parameter),
}
"""All that a pickle may call here; they build tensors from stored numbers, and a dict."""


class InertUnpickler(pickle._Unpickler):
    """Finds nothing but what tensors need. In Python: the form in C reserves as much memory as a damaged file says."""

    def find_class(self, module: str, name: str) -> Any:
        return KNOWN.get((module, name), Inert)


def load_inertly(path: str | Path) -> Any:
    """torch.load of a file of torch's zip format, on the CPU, with a stand-in for every object that is no tensor."""
    module = SimpleNamespace(__name__='pickle', Unpickler=InertUnpickler)  # without the `load` of torch's older format
    with Path(path).open('rb') as file:
        return torch.load(file, map_location='cpu', pickle_module=module, weights_only=False)
