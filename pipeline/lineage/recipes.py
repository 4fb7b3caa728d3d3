"""The recipes of a run as values by key, each with the steps that it governed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from mcjepa.pipeline.lineage.artifact import STREAMS, Start
from mcjepa.pipeline.run.recipes import ABSENT, flatten

DATA = tuple(f"train.stream.{name}" for name in STREAMS)
"""Keys that name data, which go by their ids."""


def governing(starts: Sequence[Start]) -> list[Start]:
    """The starts whose recipes governed steps that count, in the order of the steps: a later one overrules those that
    began at its first step or behind it.

    >>> [start.after_step for start in governing([Start(after_step=n, recipe={}) for n in (0, 6, 4)])]
    [0, 4]
    """
    found: list[Start] = []
    for start in starts:
        while found and found[-1].after_step >= start.after_step:
            found.pop()
        found.append(start)
    return found


def history(starts: Sequence[Start]) -> dict[str, Any]:
    """Every key with its value, or `value, value from step N` where it changed on the way."""
    recipes = [(start.after_step, flatten(placeless(start.recipe))) for start in governing(starts)]
    told: dict[str, Any] = {}
    for key in dict.fromkeys(key for _, recipe in recipes for key in recipe if not key.startswith(DATA)):
        values = [(after, recipe.get(key, ABSENT)) for after, recipe in recipes]
        steps = [values[0], *(now for before, now in pairwise(values) if now[1] != before[1])]
        plain = [f"{value} from step {after + 1}" if after else f"{value}" for after, value in steps]
        told[key] = values[0][1] if len(steps) == 1 else ", ".join(plain)
    return told


def changes(starts: Sequence[Start]) -> dict[str, str]:
    """The keys whose values changed on the way, as `history` tells them."""
    recipes = [flatten(placeless(start.recipe)) for start in governing(starts)]
    told = history(starts)
    return {
        key: str(value)
        for key, value in told.items()
        if any(recipe.get(key, ABSENT) != recipes[0].get(key, ABSENT) for recipe in recipes)
    }


def placeless(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe whose paths below `out` say so: two results in two places have the same otherwise."""
    out = str(recipe.get("out", ""))

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list):
            return [plain(item) for item in value]
        return value.replace(out, "${out}") if out and isinstance(value, str) and value != out else value

    return {key: value if key == "out" else plain(value) for key, value in recipe.items()}
