"""Errors a user can cause and mend. Commands print them as one line; any other is a defect and keeps its trace."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can put right: the message says what, where, and the nearest valid choice."""


class ArgumentError(UserError, ValueError):
    """A bad argument: the message names it, its value and what is allowed."""


class CheckpointError(UserError, RuntimeError):
    """Weights that cannot be read, or that do not belong to the network."""


class MissingToolboxError(UserError, ImportError):
    """A toolbox is needed and is absent or broken: the message says what to type."""


class BackendError(UserError, RuntimeError):
    """A backend asked for by name cannot run here."""
