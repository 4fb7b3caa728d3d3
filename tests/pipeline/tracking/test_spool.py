"""The spool's files, and delivery to a SQLite store."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.settings.train import TrackingConfig
from mcjepa.pipeline.tracking import courier
from mcjepa.pipeline.tracking.courier import POINT_LIMIT, Courier, next_batch
from mcjepa.pipeline.tracking.lineage import dataset_records, git_state, grouped
from mcjepa.pipeline.tracking.run_tracker import RunTracker
from mcjepa.pipeline.tracking.spool import Spool, SpoolBusy


def test_records_are_numbered_across_starts_and_a_torn_line_is_dropped(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append("metrics", step=1, values={"loss": 1.0})
    spool.append("metrics", step=2, values={"loss": 2.0})
    (path,) = spool.folder.glob("records-*.jsonl")
    with path.open("a") as file:
        file.write('{"number": 3, "kind": "metr')
    again = Spool(tmp_path)
    assert (again.last, again.metrics_step) == (2, 2)
    assert again.append("tags", values={}) == 3
    assert [(r["number"], r["kind"]) for r in again.pending()] == [(1, "metrics"), (2, "metrics"), (3, "tags")]


def test_delivered_files_are_removed_and_the_last_step_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcjepa.pipeline.tracking.spool.RECORDS_A_FILE", 3)
    spool = Spool(tmp_path)
    for step in range(10):
        spool.append("metrics", step=step, values={})
    assert len(list(spool.folder.glob("records-*"))) == 4
    spool.note(delivered=7, metrics_step=6)
    assert [r["number"] for r in spool.pending()] == [8, 9, 10]
    assert len(list(spool.folder.glob("records-*"))) == 2
    spool.note(delivered=10, metrics_step=9)
    assert (Spool(tmp_path).metrics_step, Spool(tmp_path).last, Spool(tmp_path).pending()) == (9, 10, [])


def test_one_process_delivers_at_a_time(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    with spool.held(), pytest.raises(SpoolBusy), Spool(tmp_path).held():
        pass
    with Spool(tmp_path).held():
        pass


def record(number: int, points: int, kind: str = "metrics") -> dict[str, Any]:
    return {"number": number, "kind": kind, "step": number, "values": {f"m{k}": 1.0 for k in range(points)}}


def test_a_batch_is_metrics_side_by_side_within_the_limit_and_ends_at_the_doubtful() -> None:
    pending = [record(1, 300), record(2, 300), record(3, 300), record(4, 300), record(5, 1, "tags"), record(6, 1)]
    assert [r["number"] for r in next_batch(pending, 0)] == [1, 2, 3]
    assert POINT_LIMIT == 1000
    assert [r["number"] for r in next_batch(pending[3:], 0)] == [4]
    assert [r["number"] for r in next_batch(pending[4:], 0)] == [5]
    assert [r["number"] for r in next_batch(pending, 2)] == [1, 2]


@pytest.mark.slow
def test_everything_of_a_run_arrives_in_a_sqlite_store_and_a_second_start_continues_it(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    run = tmp_path / "run"
    config = TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db", artifacts=str(tmp_path / "artifacts"))
    ids, told = [], []
    for start in range(2):
        tracker = RunTracker(config, run, run_name="train", tags={"mcjepa.stage": "train"}, on_contact=told.append)
        tracker.params({"train": {"steps": 5 + start}})
        tracker.datasets([{"name": "clips", "dataset_id": "d" * 64, "location": "s3://b/clips", "context": "train"}])
        tracker.metrics({"loss": 2.0, "nothing": float("nan")}, step=1)
        (run / "recipe.yaml").write_text("a: 1")
        tracker.artifact(run / "recipe.yaml", "about")
        tracker.parent("mcjepa.prep_run", {"mcjepa.stage": "prep"})
        tracker.end()
        ids.append(tracker.run_id)
    assert ids[0] == ids[1] and set(told) == {ids[0]}
    found = MlflowClient(tracking_uri=config.uri).get_run(ids[0])
    assert found.data.params == {"train.steps": "5"} and found.data.metrics == {"loss": 2.0}
    assert found.data.tags["mcjepa.stage"] == "train" and found.data.tags["mcjepa.prep_run"] == ""
    (dataset,) = found.inputs.dataset_inputs
    assert dataset.dataset.name == "clips" and json.loads(dataset.dataset.profile)["dataset_id"] == "d" * 64
    assert (tmp_path / "artifacts").rglob("about/recipe.yaml")
    assert found.info.status == "FINISHED"


@pytest.mark.slow
def test_a_record_that_is_refused_for_good_is_kept_aside_and_the_others_go_on(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    run, config = tmp_path / "run", TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db")
    tracker = RunTracker(config, run, run_name="train", tags={})
    spool = tracker._spool
    for step, name in ((1, "good"), (2, "bad|name"), (3, "good")):
        spool.append("metrics", step=step, values={name: 1.0})
    tracker.end()
    history = MlflowClient(tracking_uri=config.uri).get_metric_history(tracker.run_id, "good")
    assert [m.step for m in history] == [1, 3]
    (refused,) = [json.loads(line) for line in (spool.folder / "rejected.jsonl").read_text().splitlines()]
    assert refused["step"] == 2 and "bad|name" in refused["reason"]


@pytest.mark.slow
def test_a_run_that_was_deleted_or_is_recorded_elsewhere_is_made_again_with_its_history(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow.tracking import MlflowClient

    run, config = tmp_path / "run", TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db", close_s=60.0)
    tracker = RunTracker(config, run, run_name="train", tags={})
    (run / "logs").mkdir()
    (run / "logs/metrics.jsonl").write_text('{"step": 1, "loss": 1.0, "bad|name": 1.0}\n{"step": 2, "loss": 2.0}\n')
    tracker.metrics(grouped({"loss": 1.0}), 1)
    tracker.params({"train": {"steps": 5}})
    tracker.tags({"mcjepa.checkpoint": "1 a"})
    tracker.tags({"mcjepa.checkpoint": "2 b"})
    tracker.datasets([{"name": "clips", "dataset_id": "d" * 64, "location": "s3://b/clips", "context": "train"}])
    for name in ("recipe.yaml", "gone.yaml"):
        (run / name).write_text("a: 1")
        tracker.artifact(run / name)
    tracker.begin_delivery()
    deadline = time.monotonic() + 60
    while Spool(run).pending() and time.monotonic() < deadline:
        time.sleep(0.1)
    client, first = MlflowClient(tracking_uri=config.uri), tracker.run_id
    (run / "gone.yaml").unlink()
    client.delete_run(first)
    tracker.metrics(grouped({"loss": 2.0}), 2)
    tracker.end()
    assert tracker.run_id != first
    (refused,) = [json.loads(line) for line in (run / "spool/rejected.jsonl").read_text().splitlines()]
    assert list(refused["values"]) == ["other/bad|name"]
    assert _steps(client, tracker.run_id) == [1, 2]
    _assert_has_the_facts(client, tracker.run_id)
    assert "lacks something that the one before it has" in caplog.text and "gone.yaml" in caplog.text

    moved = TrackingConfig(uri=f"sqlite:///{tmp_path}/other.db", close_s=60.0)
    again = RunTracker(moved, run, run_name="train", tags={})
    again.metrics(grouped({"loss": 3.0}), 3)
    again.end()
    assert _steps(MlflowClient(tracking_uri=moved.uri), again.run_id) == [1, 2, 3]
    _assert_has_the_facts(MlflowClient(tracking_uri=moved.uri), again.run_id)


def _assert_has_the_facts(client: Any, run_id: str) -> None:
    found = client.get_run(run_id)
    assert found.data.params == {"train.steps": "5"} and found.data.tags["mcjepa.checkpoint"] == "2 b"
    assert [item.dataset.name for item in found.inputs.dataset_inputs] == ["clips"]
    assert [item.path for item in client.list_artifacts(run_id)] == ["recipe.yaml"]
    assert found.info.status == "FINISHED"


def test_facts_are_kept_once_each_until_another_run_begins_and_a_torn_line_costs_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    tags = [{"number": n, "kind": "tags", "time_ms": n, "values": {"a": value}} for n, value in enumerate("xyx")]
    for kept in (*tags, *({"number": 9, "kind": "status", "status": s} for s in ("RUNNING", "FINISHED"))):
        spool.keep(kept)
    assert spool.kept() == [tags[1], tags[2], {"number": 9, "kind": "status", "status": "FINISHED"}]
    with (spool.folder / "facts.jsonl").open("a") as file:
        file.write('{"number": 10, "kind"')
    spool.keep({"number": 10, "kind": "params", "values": {}})
    assert [record["number"] for record in Spool(tmp_path).kept()] == [1, 2, 9, 10]
    spool.keep({"number": 11, "kind": "run"})
    assert spool.kept() == []


@pytest.mark.slow
def test_a_name_that_is_refused_at_every_step_of_a_history_is_found_with_few_questions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    run, steps, asked = tmp_path / "run", range(1, 25), 0
    values = {"loss": 1.0, "a": 2.0, "b": 3.0, "c": 4.0, "bad|name": 5.0}
    tracker = RunTracker(TrackingConfig(uri=f"sqlite:///{tmp_path}/a.db", close_s=60.0), run, run_name="t", tags={})
    (run / "logs").mkdir()
    (run / "logs/metrics.jsonl").write_text("".join(json.dumps({"step": n} | values) + "\n" for n in steps))
    tracker.metrics(grouped({"loss": 1.0}), 24)
    tracker.end()
    stored_points = courier.mlflow_run.stored_points

    def counted(client: Any, run_id: str, keys: set[str]) -> Any:
        nonlocal asked
        asked += len(keys)
        return stored_points(client, run_id, keys)

    monkeypatch.setattr(courier.mlflow_run, "stored_points", counted)
    moved = TrackingConfig(uri=f"sqlite:///{tmp_path}/b.db", close_s=60.0)
    again = RunTracker(moved, run, run_name="t", tags={})
    again.metrics(grouped({"loss": 1.0}), 25)
    again.end()
    assert asked < 3 * len(steps), asked  # once a record, and it would be all names a record otherwise
    refused = [json.loads(line) for line in (run / "spool/rejected.jsonl").read_text().splitlines()]
    assert sorted((r["step"], *r["values"]) for r in refused) == [(step, "other/bad|name") for step in steps]
    client = MlflowClient(tracking_uri=moved.uri)
    assert _steps(client, again.run_id) == [*steps, 25]
    assert len(client.get_metric_history(again.run_id, "other/c")) == len(steps)


def _steps(client: Any, run_id: str) -> list[int]:
    return [m.step for m in client.get_metric_history(run_id, "loss/loss")]


def test_files_that_are_delivered_while_they_are_looked_through_are_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):  # a file each
        Spool(tmp_path).append("tags", values={"a": "b"})
    spool, read = Spool(tmp_path), Path.read_text

    def deliver_and_read(path: Path, *words: Any, **named: Any) -> str:
        if path.name.startswith("records-"):
            monkeypatch.undo()
            spool.note(delivered=1)
        return read(path, *words, **named)

    monkeypatch.setattr(Path, "read_text", deliver_and_read)
    assert [record["number"] for record in spool.pending()] == [2]


def test_a_tracking_file_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is no database" * 100)
    with pytest.raises(UsageError, match="cannot be used"):
        RunTracker(TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db"), tmp_path, run_name="r", tags={})
    assert Courier(Spool(tmp_path), tmp_path).run_id == ""


NOTHING_LOADED = """
import sys
from pathlib import Path
from mcjepa.pipeline.settings.train import TrackingConfig
from mcjepa.pipeline.tracking.run_tracker import RunTracker
root = Path(sys.argv[1])
tracker = RunTracker(TrackingConfig(uri=f"sqlite:///{root}/mlflow.db"), root / "run", run_name="train", tags={})
tracker.metrics({"loss": 1.0}, 1)
assert "mlflow" not in sys.modules and not tracker.run_id
"""


def test_nothing_of_mlflow_is_loaded_before_delivery_to_a_file_begins(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", NOTHING_LOADED, str(tmp_path)], check=True, timeout=120)
    kinds = [record["kind"] for record in Spool(tmp_path / "run").pending()]
    assert kinds == ["status", "tags", "metrics"]


@pytest.mark.slow
def test_a_file_of_another_release_ends_the_run_at_its_next_record(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        database.execute("INSERT INTO alembic_version VALUES ('of a later release')")
    database.close()
    config = TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db", close_s=0.0)
    tracker = RunTracker(config, tmp_path / "run", run_name="train", tags={})
    with pytest.raises(UsageError, match=r"mlflow\.db cannot be used"):
        tracker.await_run()
    with pytest.raises(UsageError, match=r"mlflow\.db cannot be used"):
        tracker.metrics({"loss": 1.0}, 1)
    tracker.end("FAILED")
    assert Spool(tmp_path / "run").pending()


def test_the_state_of_the_code_is_its_commit_and_what_differs(tmp_path: Path) -> None:
    assert git_state(tmp_path)["mcjepa.git_sha"] == "unknown"
    for words in ("init -q", "config user.email a@b", "config user.name n"):
        assert os.system(f"git -C {tmp_path} {words}") == 0
    (tmp_path / "a").write_text("1")
    assert os.system(f"git -C {tmp_path} add a && git -C {tmp_path} commit -qm one") == 0
    clean = git_state(tmp_path)
    assert len(clean["mcjepa.git_sha"]) == 40 and clean["mcjepa.git_diff"] == ""
    (tmp_path / "a").write_text("2")
    assert len(git_state(tmp_path)["mcjepa.git_diff"]) == 64
    (installed := tmp_path / ".venv/lib/mcjepa").mkdir(parents=True)
    (installed / "lineage.py").write_text("")
    assert git_state(installed) == {"mcjepa.git_sha": "unknown", "mcjepa.git_diff": "unknown"}


def test_datasets_are_listed_by_stream() -> None:
    records = dataset_records({"pairs": ["/d/clips", "s3://b/x/"], "views": []}, {"pairs": ["i1", "i2"]})
    assert [(r["name"], r["dataset_id"], r["context"]) for r in records] == [
        ("clips", "i1", "train-pairs"), ("x", "i2", "train-pairs"),
    ]  # fmt: skip
