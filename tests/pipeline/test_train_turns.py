"""Training runs whose streams take turns: one branch a step, resumed in the middle of a turn."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_datasets import publish

from pipeline.checkpoint import complete_checkpoints
from pipeline.meters import read_records

REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A very small model on small datasets."""
    root = tmp_path_factory.mktemp("turns")
    publish(str(root / "datasets" / "clips"), "clip", [10, 9])
    publish(str(root / "datasets" / "images"), "image", [9, 8])
    stream = {"pair_batch": 4, "view_batch": 4, "augment": {"pair": {"crop": [32, 32]}, "view": {"size": 32}}}
    content: dict[str, Any] = {
        "base": "quickstart",
        "out": str(root),
        "model": {
            "encoder": {"stem_channels": [4, 8], "stage_channels": [8, 8, 8, 8]},
            "flow": {"widths": [8, 8], "context_widths": [8, 8], "context_dilations": [1, 2], "coarsest_stride": 8},
            "expander": {"widths": [16, 16]},
        },
        "train": {"steps": 6, "log_every": 1, "checkpoint": {"every_steps": 3}, "stream": stream},
    }
    path = root / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def train(recipe: Path, name: str, *overrides: str) -> dict[int, dict[str, float]]:
    """Trains in the folder `name`; the records by step."""
    folder = recipe.parent / name
    words = [sys.executable, "-m", "pipeline.cli", "train", "--ranks", "1", str(recipe), f"train.run={folder}"]
    done = subprocess.run(
        [*words, f"tracking.uri=sqlite:///{folder}.db", *overrides],
        cwd=REPOSITORY, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {int(record["step"]): record for record in read_records(folder / "logs" / "metrics.jsonl")}


def branches(records: dict[int, dict[str, float]]) -> list[tuple[bool, bool]]:
    """Whether the terms of views and of pairs were computed, step by step."""
    return [("content" in records[step], "reconstruction" in records[step]) for step in range(1, 7)]


def test_steps_train_one_branch_after_the_other_and_a_resumed_run_keeps_the_turns(recipe: Path) -> None:
    mode = "train.stream.sampling=alternate-batch"
    whole = train(recipe, "run", mode)
    assert branches(whole) == [(True, False), (False, True)] * 3
    newest, older = complete_checkpoints(recipe.parent / "run")
    assert (newest.step, older.step) == (6, 3)
    shutil.rmtree(newest.folder)
    again = train(recipe, "run", mode)
    assert branches(again) == branches(whole)
    assert [again[step]["loss"] for step in range(1, 7)] == [whole[step]["loss"] for step in range(1, 7)]
