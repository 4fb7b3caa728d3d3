"""Drills on real runs, and what they say when something was not kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mcjepa.pipeline.cli.main import main
from mcjepa.pipeline.stages.drill import RunEnd, compare_ends, read_end
from tests.pipeline.small_recipe import write_small_recipe

ONE_RANK = ["train.stream.pair_batch=3", "train.stream.view_batch=5"]
"""One lane."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_recipe(tmp_path_factory.mktemp("drill"), engine={"zero_stage": 2, "threads": 1})


def drill(capsys: pytest.CaptureFixture[str], kind: str, *words: str) -> tuple[int, dict[str, Any]]:
    code = main(["drill", kind, *words, "--steps", "6", "--json"])
    record: dict[str, Any] = json.loads(capsys.readouterr().out)
    return code, record


@pytest.mark.slow
def test_a_preempted_run_keeps_everything(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, record = drill(capsys, "preempt", str(recipe), *ONE_RANK)
    assert code == 0 and record["differences"] == [] and record["ranks"] == 1
    done = record["disturbance"]
    assert done["code"] == 130 and done["starts"] == 2 and 1 <= done["step"] < 6


@pytest.mark.slow
def test_a_run_that_loses_a_rank_keeps_everything(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, record = drill(capsys, "node-loss", str(recipe), "--out", str(tmp_path / "out"))
    assert code == 0 and record["kept"] and record["ranks"] == 2
    assert record["disturbance"]["code"] not in (0, 130) and record["disturbance"]["starts"] == 2
    whole, found = (read_end(tmp_path / "out" / name / "run") for name in ("whole", "disturbed"))
    assert compare_ends(whole, found, 6) == [] and len(found.losses) == 6
    # The comparison is no formality: another seed's run is told apart in every respect.
    other = RunEnd({1: "0.5"}, {**whole.order, "seed": 1}, 4, "other")
    said = " ".join(compare_ends(whole, other, 6))
    assert all(word in said for word in ("no loss of steps", "loss of step 1", "order of samples", "weights", "step 4"))


@pytest.mark.slow
def test_a_run_whose_storage_fails_for_a_while_goes_on_by_itself(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a loading process, whose batches in memory must not be what fails."""
    code, record = drill(capsys, "storage", str(recipe), *ONE_RANK, "train.stream.workers=1")
    assert code == 0 and record["kept"]
    assert record["disturbance"]["code"] == 0 and record["disturbance"]["starts"] == 1


def test_a_step_that_was_trained_twice_with_another_loss_is_a_difference(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "metrics.jsonl"
    log.parent.mkdir()
    log.write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}\n{"step": 2, "loss": 0.125}\n{"step": 3, "l')
    found = read_end(tmp_path)
    assert found.losses == {1: "0.5", 2: "0.25 and 0.125"} and found.step == 0
    expected = RunEnd({1: "0.5", 2: "0.25"}, {}, 2, "")
    assert any(
        text.startswith("loss of step 2: 0.25 undisturbed, 0.25 and") for text in compare_ends(expected, found, 2)
    )


def test_what_cannot_be_drilled_is_refused(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    assert main(["drill", "preempt", str(recipe), "--out", str(tmp_path / "full")]) == 2
    assert "new or empty folder" in capsys.readouterr().err
    assert main(["drill", "node-loss", str(recipe), *ONE_RANK]) == 2
    assert "needs two ranks" in capsys.readouterr().err
    assert main(["drill", "storage", str(recipe), "train.stream.pairs=[{location: /nowhere}]"]) == 3
    assert "/nowhere/manifest.json is not there" in capsys.readouterr().err
    assert main(["drill", "storage", str(recipe), "--steps", "2"]) == 2
