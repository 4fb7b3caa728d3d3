"""`mcjepa launch` without Slurm: dry runs, sweeps, jobs in the background and in the terminal."""

from __future__ import annotations

import json
import time
from pathlib import Path

import psutil
import pytest
import yaml
from mlflow.tracking import MlflowClient

from pipeline.cli.launch_sweep import sweep_runs
from pipeline.cli.main import main
from pipeline.errors import UsageError
from tests.cluster.launch_recipe import STEPS, launch, losses, steps_written
from tests.pipeline.small_recipe import write_small_recipe
from tests.processes import wait_until_ended


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_small_recipe(
        tmp_path, steps=STEPS, checkpoint={"every_steps": 4}, engine={"zero_stage": 2, "threads": 1}
    )


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Two ranks in the background of this machine."""
    content = {
        "kind": "local",
        "default": {"tasks_per_node": 2},
        "grace_s": 40,
        "environment": {"OMP_NUM_THREADS": "1"},
    }
    path = tmp_path / "here.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def wait_for(run: Path, steps: int) -> None:
    deadline = time.monotonic() + 200
    while steps_written(run) < steps:
        assert time.monotonic() < deadline, launch("logs", str(run))
        time.sleep(0.1)


def wait_idle(run: Path) -> str:
    deadline = time.monotonic() + 200
    while (state := json.loads(launch("status", str(run), "--json"))[0]["state"]) in ("PENDING", "RUNNING"):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    return str(state)


def test_a_dry_run_prints_the_script_and_writes_nothing(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(recipe.parent.rglob("*"))
    assert main(["launch", "train", str(recipe), "--site", "slurm", "--nodes", "2", "--dry-run"]) == 0
    script = capsys.readouterr().out
    assert (
        script.startswith("#!/bin/bash")
        and "#SBATCH --nodes=2" in script
        and sorted(recipe.parent.rglob("*")) == before
    )
    assert main(["launch", "train", str(recipe), "--site", "slurm", "--dry-run", "--json"]) == 0
    command = json.loads(capsys.readouterr().out)["commands"][0]
    assert "train.checkpoint.grace_s=110" in command and f"train.run={recipe.parent}/run" in command


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--site", "nowhere"], "no site 'nowhere'"),
        (["train", "--site", "slurm", "--nodes", "3"], "world size 3 does not divide"),
        (["train", "--site", "local", "--nodes", "2"], "2 nodes asked of a local site, which has one"),
        (["prep", "--site", "slurm", "sweep={train.seed: [1, 2]}"], "launch prep of a recipe with a sweep"),
        (
            ["train", "--site", "slurm", "--with-eval", "any", "sweep={train.seed: [1, 2]}"],
            "--with-eval with a sweep of 2",
        ),
        (["train", "--site", "slurm", "sweep={train.seed: []}"], "no values of train.seed"),
        (["status"], "nothing was launched for"),
    ],
)
def test_what_cannot_be_launched_is_one_clear_error(
    recipe: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["launch", words[0], str(recipe), *words[1:]]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_without_slurm_here_the_way_out_is_named(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert main(["launch", "train", str(recipe), "--site", "slurm"]) == 2
    assert "no sbatch and srun on the PATH" in capsys.readouterr().err


def test_every_combination_of_a_sweep_is_a_run_of_its_own() -> None:
    runs = sweep_runs({"train.optimizer.encoder_lr": [1e-4, 3e-4], "train.seed": [1, 2]}, "s3://b/run/")
    assert [run.name for run in runs] == [f"encoder_lr={lr},seed={s}" for lr in (1e-4, 3e-4) for s in (1, 2)]
    assert runs[3].overrides == (
        "train.optimizer.encoder_lr=0.0003", "train.seed=2", "sweep=null", "train.run=s3://b/run/sweep-003",
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"1000000 runs, expected lists of values and at most 1000"):
        sweep_runs({"a": list(range(1000)), "b": list(range(1000))}, "r")


def test_a_recipe_with_a_sweep_is_not_trained_as_one_run(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(recipe), "sweep={train.seed: [1]}"]) == 2
    assert "has a sweep over train.seed, expected one run" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_a_run_in_the_background_survives_a_dead_rank_a_cancel_and_a_resume(
    recipe: Path, here: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    launch("train", str(recipe), "--site", str(here))
    wait_for(run, 3)
    ranks = [p for p in psutil.process_iter() if _is_rank(p, run)]
    assert len(ranks) == 2
    ranks[1].kill()
    wait_for(run, steps_written(run) + 3)
    assert "cancelled" in launch("cancel", str(run))
    assert wait_until_ended([p for p in psutil.process_iter() if _is_rank(p, run)], 5) == []
    launch("resume", str(run))
    launch("train", str(recipe), "--site", str(here), code=2)  # it is launched already
    assert wait_idle(run) == "COMPLETED", launch("logs", str(run))
    assert sorted(losses(run)) == list(range(1, STEPS + 1))


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_a_sweeps_runs_are_children_of_one_mlflow_run(recipe: Path, tmp_path: Path) -> None:
    said = launch("train", str(recipe), "--site", "debug", "train.steps=2", "sweep={train.seed: [1, 2]}")
    assert "trained 2 steps" in said
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    parent = [r.info.run_id for r in runs if r.data.tags["mcjepa.stage"] == "sweep"]
    children = [r for r in runs if r.data.tags["mcjepa.stage"] == "train"]
    assert len(parent) == 1 and {r.data.tags["mlflow.parentRunId"] for r in children} == set(parent)
    assert sorted(r.data.params["train.seed"] for r in children) == ["1", "2"]
    assert losses(tmp_path / "run" / "sweep-000") != losses(tmp_path / "run" / "sweep-001")


def _is_rank(process: psutil.Process, run: Path) -> bool:
    try:
        return f"train.run={run}" in process.cmdline() and "RANK" in process.environ()
    except psutil.Error:
        return False
