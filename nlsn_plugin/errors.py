"""Errors a user can cause and mend. Commands print them as one line; any other is a defect and keeps its trace."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can put right: the message says what, where, and the nearest valid choice."""

    status = 1
    """What a command exits with."""


class ArgumentError(UserError, ValueError):
    """A bad argument: the message names it, its value and what is allowed."""


class CheckpointError(UserError, RuntimeError):
    """Weights that cannot be read, or that do not belong to the network."""


class MissingToolboxError(UserError, ImportError):
    """A toolbox is needed and is absent or broken: the message says what to type."""


class BackendError(UserError, RuntimeError):
    """A backend asked for by name cannot run here."""


class OptionError(UserError):
    """Mistakes in an option file or on the command line, a line for each."""


class DataError(UserError):
    """An image, or a store of images, that cannot be read: the message names the file and the key."""


class SaveError(UserError):
    """A state that could not be written; what was written before is intact."""


class NonFiniteLossError(UserError):
    """Too many updates were not finite: the message names the images."""


class InterruptedRunError(UserError):
    """A signal ended the run, which can go on from where it was saved last."""

    status = 75  # of sysexits.h: try again later


class ExportError(UserError):
    """A network that cannot be written as a graph, or whose graph computes something else."""


FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What networks of others raise on arguments, and on inputs, that are not theirs."""


def first_line(error: BaseException) -> str:
    """What an error of others says, in one line; with its class where that is half of what it says."""
    line = next((line for line in str(error).splitlines() if line.strip()), '')
    kind = type(error).__name__
    if not line:
        return kind
    return f'{kind}: {line}' if isinstance(error, (LookupError, ArithmeticError)) else line
