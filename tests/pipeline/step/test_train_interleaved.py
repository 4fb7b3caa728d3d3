"""Training runs whose streams take turns: one branch a step, resumed in the middle of a round."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small_recipe import train_small, write_small_recipe

from mcjepa.pipeline.checkpoint import complete_checkpoints
from mcjepa.pipeline.run.folder import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
OVERRIDES = ("train.stream.sampling=alternate-batch", "train.steps=6", "train.checkpoint.every_steps=3")


def train(recipe: Path, run: Path) -> dict[int, dict[str, float]]:
    """Trains or goes on; the records by step."""
    done = train_small(recipe, run, *OVERRIDES)
    assert done.returncode == 0, done.stderr
    return {int(record["step"]): record for record in read_metrics(run / "logs" / "metrics.jsonl")}


def branches(records: dict[int, dict[str, float]]) -> list[tuple[bool, bool]]:
    """Whether the terms of views and of pairs were computed, step by step."""
    return [("content" in records[step], "reconstruction" in records[step]) for step in range(1, 7)]


def test_steps_train_one_branch_after_the_other_and_a_resumed_run_keeps_the_turns(tmp_path: Path) -> None:
    recipe, run = write_small_recipe(tmp_path), tmp_path / "run"
    whole = train(recipe, run)
    assert branches(whole) == [(True, False), (False, True)] * 3
    done = [round(whole[step]["gflops_per_s"] * whole[step]["seconds_per_step"], 6) for step in range(1, 7)]
    assert done == [done[0], done[1]] * 3 and done[0] != done[1]  # operations of a step, of views and of pairs
    assert [found.step for found in complete_checkpoints(run)] == [6, 3]
    shutil.rmtree(run / "checkpoints" / "step-000000006")
    (run / "logs" / "metrics.jsonl").rename(tmp_path / "before.jsonl")
    again = train(recipe, run)
    assert sorted(again) == [4, 5, 6]
    assert branches(whole | again) == branches(whole)
    assert [again[step]["loss"] for step in (4, 5, 6)] == [whole[step]["loss"] for step in (4, 5, 6)]
