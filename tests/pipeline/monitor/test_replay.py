"""Bad steps of real runs, and running them again."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from small_recipe import train_small, write_small_recipe

import mcjepa.pipeline.train
from mcjepa.pipeline.recipe.recipe import load_recipe
from mcjepa.pipeline.run.folder import read_metrics
from mcjepa.pipeline.stream.batches import StepBatch
from mcjepa.pipeline.stream.loader import StepLoader

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_recipe(tmp_path_factory.mktemp("replay"))


def test_a_step_that_is_run_again_gives_the_recorded_terms(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = train_small(recipe, run, "train.steps=3")
    assert done.returncode == 0, done.stderr
    bad = train_small(recipe, run, "train.steps=9", "train.max_bad_steps=2", "train.terms.smoothness.weight=1.0e+40")
    assert bad.returncode == 3 and "in a row had a non-finite loss" in bad.stderr, bad.stderr
    records = sorted((run / "bad_steps").glob("step-*.json"))
    assert [path.name for path in records] == [f"step-{step:09d}-rank-00000.json" for step in (3, 4)]
    again = train_small(recipe, run, f"train.replay={records[0]}", "train.steps=9")
    assert again.returncode == 0, again.stderr
    assert "the step's own weights" in again.stdout and "samples as recorded" in again.stdout
    report = json.loads((run / "bad_steps" / "replay-000000003-rank-00000.json").read_text())
    assert report["terms"] == json.loads(records[0].read_text())["terms"]
    assert report["loss"] == "inf" and all(report["finite_samples"]["pairs"])


def test_a_nan_image_is_skipped_recorded_and_the_run_goes_on(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Spoiled:
        """The run's loader, with a pixel of one step replaced by NaN, as a broken memory would."""

        def __init__(self, loader: StepLoader) -> None:
            self._loader = loader

        def __getattr__(self, name: str) -> object:
            return getattr(self._loader, name)

        def __iter__(self) -> Iterator[StepBatch]:
            for batch in self._loader:
                if batch.step == 1 and batch.views:
                    batch.views.view0[2, 1, 5, 5] = math.nan
                yield batch

    real = mcjepa.pipeline.train.build_loader
    monkeypatch.setattr(mcjepa.pipeline.train, "build_loader", lambda *a, **k: Spoiled(real(*a, **k)))
    run = tmp_path / "run"
    loaded, plain = load_recipe(str(recipe), [f"train.run={run}"])
    assert loaded.train
    with mock.patch.dict(os.environ):  # the world's variables are this run's only
        report = mcjepa.pipeline.train.train(loaded.train, loaded.model, loaded.tracking, plain, lambda event: None)
    assert (report.steps, report.finished, report.bad_steps) == (4, True, 1)
    (record,) = [json.loads(path.read_text()) for path in (run / "bad_steps").glob("*.json")]
    assert (record["step"], record["reason"]) == (1, "batch")
    assert record["finite_samples"]["views"] == [True, True, False, True]
    losses = {int(r["step"]): r.get("loss") for r in read_metrics(run / "logs" / "metrics.jsonl")}
    assert losses[2] is None and all(math.isfinite(losses[step] or math.nan) for step in (1, 3, 4))
    exact = train_small(
        recipe, run, f"train.replay={run}/bad_steps/step-000000001-rank-00000.json", "train.replay_exact=true"
    )
    assert exact.returncode == 0, exact.stderr
    assert "views: 4 samples, all finite" in exact.stdout  # the stored sample is good: the fault came after reading


def test_a_step_before_the_first_checkpoint_is_run_again_as_it_was_trained(recipe: Path, tmp_path: Path) -> None:
    first = train_small(recipe, tmp_path / "first", "train.steps=1")
    assert first.returncode == 0, first.stderr
    started = [f"train.init_from={tmp_path}/first/weights/step-000000001", "train.frozen_encoder=true", "train.steps=2"]
    ways = [*started, "train.engine.accumulation_steps=2", "train.engine.split_statistics=true"]
    run, bad = tmp_path / "run", "train.terms.smoothness.weight=1.0e+40"
    done = train_small(recipe, run, *ways, "train.max_bad_steps=1", bad)
    assert done.returncode == 3 and not list((run / "checkpoints").glob("*/manifest.json")), done.stderr
    (record,) = (run / "bad_steps").glob("step-*.json")
    again = train_small(recipe, run, f"train.replay={record}", *ways)
    assert again.returncode == 0 and "the step's own weights" in again.stdout, again.stderr
    report = json.loads((run / "bad_steps" / "replay-000000000-rank-00000.json").read_text())
    assert report["terms"] == json.loads(record.read_text())["terms"]
    assert float(report["gradient_norms"]["encoder"]) == 0.0 and report["gradient_norms"]["estimator"] != "0.0"
