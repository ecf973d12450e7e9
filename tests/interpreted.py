"""Triton's interpreter, which runs kernels where there is no GPU, made quicker."""

from __future__ import annotations

import contextlib
from typing import Any


def quicken() -> None:
    """Let a function that a kernel calls find Triton's language as it is.

    The interpreter exchanges its parts for its own as a kernel begins, and again in each of these calls: where that is
    done already it changes nothing, and takes most of the time.
    """
    with contextlib.suppress(ImportError):
        from triton import language
        from triton.runtime.interpreter import InterpretedFunction

        exchange_and_call = InterpretedFunction.__call__
        if not hasattr(InterpretedFunction, 'rewrite') or not hasattr(language.core, 'is_builtin'):
            return  # of another version

        def call(function: Any, *arguments: Any, **options: Any) -> Any:
            seen = [part for part in function.fn.__globals__.values() if part is language or part is language.core]
            if any(language.core.is_builtin(part.load) for part in seen):
                return exchange_and_call(function, *arguments, **options)
            return function.rewrite()(*arguments, **options)

        InterpretedFunction.__call__ = call
