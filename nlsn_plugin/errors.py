"""Errors that a user can cause and put right. Commands print them without a traceback; any other error is a defect."""

from __future__ import annotations


class UserError(Exception):
    """An error that the user can put right: the message says what is wrong, where, and the nearest valid choice."""

    status = 1
    """Exit status of a command that ends with this error."""


class ArgumentError(UserError, ValueError):
    """An argument is invalid: the message names it, its value and what is allowed."""


class CheckpointError(UserError, RuntimeError):
    """Weights cannot be read, or do not belong to the network."""


class MissingToolboxError(UserError, ImportError):
    """A toolbox that is needed is absent or broken: the message says what to type, or why it does not import."""


class BackendError(UserError, RuntimeError):
    """A backend that was asked for by name cannot run here."""


class OptionError(UserError):
    """Mistakes in an option file or on the command line, one line for each."""


class DataError(UserError):
    """An image, or a store of images, cannot be used: the message names the file and the key."""


class SaveError(UserError):
    """A file or folder could not be written; what was written before is intact."""


class NonFiniteLossError(UserError):
    """Too many updates were not finite: the message names the images."""


class InterruptedRunError(UserError):
    """A signal ended the run, which can be resumed from its last saved state."""

    status = 75  # EX_TEMPFAIL of sysexits.h: try again later


class ExportError(UserError):
    """A network cannot be written as a graph, or its graph computes something else."""


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
"""What code outside this package raises on arguments or inputs that it does not take."""


def first_line(error: BaseException) -> str:
    """First line of an error's message, after its class where the message alone says little, as of a KeyError."""
    line = next((line for line in str(error).splitlines() if line.strip()), '')
    kind = type(error).__name__
    if not line:
        return kind
    return f'{kind}: {line}' if isinstance(error, (LookupError, ArithmeticError)) else line
