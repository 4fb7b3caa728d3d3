"""What the kinds of evaluation share: progress, torch's threads, sets by name, items under a cap, checks of settings.

Settings import this: it loads torch only where it is asked to count its threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mcjepa.data_prep.errors import DataError

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


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Torch computes with `count` CPU threads inside (0: as before), and as before afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def set_reader(readers: Mapping[str, Callable[..., Any]], name: str, field: str) -> Callable[..., Any]:
    """The reader of a set.

    Raises:
        DataError: there is no such set; `field` is the setting that names it.
    """
    if name not in readers:
        raise DataError(f"{field} names the set {name!r}; expected one of {sorted(readers)}; change the recipe")
    return readers[name]


def set_folder(root: str, name: str) -> Path:
    """The folder of a set.

    Raises:
        DataError: there is none.
    """
    if not root or not Path(root).is_dir():
        raise DataError(
            f"no folder {root!r} for the set {name}; expected the one its archive unpacks to; pass its path as root"
        )
    return Path(root)


def nothing_scored(what: str, failed: Sequence[str], expected: str) -> DataError:
    """The error of a set of which no item can be scored: the first item's reason, which has its own advice.

    Args:
        what: the set.
        failed: its items that failed, each "name: reason"; empty where it has none at all.
        expected: what would do.
    """
    if failed:
        count = f"none of its {len(failed)} items can be scored; the first: " if len(failed) > 1 else ""
        return DataError(f"{what}: {count}{failed[0]}")
    return DataError(f"{what} has nothing to score; expected {expected}; check the folder")


MAX_LEVEL = 6
"""Coarsest pyramid level; level l has stride 2**l."""


def require(condition: bool, found: str, expected: str) -> None:
    """Raises a `ValueError` that says what was found, what was expected and where to change it."""
    if not condition:
        raise ValueError(f"{found}; expected {expected}; change it in the recipe or on the command line")
