"""MLflow dies and comes back: no metric is lost and none is there twice."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mcjepa.pipeline.run.folder import metrics_line
from mcjepa.pipeline.run.lines import PatientLines
from mcjepa.pipeline.settings.train import TrackingConfig
from mcjepa.pipeline.tracking.courier import Courier
from mcjepa.pipeline.tracking.run_tracker import RunTracker
from mcjepa.pipeline.tracking.spool import Spool
from tests.servers.mlflow_server import MlflowServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowServer]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    found = MlflowServer(tmp_path / "server")
    yield found
    found.kill()


def history(uri: str, run_id: str) -> dict[str, list[tuple[int, float]]]:
    """Every stored value of every metric, by step."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    names = client.get_run(run_id).data.metrics
    return {name: sorted((m.step, m.value) for m in client.get_metric_history(run_id, name)) for name in names}


def written(path: Path) -> dict[str, list[tuple[int, float]]]:
    """The same of the run's own metrics.jsonl."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        for name, value in record.items():
            if name != "step":
                found.setdefault(name, []).append((record["step"], value))
    return found


def test_a_server_that_is_killed_and_restarted_has_every_metric_once(server: MlflowServer, tmp_path: Path) -> None:
    run, rng = tmp_path / "run", random.Random(0)
    server.start()
    tracker = RunTracker(TrackingConfig(uri=server.uri, close_s=120.0), run, run_name="train", tags={"a": "b"})
    outages = {40: server.kill, 80: lambda: server.start(wait=False), 400: server.kill, 420: server.start}
    for step in range(500):
        values = {f"meter{number}": rng.random() for number in range(12)}
        PatientLines(run / "logs" / "metrics.jsonl").append(metrics_line(step, values))
        tracker.metrics(values, step)
        time.sleep(0.02)
        if step in outages:
            outages[step]()
    (run / "note.txt").write_text("kept")
    tracker.artifact(run / "note.txt")
    tracker.end()
    assert Spool(run).pending() == []
    assert history(server.uri, tracker.run_id) == written(run / "logs" / "metrics.jsonl")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=server.uri)
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    assert [item.path for item in client.list_artifacts(tracker.run_id)] == ["note.txt"]


def test_a_batch_whose_answer_was_lost_is_not_sent_again(
    server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server stores the batch, then the answer is lost; part of it is removed, as if half had been stored."""
    import sqlite3

    from mcjepa.pipeline.tracking import mlflow as mlflow_run

    server.start()
    run = tmp_path / "run"
    spool = Spool(run)
    address = {"uri": server.uri, "experiment": "e", "artifacts": "", "run_name": "r", "tags": {}, "key": "k1"}
    spool.set_address(address)
    for step in range(30):
        spool.append("metrics", step=step, values={"loss": step / 7, "rate": 1.0})
    real, sent = mlflow_run.send_points, []

    def stored_without_answer(client: Any, run_id: str, points: Any) -> None:
        real(client, run_id, points)
        raise ConnectionError("the connection was cut")

    monkeypatch.setattr(mlflow_run, "send_points", stored_without_answer)
    first = Courier(spool, run)
    with pytest.raises(ConnectionError):
        first.deliver()
    assert spool.state()["in_doubt"] == 30 and len(spool.pending()) == 30
    with sqlite3.connect(server.folder / "mlflow.db") as database:
        database.execute("DELETE FROM metrics WHERE key = 'loss' AND step >= 20")

    def counted(client: Any, run_id: str, points: Any) -> None:
        sent.extend(points)
        real(client, run_id, points)

    monkeypatch.setattr(mlflow_run, "send_points", counted)
    spool.append("metrics", step=30, values={"loss": 4.5})  # written meanwhile: not mixed with the batch in doubt
    again = Courier(Spool(run), run)
    assert again.deliver() == 31
    assert sorted((p.key, p.step) for p in sent) == [("loss", step) for step in range(20, 31)]
    found = history(server.uri, first.run_id)
    assert found["loss"] == [(step, step / 7) for step in range(30)] + [(30, 4.5)] and len(found["rate"]) == 30
    assert again.run_id == first.run_id


def test_a_run_started_without_its_server_is_delivered_by_sync_into_one_run(
    server: MlflowServer, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for part in range(2):  # started twice, as after a crash; no contact ever
        tracker = RunTracker(TrackingConfig(uri=server.uri, close_s=0.1), run, run_name="train", tags={})
        assert tracker.run_id == ""
        for step in range(5 * part, 5 * part + 7):  # steps 5 and 6 are trained twice
            tracker.metrics({"loss": float(step)}, step)
        tracker.end("KILLED")
    words = [sys.executable, "-m", "mcjepa", "tracking", "sync", str(run), "--json"]
    away = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True)
    assert away.returncode == 4 and "does not take them" in away.stderr, away.stderr
    server.start()
    both = [subprocess.Popen(words, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [json.loads(process.communicate(timeout=200)[0]) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    (run_id,) = {answer["run_id"] for answer in answers if answer["run_id"]}
    assert history(server.uri, run_id) == {"loss": [(step, float(step)) for step in range(12)]}
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=server.uri)
    experiment = client.get_experiment_by_name("mcjepa")
    assert experiment is not None and len(client.search_runs([experiment.experiment_id])) == 1


def test_a_dead_server_does_not_hold_up_a_step(tmp_path: Path, server: MlflowServer) -> None:
    tracker = RunTracker(TrackingConfig(uri=server.uri, close_s=0.1), tmp_path, run_name="train", tags={})
    slowest = 0.0
    for step in range(50):
        started = time.perf_counter()
        tracker.metrics({"loss": 1.0}, step)
        slowest = max(slowest, time.perf_counter() - started)
    tracker.end()
    assert slowest < 2.0 and len([r for r in Spool(tmp_path).pending() if r["kind"] == "metrics"]) == 50
    assert threading.active_count() < 20
