"""How settings of evaluations are checked."""

from __future__ import annotations

MAX_LEVEL = 6
"""Coarsest pyramid level; level l has stride 2**l."""


def require(condition: bool, found: str, expected: str) -> None:
    """Raises a `ValueError` that says what was found, what was expected and where to change it."""
    if not condition:
        raise ValueError(f"{found}; expected {expected}; change it in the recipe or on the command line")
