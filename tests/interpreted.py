"""Speed-up of Triton's interpreter, which runs kernels where there is no GPU."""

from __future__ import annotations

import contextlib
from typing import Any


def quicken() -> None:
    """Make functions that a kernel calls skip patching Triton's language again.

    The interpreter replaces parts of the language by its own as a kernel begins, and again in each call of a function
    from the kernel. There it changes nothing, since they are replaced already, but takes most of the time.
    """
    with contextlib.suppress(ImportError):
        from triton import language
        from triton.runtime.interpreter import InterpretedFunction

        exchange_and_call = InterpretedFunction.__call__
        if not hasattr(InterpretedFunction, 'rewrite') or not hasattr(language.core, 'is_builtin'):
            return  # a version of Triton with another interpreter

        def call(function: Any, *arguments: Any, **options: Any) -> Any:
            seen = [part for part in function.fn.__globals__.values() if part is language or part is language.core]
            if any(language.core.is_builtin(part.load) for part in seen):
                return exchange_and_call(function, *arguments, **options)
            return function.rewrite()(*arguments, **options)

        InterpretedFunction.__call__ = call
