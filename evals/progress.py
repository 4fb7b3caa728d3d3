"""What an evaluation tells its caller while it runs, and the choice of items under a cap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class EvalEvent:
    """One step of progress."""

    score: str
    """Name of the score under way, such as flow/sintel-clean."""

    phase: str
    """What is being done: pairs, encode, head, frames, pictures."""

    done: int
    """Items of the phase done."""

    total: int
    """Items of the phase in all."""


OnEvent = Callable[[EvalEvent], None]
"""Called often and from the evaluation's own thread; it must return quickly."""


def silent(event: EvalEvent) -> None:
    """Takes an event and does nothing: the default listener."""


def evenly_spaced(items: Sequence[Item], most: int) -> list[Item]:
    """At most `most` items spread evenly over the whole list, in order; all of them if `most` is 0.

    >>> evenly_spaced([0, 1, 2, 3, 4, 5], 3)
    [0, 2, 4]
    """
    if most <= 0 or most >= len(items):
        return list(items)
    return [items[index * len(items) // most] for index in range(most)]
