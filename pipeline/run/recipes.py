"""The recipes of a run beside the steps that they governed, and what a continued run may change of them.

    RUN/recipe.yaml                                the present one
    RUN/recipes/000001-from-step-000000000.yaml    the first start's
    RUN/recipes/000002-from-step-000004000.yaml    of a start that continued from step 4,000 with other settings

A step was trained by the recipe of the highest number that begins at or before it: a later start overrules the earlier
ones from its first step on.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mcjepa.data_prep.storage import atomic_write
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.run.folder import RECIPE

log = logging.getLogger(__name__)
RECIPES = "recipes"
KEPT_RECIPE = re.compile(r"(\d{6})-from-step-(\d{9})\.yaml")
ABSENT = "absent"
OF_TRAINING_ONLY = (
    "model.loss.", "model.encoder.size", "model.encoder.drop_path", "model.encoder.layer_scale",
    "model.encoder.init_std", "model.encoder.activation_checkpointing", "model.flow.level_dropout",
    "model.flow.finest_passes", "model.flow.reconcile",
)  # fmt: skip
"""Keys of the model that do not change what its weights mean: the objective, how they began, what training costs,
how the flow is mended in use."""
OF_USE = ("model.flow.finest_passes", "model.flow.reconcile", "model.encoder.activation_checkpointing")
"""Those of them that say nothing about how the weights were trained."""
OF_THE_RESULT = (
    "model.", "train.terms.", "train.optimizer.", "train.stream.augment.", "train.init_from", "train.frozen_encoder",
    "train.engine.precision", "train.engine.accumulation_steps",
)  # fmt: skip
"""Keys that weights are the result of, beside what checkpoints compare."""
OF_A_MACHINE = ("train.checkpoint.scratch", "train.checkpoint.grace_s", "train.stream.store.cache_dir")
"""Local folders and the time that a site leaves for saving: a run that moves to another machine is the same run."""
MOST_SHOWN = 20


@dataclass(frozen=True)
class Change:
    """A key of a recipe that has another value now."""

    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.before} -> {self.now}"


@dataclass(frozen=True)
class Continuation:
    """How a start of a run relates to what was there."""

    step: int = 0
    """Steps done before it."""
    changes: tuple[Change, ...] = ()
    """Against the recipe that governed the steps before it."""
    other_recipe: bool = False
    """Whether the last start, whose steps may be lost, had another recipe."""


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted names; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat.update(flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return flat


def changes_of(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[Change, ...]:
    """The keys that differ between two whole recipes, in order; what goes by the machine is no difference."""
    old, new = flatten(before), flatten(now)
    keys = sorted(key for key in {*old, *new} - {*OF_A_MACHINE} if old.get(key, ABSENT) != new.get(key, ABSENT))
    return tuple(Change(key, old.get(key, ABSENT), new.get(key, ABSENT)) for key in keys)


class RunRecipes:
    """The recipes of one run.

    Args:
        run: its local folder.
    """

    def __init__(self, run: Path) -> None:
        self._run, self._folder = run, run / RECIPES

    def continuation(self, recipe: Mapping[str, Any], step: int) -> Continuation:
        """Compares a recipe with those of earlier starts.

        Args:
            recipe: the present one, whole.
            step: steps done before this start.
        """
        now, starts = as_written(recipe), self._starts()
        last = _read(starts[-1][1]) if starts else _read(self._run / RECIPE)
        if last is None:
            return Continuation(step)
        governed = next((path for first, path in reversed(starts) if first < step), None)
        before = _read(governed) if governed else last
        changes = changes_of(before or last, now) if step else ()
        return Continuation(step, changes, bool(changes_of(last, now)))

    def keep(self, recipe: Mapping[str, Any], step: int) -> Path:
        """Writes the recipe of a start that continues from `step`; returns recipe.yaml."""
        present, starts = self._run / RECIPE, self._starts()
        last = _read(starts[-1][1]) if starts else None
        repeated = last is not None and starts[-1][0] <= step and not changes_of(last, as_written(recipe))
        content = yaml.safe_dump(dict(recipe), sort_keys=False).encode()
        if not repeated:
            atomic_write(self._folder / f"{len(starts) + 1:06d}-from-step-{step:09d}.yaml", content)
        atomic_write(present, content)
        return present

    def _starts(self) -> list[tuple[int, Path]]:
        """First step and file of every recipe, in the order of the starts."""
        found = [(KEPT_RECIPE.fullmatch(path.name), path) for path in sorted(self._folder.glob("*.yaml"))]
        return [(int(match.group(2)), path) for match, path in found if match]


def as_written(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe as it is read back from its file."""
    content: dict[str, Any] = yaml.safe_load(yaml.safe_dump(dict(recipe), sort_keys=False))
    return content


def _read(path: Path) -> dict[str, Any] | None:
    """A recipe that was kept; None where it is absent or damaged: the run's checkpoints count, not its notes."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        if path.exists():
            log.warning("%s cannot be read (%s); the recipe is not compared with it", path, error)
        return None
    return content if isinstance(content, dict) else None


def say_changes(continuation: Continuation) -> None:
    """Logs what a continued run does otherwise from here on."""
    changes = continuation.changes
    if changes:
        lines = [f"  {change}" for change in changes[:MOST_SHOWN]]
        if len(changes) > MOST_SHOWN:
            lines.append(f"  and {len(changes) - MOST_SHOWN} more")
        log.warning(
            "continuing from step %d with another recipe; %s keeps the one before:\n%s",
            continuation.step, RECIPES, "\n".join(lines),
        )  # fmt: skip


def check_model_changes(continuation: Continuation, allowed: Sequence[str]) -> None:
    """Refuses to give the weights of a run another meaning by an oversight.

    Args:
        continuation: what has changed.
        allowed: `train.allow_model_changes`, keys below `model`.

    Raises:
        UsageError: a key of the model that changes what its weights mean, and is not allowed by name.
    """
    asked = {f"model.{key.removeprefix('model.')}" for key in allowed}
    refused = [
        change
        for change in continuation.changes
        if change.key.startswith("model.")
        and not change.key.startswith(OF_TRAINING_ONLY)
        and ABSENT not in (change.before, change.now)
        and change.key not in asked
    ]
    if refused:
        names = ",".join(change.key.removeprefix("model.") for change in refused)
        raise UsageError(
            f"resume refused: {'; '.join(map(str, refused))}: the weights of step {continuation.step} mean something "
            f"else then; restore the recipe's model part, choose another folder with train.run=DIR, or ask for it with "
            f"train.allow_model_changes=[{names}]"
        )


def check_steps_left(continuation: Continuation, steps: int, allowed: Sequence[str]) -> None:
    """Refuses to make a finished run the result of a recipe that has trained none of its steps.

    Args:
        continuation: what has changed.
        steps: of the run, by its present recipe.
        allowed: `train.allow_model_changes`.

    Raises:
        UsageError: no step is left, and a key is changed that the weights are the result of.
    """
    asked = {f"model.{key.removeprefix('model.')}" for key in allowed} | {*OF_USE}
    refused = [
        change
        for change in continuation.changes
        if change.key.startswith(OF_THE_RESULT)
        and ABSENT not in (change.before, change.now)
        and change.key not in asked
    ]
    if refused and continuation.step >= steps:
        raise UsageError(
            f"all {steps} steps of the run were trained with another recipe, expected steps left for the present one "
            f"({'; '.join(map(str, refused[:MOST_SHOWN]))}); restore these, raise train.steps, or choose another "
            "folder with train.run=DIR"
        )
