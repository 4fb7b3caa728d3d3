"""Artifacts on S3: they wait in the run folder while the store is away."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from mcjepa.pipeline.settings.train import TrackingConfig
from mcjepa.pipeline.tracking.run_tracker import RunTracker
from mcjepa.pipeline.tracking.spool import Spool
from tests.servers.seaweed import SeaweedServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_artifacts_reach_s3_after_the_store_was_away(
    s3: str, s3_server: SeaweedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    run = tmp_path / "run"
    config = TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db", artifacts=s3, close_s=120.0)
    tracker = RunTracker(config, run, run_name="train", tags={})
    for number in range(3):
        (run / f"{number}.txt").write_text(str(number))
    tracker.begin_delivery()
    tracker.artifact(run / "0.txt", "notes")
    deadline = time.monotonic() + 60
    while Spool(run).pending() and time.monotonic() < deadline:
        time.sleep(0.1)
    s3_server.kill()
    tracker.artifact(run / "1.txt", "notes")
    tracker.metrics({"loss": 1.0}, 1)
    time.sleep(3.0)
    assert [r["kind"] for r in Spool(run).pending()] == ["artifact", "metrics"]
    s3_server.start()
    tracker.artifact(run / "2.txt", "notes")
    tracker.end()
    client = MlflowClient(tracking_uri=config.uri)
    paths = [item.path for item in client.list_artifacts(tracker.run_id, "notes")]
    assert paths == ["notes/0.txt", "notes/1.txt", "notes/2.txt"]
    assert client.get_run(tracker.run_id).data.metrics == {"loss": 1.0}
