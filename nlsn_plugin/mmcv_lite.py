"""Importing this lets mmagic 1.2.0 be imported beside mmcv-lite, which has no compiled operations.

mmcv 2.1.0 with its operations is not built for today's PyTorch, and mmcv-lite leaves their binary `mmcv._ext` out,
but not the modules that load it. mmagic's models/editors import these whatever is to be trained. Here an `mmcv._ext`
takes the place of the missing one whose operations raise an error when they are called: super-resolution networks call
none. Where mmcv has its own, or is not installed, nothing is done.

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
    """Has every operation by name; none can be called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__'):
            raise AttributeError(name)

        def refuse(*args: object, **kwargs: object) -> NoReturn:
            raise MissingToolboxError(f'mmcv-lite has no operation {name}: it needs mmcv with its compiled operations')

        return refuse


if importlib.util.find_spec('mmcv') and not importlib.util.find_spec(NAME) and NAME not in sys.modules:
    sys.modules[NAME] = WithoutOperations(NAME, 'Stands in for the binary that mmcv-lite lacks.')
    sys.modules[NAME].__spec__ = ModuleSpec(NAME, loader=None)  # by which mmengine sees that mmcv is not whole
