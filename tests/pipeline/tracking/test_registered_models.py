"""Weights of finished runs as versions of a registered model on a real MLflow server that goes away and comes back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mcjepa
from mcjepa.model.pretrained import file_digest, weights_folder
from mcjepa.pipeline.settings.train import TrackingConfig
from mcjepa.pipeline.tracking import Tracker
from mcjepa.pipeline.tracking.delivery import deliver_spool
from mcjepa.pipeline.tracking.run_tracker import RunTracker
from mcjepa.pipeline.tracking.spool import Spool
from tests.servers.mlflow_server import MlflowServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
WEIGHTS = "weights/step-000000700"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowServer]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    found = MlflowServer(tmp_path / "server")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", found.uri)
    yield found
    found.kill()


def client_of(uri: str) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri)


def ended_run(run: Path, uri: str, **model: Any) -> RunTracker:
    """A run with weights that has ended, and did not wait for MLflow."""
    (run / WEIGHTS).mkdir(parents=True)
    for file in weights_folder("nano").iterdir():
        if file.suffix in (".safetensors", ".json"):
            (run / WEIGHTS / file.name).write_bytes(file.read_bytes())
    tracker = RunTracker(TrackingConfig(uri=uri, close_s=0.0), run, run_name="train", tags={})
    tags = {"mcjepa.weights_digest": file_digest(run / WEIGHTS / "model.safetensors"), "mcjepa.dataset_ids": "a,b"}
    tracker.end("FINISHED", {"name": "own", "path": WEIGHTS, "tags": tags, **model})
    return tracker


def test_weights_become_one_version_when_the_server_is_back(server: MlflowServer, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended_run(run, server.uri)
    assert Spool(run).pending()[-1]["kind"] == "model"
    server.start()
    assert deliver_spool(run).left == 0
    state = run / "spool" / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"delivered": Spool(run).last - 1}))
    found = deliver_spool(run)  # as after a crash between the answer and its note
    assert (found.delivered, found.left) == (1, 0)

    client = client_of(server.uri)
    (version,) = client.search_model_versions("name = 'own'")
    digest = file_digest(run / WEIGHTS / "model.safetensors")
    assert version.run_id == found.run_id
    assert version.tags == {"mcjepa.weights_digest": digest, "mcjepa.dataset_ids": "a,b"}
    assert client.get_run(found.run_id).info.status == "FINISHED"
    from mlflow.artifacts import download_artifacts

    fetched = Path(download_artifacts("models:/own/latest", dst_path=str(tmp_path)))
    assert file_digest(fetched / "model.safetensors") == digest
    assert mcjepa.load(fetched).config == mcjepa.load("nano").config

    scoring = Tracker(server.uri, "mcjepa", "", run_name="eval", run_id=None, tags={})
    scoring.tag_models(digest, {"flow/sintel/epe": "1.5"})
    scoring.end()
    assert client.get_model_version("own", "1").tags["flow/sintel/epe"] == "1.5"


def test_a_model_that_mlflow_refuses_costs_the_run_nothing_else(server: MlflowServer, tmp_path: Path) -> None:
    run = tmp_path / "run"
    server.start()
    ended_run(run, server.uri, name="not/allowed")
    found = deliver_spool(run)
    assert found.left == 0
    assert "Names cannot contain" in (run / "spool" / "rejected.jsonl").read_text()
    assert client_of(server.uri).get_run(found.run_id).info.status == "FINISHED"
