"""Importing this module makes mmagic 1.2.0 importable beside mmcv-lite, which has no compiled operations.

mmcv 2.1.0 with its operations is not built for current PyTorch. mmcv-lite omits their binary, `mmcv._ext`, but not the
modules that load it, and mmagic's models/editors import these whatever is to be trained. This module puts a stand-in in
the place of the missing `mmcv._ext`. Its operations raise an error when they are called; super-resolution networks call
none. Nothing is done where mmcv has its own `_ext`, or is not installed.

In a config: custom_imports = dict(imports=['nlsn_plugin.mmcv_lite'], allow_failed_imports=False)
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

from nlsn_plugin.errors import MissingToolboxError

NAME = 'mmcv._ext'


class WithoutOperations(ModuleType):
    """Stand-in for `mmcv._ext`: it has an operation of any name, which raises MissingToolboxError when called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__'):
            raise AttributeError(name)

        def refuse(*args: object, **kwargs: object) -> NoReturn:
            raise MissingToolboxError(f'mmcv-lite has no operation {name}: it needs mmcv with its compiled operations')

        return refuse


if importlib.util.find_spec('mmcv') and not importlib.util.find_spec(NAME) and NAME not in sys.modules:
    sys.modules[NAME] = WithoutOperations(NAME, 'Stands in for the binary that mmcv-lite lacks.')
    sys.modules[NAME].__spec__ = ModuleSpec(NAME, loader=None)  # mmengine takes mmcv for whole if it has a loader
