"""A recipe cut to a few steps in a folder of its own: what is measured and rehearsed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mcjepa.pipeline.run.folder import RECIPE
from mcjepa.pipeline.settings.train import MOTION_TERMS


def write_short_recipe(plain: Mapping[str, Any], folder: Path, steps: int, every_steps: int) -> Path:
    """Writes a resolved recipe with `steps` steps and everything of it below `folder`.

    All loss terms count from the first step on, every step is logged, and nothing is drawn, uploaded or evaluated.

    Args:
        plain: the whole resolved recipe as plain data.
        folder: is made.
        steps: of the run.
        every_steps: between checkpoints.

    Returns:
        The recipe's file.
    """
    train = dict(plain["train"])
    terms = dict(train["terms"])
    for name in (*MOTION_TERMS, "content"):
        terms[name] = {**terms[name], "start_step": 0, "start_epoch": 0.0, "warmup_epochs": 0.0}
    scratch = {"keep_every_steps": 0, "best_metric": "", "scratch": "", "keep_last": steps}
    train |= {
        "run": str(folder / "run"), "steps": steps, "epochs": 0.0, "terms": terms, "log_every": 1, "replay": "",
        "optimizer": {**train["optimizer"], "warmup_epochs": None, "warmup_steps": 1},
        "checkpoint": {**train["checkpoint"], **scratch, "every_steps": every_steps},
        "meters": {**train["meters"], "pictures_every": 0},
    }  # fmt: skip
    tracking = {**plain["tracking"], "uri": f"sqlite:///{folder}/mlflow.db", "artifacts": str(folder / "artifacts")}
    content = {**plain, "out": str(folder), "train": train, "tracking": tracking, "prep": None, "eval": None}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RECIPE
    path.write_text(yaml.safe_dump({**content, "sweep": None}, sort_keys=False), encoding="utf-8")
    return path
