"""MLflow shows what the kept run did: another recipe or other numbers begin another MLflow run, linked to the first."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mcjepa.pipeline.run.folder import METRICS, RunFolder, read_metrics
from mcjepa.pipeline.run.recipes import RunRecipes
from mcjepa.pipeline.settings.train import TrackingConfig
from mcjepa.pipeline.tracking.delivery import deliver_spool
from mcjepa.pipeline.tracking.mlflow import Tracker
from mcjepa.pipeline.tracking.run_records import RunRecords
from mcjepa.pipeline.tracking.spool import Spool
from mcjepa.pipeline.world import World

pytestmark = pytest.mark.slow


def start(root: Path, recipe: dict[str, Any], step: int, ranks: int = 1) -> RunRecords:
    """A start of the run that continues from `step`, as rank 0 sees it."""
    folder = RunFolder(str(root / "run"))
    recipe = {**recipe, "name": "small", "out": str(root), "train": {"run": str(root / "run")}}
    continuation = RunRecipes(folder.path).continuation(recipe, step)
    facts = {"dataset_ids": ["d"], "world_size": ranks}
    world = World(0, 1, 0, torch.device("cpu"))
    tracking = TrackingConfig(uri=f"sqlite:///{root}/mlflow.db", artifacts=str(root / "artifacts"), close_s=60.0)
    return RunRecords(folder, world, tracking, recipe, facts, continuation)


def history(root: Path, run_id: str) -> list[tuple[int, float]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{root}/mlflow.db")
    return [(m.step, m.value) for m in client.get_metric_history(run_id, "loss/loss")]


def kept(root: Path) -> list[tuple[int, float]]:
    return [(int(record["step"]), record["loss"]) for record in read_metrics(root / "run" / METRICS)]


def test_a_resume_with_other_settings_shows_the_kept_run_and_the_present_recipe(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    first = start(tmp_path, {"rate": 1.0}, 0)
    for step in range(1, 8):
        first.metrics(step, {"loss": 100.0 + step})
    first.end("KILLED")
    again = start(tmp_path, {"rate": 1.0}, 4)  # the same settings: the same numbers, once, in the same MLflow run
    again.metrics(5, {"loss": 105.0})
    again.end("KILLED")
    assert again.run_id == first.run_id and len(history(tmp_path, first.run_id)) == 7
    second = start(tmp_path, {"rate": 0.5}, 4)
    for step in range(5, 9):
        second.metrics(step, {"loss": float(step)})
    second.end("FINISHED")
    expected = [*((s, 100.0 + s) for s in range(1, 5)), *((s, float(s)) for s in range(5, 9))]
    assert kept(tmp_path) == history(tmp_path, second.run_id) == expected
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    old, new = client.get_run(first.run_id), client.get_run(second.run_id)
    assert (old.data.params["rate"], new.data.params["rate"]) == ("1.0", "0.5")
    assert old.data.tags["mcjepa.continued_by"] == second.run_id != first.run_id
    assert new.data.tags["mcjepa.continues"] == first.run_id
    assert (old.info.status, new.info.status) == ("KILLED", "FINISHED") and old.info.end_time and new.info.end_time
    assert json.loads((tmp_path / "run" / "run.json").read_text())["run_id"] == second.run_id
    thrown = (tmp_path / "run" / "logs" / "metrics-thrown-away.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in thrown] == [105.0, 106.0, 107.0]


def test_steps_of_another_number_of_ranks_are_shown_as_they_were_kept(tmp_path: Path) -> None:
    first = start(tmp_path, {"rate": 1.0}, 0, ranks=2)
    for step in (1, 2, 3):
        first.metrics(step, {"loss": 100.0 + step})
    first.end("KILLED")
    second = start(tmp_path, {"rate": 1.0}, 2)
    second.metrics(3, {"loss": 3.0})
    second.end("FINISHED")
    assert kept(tmp_path) == history(tmp_path, second.run_id) == [(1, 101.0), (2, 102.0), (3, 3.0)]


def test_a_full_disk_costs_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = start(tmp_path, {"rate": 1.0}, 0)
    with pytest.MonkeyPatch.context() as full:

        def refuse(*words: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        full.setattr("mcjepa.pipeline.run.lines.os.write", refuse)
        for step in (1, 2):
            records.metrics(step, {"loss": float(step)})
        assert kept(tmp_path) == [] and records.unwritten() == "no room for 2 records of logs/metrics.jsonl"
    assert records.unwritten() == ""
    records.metrics(3, {"loss": 3.0})
    records.end("FINISHED")
    assert kept(tmp_path) == history(tmp_path, records.run_id) == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_mlflow_has_no_step_that_the_run_folder_lost(tmp_path: Path) -> None:
    """A full disk has room in the spool's last page and none for the metrics; then the process is killed."""
    first, write = start(tmp_path, {"rate": 1.0}, 0), os.write
    with pytest.MonkeyPatch.context() as full:

        def refuse(descriptor: int, data: Any) -> int:
            if os.readlink(f"/proc/self/fd/{descriptor}").endswith(METRICS):
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(descriptor, data)

        full.setattr("mcjepa.pipeline.run.lines.os.write", refuse)
        first.metrics(1, {"loss": 1.0})
        deliver_spool(tmp_path / "run")
    second = start(tmp_path, {"rate": 1.0}, 0)
    second.metrics(1, {"loss": 2.0})
    second.end("FINISHED")
    assert kept(tmp_path) == history(tmp_path, second.run_id) == [(1, 2.0)]


def test_one_odd_name_costs_itself_and_long_values_stay_whole(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    sets = {"a+b (1)": {"path": "x"}, "sintel": {"path": "y" * 3000}}
    recipe = {"eval": {"flow": {"sets": sets}}, **{f"key{n}": n for n in range(150)}}
    records = start(tmp_path, recipe, 0)
    records.metrics(1, {"loss": 1.0, "bad|name": 2.0})
    records.end("FINISHED")
    found = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db").get_run(records.run_id).data
    assert len(found.params) == 154 and found.params["eval.flow.sets.sintel.path"] == "y" * 3000
    assert found.metrics == {"loss/loss": 1.0}
    rejected = [json.loads(line) for line in (tmp_path / "run" / "spool" / "rejected.jsonl").read_text().splitlines()]
    assert [list(each["values"]) for each in rejected] == [["eval.flow.sets.a+b (1).path"], ["other/bad|name"]]


def test_delivery_needs_no_flock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*words: Any) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", absent)
    records = start(tmp_path, {"rate": 1.0}, 0)
    records.metrics(1, {"loss": 1.0})
    records.end("FINISHED")
    assert history(tmp_path, records.run_id) == [(1, 1.0)] and Spool(tmp_path / "run").pending() == []


def test_a_stages_run_begins_with_its_work_and_one_bad_entry_costs_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracker = Tracker(uri, "e", "", run_name="prep", run_id=None, tags={}, began=time.time() - 100)
    tracker.params({"good": 1, "bad|name": 2})
    tracker.metrics({"good": 1.0, "bad|name": 2.0}, 0)
    tracker.end()
    found = MlflowClient(tracking_uri=uri).get_run(tracker.run_id)
    assert 100_000 <= found.info.end_time - found.info.start_time < 160_000
    assert (found.data.params, found.data.metrics) == ({"good": "1"}, {"good": 1.0})
    assert caplog.text.count("MLflow refuses bad|name") == 2
