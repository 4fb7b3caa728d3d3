"""The folders of a sweep's runs are numbered by the place of their values: with other lists their runs would be
continued with other values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mcjepa.data_prep.storage import absolute_location, open_store
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.recipe.files import apply_overrides, to_plain
from mcjepa.pipeline.recipe.recipe import Recipe
from mcjepa.pipeline.recipe.sweep import SweepRun, sweep_runs
from mcjepa.pipeline.recipe.validation import validate
from mcjepa.pipeline.run.folder import RECIPE
from mcjepa.pipeline.run.recipes import flatten


def check_sweep_folders(recipe: Recipe, plain: Mapping[str, Any]) -> None:
    """Refuses a sweep whose folders hold runs of other values.

    Args:
        recipe: with a sweep.
        plain: the same as plain data.

    Raises:
        UsageError: naming the folder, the key and both values.
    """
    assert recipe.sweep and recipe.train
    place = absolute_location(recipe.train.run)
    for run in sweep_runs(recipe.sweep, place):
        kept = _swept(_kept_recipe(run.run), recipe.sweep)
        wanted = _swept(_recipe_of(plain, run), recipe.sweep) if kept else {}
        if changed := [key for key in kept if key in wanted and kept[key] != wanted[key]]:
            key = changed[0]
            raise UsageError(
                f"{run.run} holds the run of {key}={kept[key]}, expected that of {key}={wanted[key]}: a sweep's "
                "folders are numbered by the place of their values; name another train.run, or put new values behind "
                f"the old ones of {next(iter(recipe.sweep))}"
            )


def _kept_recipe(run: str) -> dict[str, Any]:
    """What a run was trained with; nothing where there is none yet."""
    if "://" not in run and not Path(run).is_dir():
        return {}
    store = open_store(run)
    content = yaml.safe_load(store.read(RECIPE)) if store.exists(RECIPE) else None
    return content if isinstance(content, dict) else {}


def _recipe_of(plain: Mapping[str, Any], run: SweepRun) -> dict[str, Any]:
    content: dict[str, Any] = to_plain(validate(Recipe, apply_overrides(dict(plain), run.overrides), f"run {run.name}"))
    return content


def _swept(plain: Mapping[str, Any], sweep: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the keys that a sweep sets, and of those below them."""
    return {
        key: value
        for key, value in flatten(plain).items()
        if any(key == swept or key.startswith(f"{swept}.") for swept in sweep)
    }
