"""Workarounds for the toolboxes on current PyTorch, each naming the defect it answers, and how to install toolboxes."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import pickle
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import torch

from nlsn_plugin.errors import MissingToolboxError

INSTALL = {
    'basicsr': 'type `nlsn install-basicsr` (or, on Python 3.12 and older, `pip install basicsr`)',
    'mmengine': 'type `pip install mmengine`',
    'spandrel': 'type `pip install spandrel`',
}
NEEDED = {'basicsr': 'basicsr.utils.registry', 'mmengine': 'mmengine.registry', 'spandrel': 'spandrel'}
STATISTICS = ('min', 'max', 'mean', 'current')
OF_OPENCV = 'OpenCV needs two system libraries: type `apt-get install -y libgl1 libglib2.0-0`'
REMEDIES = (
    ('libGL.so.1', OF_OPENCV),
    ('libgthread-2.0.so.0', OF_OPENCV),
    (
        'torchvision::nms',
        'torch and torchvision are of different builds: type `pip install --force-reinstall torch torchvision`',
    ),
)


def load_toolbox(name: str) -> ModuleType:
    """Import 'basicsr', 'mmengine' or 'spandrel'.

    Raises:
        MissingToolboxError: it is absent (the message says what to type), or does not import (the message says why).
    """
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:  # a mere folder of that name has no origin
        raise MissingToolboxError(f'{name} is not installed: {INSTALL[name]}', name=name)
    try:
        if name == 'basicsr':
            provide_functional_tensor()
        importlib.import_module(NEEDED[name])
        if name == 'mmengine':
            allow_states_of_mmengine()
        return importlib.import_module(name)
    except Exception as error:  # a broken toolbox can raise anything
        raise broken(name, error) from error


def broken(name: str, error: Exception) -> MissingToolboxError:
    """The error for a toolbox that is installed but does not import."""
    reason = f'{type(error).__name__}: {error}'
    remedy = next((f'. {text}' for sign, text in REMEDIES if sign in reason), '')
    return MissingToolboxError(f'{name} is installed but does not import: {reason}{remedy}')


def provide_functional_tensor() -> None:
    """Let basicsr 1.4.2 import: its data/degradations.py:8 names a module that torchvision removed in 0.17.

    basicsr needs one function of that module, which torchvision still has elsewhere. Nothing is changed while
    torchvision has the module.
    """
    name = 'torchvision.transforms.functional_tensor'
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        from torchvision.transforms.functional import rgb_to_grayscale

        stand_in = ModuleType(name, 'Stands in for the module torchvision removed, for basicsr 1.4.2.')
        stand_in.rgb_to_grayscale = rgb_to_grayscale  # type: ignore[attr-defined]
        sys.modules[name] = stand_in


def allow_states_of_mmengine() -> None:
    """Let mmengine 0.10.7 resume: its runner/checkpoint.py:347 leaves torch.load to its defaults.

    The defaults refuse the HistoryBuffers of losses in mmengine's own checkpoints. This adds HistoryBuffer, and the
    types of the arrays in it, to what torch.load may build. A HistoryBuffer is pickled with its statistics as calls of
    `getattr`, which would be unsafe to allow: `statistic` stands in for it. All else is refused as before.
    """
    safe: list[Any] = [importlib.import_module('mmengine.logging').HistoryBuffer, np.ndarray, np.dtype]
    safe += [np.zeros(0).__reduce__()[0], np.float64(0).__reduce__()[0]]  # what builds arrays and NumPy scalars
    safe += [type(np.dtype(number)) for number in (np.float64, np.float32, np.int64, np.bool_)]
    torch.serialization.add_safe_globals([*safe, (statistic, 'builtins.getattr')])


def statistic(owner: object, name: str) -> Any:
    """Stand in for `getattr` in a pickled HistoryBuffer: return one of its own statistics.

    Raises:
        UnpicklingError: anything else is asked for.
    """
    if owner is not importlib.import_module('mmengine.logging').HistoryBuffer or name not in STATISTICS:
        raise pickle.UnpicklingError(f'the file asks for {name!r} of {owner!r}, which no checkpoint needs')
    return getattr(owner, name)


@contextlib.contextmanager
def substituted(owner: object, **parts: object) -> Iterator[None]:
    """Replace attributes of a module or an object by `parts` while the block runs."""
    originals = {name: getattr(owner, name) for name in parts}
    try:
        for name, part in parts.items():
            setattr(owner, name, part)
        yield
    finally:
        for name, original in originals.items():
            setattr(owner, name, original)
