"""A recipe of a very small model on small datasets, and the command that trains it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.pipeline.small_datasets import publish

REPOSITORY = Path(__file__).resolve().parents[2]


def write_small_recipe(root: Path, **train: Any) -> Path:
    """Publishes small datasets below `root` and writes the recipe beside them; `train` replaces parts of its own."""
    publish(str(root / "datasets" / "clips"), "clip", [10, 9, 7])
    publish(str(root / "datasets" / "images"), "image", [20, 17])
    content: dict[str, Any] = {
        "base": "quickstart",
        "out": str(root),
        "model": {
            "encoder": {"stem_channels": [4, 8], "stage_channels": [8, 8, 8, 8]},
            "flow": {"widths": [8, 8], "context_widths": [8, 8], "context_dilations": [1, 2], "coarsest_stride": 8},
            "expander": {"widths": [16, 16]},
        },
        "train": {
            "steps": 4,
            "log_every": 1,
            "checkpoint": {"every_steps": 2},
            "stream": {"pair_batch": 4, "view_batch": 4, "augment": {"pair": {"crop": [32, 32]}, "view": {"size": 32}}},
            **train,
        },
        "tracking": {"uri": f"sqlite:///{root}/mlflow.db", "artifacts": str(root / "artifacts")},
    }
    path = root / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def train_small(recipe: Path, run: Path, *overrides: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    """Trains the recipe in the folder `run` by the command line."""
    words = [sys.executable, "-m", "mcjepa", "train", "--ranks", str(ranks), str(recipe)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run(
        [*words, f"train.run={run}", *overrides],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True,
    )  # fmt: skip
