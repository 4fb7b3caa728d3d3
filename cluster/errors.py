"""The error of a launch that the user mends by another command line or site file."""

from __future__ import annotations


class LaunchError(ValueError):
    """What was asked cannot be launched as it is; the message says what was found, expected, and what to do."""
