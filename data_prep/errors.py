"""The one error of data preparation that a user can act on."""

from __future__ import annotations


class DataError(ValueError):
    """Input, parameters or stored data that cannot be used (exit code 3 of the command line).

    The message has three parts: what was found, what was expected, what to do.
    """


class PlanMismatch(DataError):
    """A dataset was begun or published with another plan than the one asked for now."""


class AbsentKey(DataError):
    """A store has nothing under the key."""
