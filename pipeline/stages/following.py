"""What comes after a stage: three commands that can be pasted as they stand, each with what it is for."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from mcjepa.pipeline.recipe.recipe import Recipe
from mcjepa.pipeline.run.folder import RECIPE, RESOLVED_RECIPE

WITHIN_CHAIN = "MCJEPA_WITHIN_CHAIN"
"""Set for stages that a quickstart runs: what comes next is its own to say."""
Following = Sequence[tuple[str, str]]
"""Commands and what they are for."""


def brief_path(path: Path) -> str:
    """The path from here where it is below, else the whole: what can be pasted here."""
    whole, here = path.absolute(), Path.cwd()
    return str(whole.relative_to(here) if whole.is_relative_to(here) else whole)


def after_prep(words: Sequence[str]) -> Following:
    """After `prep run`.

    Args:
        words: the recipe and its overrides, as they were given.
    """
    return _outside_chain(
        (_command("prep", "card", *words), "a page about each dataset"),
        (_command("plan", *words), "what is wrong with the training before it starts"),
        (_command("train", *words, "--ranks", "0"), "train, on all of this machine"),
    )


def after_training(recipe: Recipe, weights: Path | None) -> Following:
    """After `train`; the run's own recipe has all overrides."""
    assert recipe.train is not None
    run = recipe.train.run
    words = (run if "://" in run else brief_path(Path(run) / RECIPE),)
    if "://" in run:
        return ()
    scored = [(_command("eval", "all", *words), "scores, pictures and a report")] if recipe.eval else []
    exported = (
        [(_command("export", brief_path(weights), "--out", "exported"), "weights without the run")] if weights else []
    )
    return _outside_chain(
        *scored,
        (_command("ui", brief_path(Path(run))), "the run in MLflow"),
        *exported,
    )


def after_evaluation(recipe: Recipe, weights: str) -> Following:
    """After `eval all`."""
    resolved = brief_path(Path(recipe.out) / RESOLVED_RECIPE)
    return _outside_chain(
        (_command("ui", resolved), "all runs in MLflow"),
        (_command("eval", "compare", brief_path(Path(recipe.out) / "eval")), "evaluations of the run side by side"),
        (_command("export", brief_path(Path(weights)), "--out", "exported"), "weights without the run"),
    )


def after_quickstart(recipe: Recipe, weights: Path) -> Following:
    """After the whole chain."""
    out = Path(recipe.out)
    longer = [f"--out={brief_path(out.with_name(f'{out.name}-longer'))}", "train.steps=3000"]
    video = out / "corpus" / "moving-photos" / "train" / "videos" / "00000.mp4"
    inferred = _command("infer", brief_path(weights), brief_path(video), "--out", brief_path(out / "flow"))
    return (
        (_command("ui", brief_path(out)), "the three runs in MLflow"),
        (inferred, "flow of a video, as a video"),
        (_command("quickstart", *longer), "the same, trained for longer"),
    )


def _command(*words: str) -> str:
    return shlex.join(["mcjepa", *words])


def _outside_chain(*commands: tuple[str, str]) -> Following:
    return () if os.environ.get(WITHIN_CHAIN) else commands
