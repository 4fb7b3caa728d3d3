"""The one error of data preparation that a user can act on, and the advice for a mistyped name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DataError(ValueError):
    """Input, parameters or stored data that cannot be used (exit code 3 of the command line).

    The message has three parts: what was found, what was expected, what to do.
    """


class PlanMismatch(DataError):
    """A dataset was begun or published with another plan than the one asked for now."""


class AbsentKey(DataError):
    """A store has nothing under the key."""


def nearest_name(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Advice for a name that nobody knows: the nearest known one, with the prefix before it, or all of them.

    >>> nearest_name("trian", ["train", "plan"]), nearest_name("xyz", ["train", "plan"])
    ("did you mean 'train'?", 'expected one of train, plan')
    """
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {prefix + near[0]!r}?" if near else f"expected one of {', '.join(names)}"
