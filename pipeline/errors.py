"""The error of the pipeline that a user mends by changing a recipe or a command line."""

from __future__ import annotations


class UsageError(ValueError):
    """Settings that cannot be run as they are (exit code 2 of the command line).

    The message has three parts: what was found, what was expected, what to do.
    """


class RunError(RuntimeError):
    """A run that cannot go on although its settings were accepted (exit code 3)."""
