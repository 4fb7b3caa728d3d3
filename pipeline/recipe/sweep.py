"""Sweeps: the runs of a recipe's `sweep`, each a set of overrides."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.recipe.files import override

MOST_RUNS = 1000


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep."""

    name: str
    """Its values, for people."""
    run: str
    """Its folder or prefix."""
    overrides: tuple[str, ...]


def sweep_runs(sweep: Mapping[str, Sequence[Any]], run: str) -> list[SweepRun]:
    """Every combination of a sweep's values, the last key's changing fastest.

    Args:
        sweep: key of the recipe -> its values.
        run: `train.run`; the runs are below it.

    Raises:
        UsageError: a key has no values, or there are too many runs.

    >>> [(r.name, r.run) for r in sweep_runs({"train.seed": [1, 2]}, "out/run")]
    [('seed=1', 'out/run/sweep-000'), ('seed=2', 'out/run/sweep-001')]
    """
    empty = [key for key, values in sweep.items() if not values]
    count = 1
    for values in sweep.values():
        count *= len(values)
    if empty or not 1 <= count <= MOST_RUNS:
        found = f"no values of {empty[0]}" if empty else f"{count} runs"
        raise UsageError(f"sweep: {found}, expected lists of values and at most {MOST_RUNS} runs; shorten them")
    runs = []
    for number, values in enumerate(itertools.product(*sweep.values())):
        pairs = list(zip(sweep, values, strict=True))
        own = f"{run.rstrip('/')}/sweep-{number:03d}"
        name = ",".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in pairs)
        overrides = (*(override(key, value) for key, value in pairs), "sweep=null", override("train.run", own))
        runs.append(SweepRun(name, own, overrides))
    return runs
