"""A whole run as MLflow sees it: every meter, what it was made of, pictures, and the same run after a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_recipe import train_small, write_small_recipe

from mcjepa.pipeline.run.folder import read_metrics
from mcjepa.pipeline.tracking.lineage import group_of, run_label

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
EVERY_RECORD = (
    "loss", "reconstruction", "content", "weight_cycle", "weight_content", "lr_encoder", "lr_estimator",
    "gradient_norm", "seconds_per_step", "seconds_data", "seconds_forward", "seconds_backward", "seconds_update",
    "data_wait_share", "pairs_per_s", "images_per_s", "memory_gib", "data_wait_share_worst_rank", "gflops_per_s",
    "visible_share", "flow_px", "bad_steps", "spikes", "alerts",
)  # fmt: skip
COSTLY = (
    "gradient_cosine", "encoder_gradient_flow", "encoder_gradient_content", "gradient_norm_encoder",
    "gradient_norm_estimator", "gradient_norm_expander", "embedding_std_mean", "embedding_std_least", "embedding_rank",
    "embedding_rank_share", "embedding_off_diagonal", "stride2_rank", "stride64_rank", "stride8_off_diagonal",
)  # fmt: skip


def history(uri: str, run_id: str) -> dict[str, list[tuple[int, float]]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    names = client.get_run(run_id).data.metrics
    return {name: sorted((m.step, m.value) for m in client.get_metric_history(run_id, name)) for name in names}


def test_a_run_of_two_ranks_is_recorded_whole_and_its_resumption_continues_it(tmp_path: Path) -> None:
    recipe, run = write_small_recipe(tmp_path), tmp_path / "run"
    meters = ("train.meters.every=2", "train.meters.pictures_every=4", "train.profile.start_step=2")
    first = train_small(recipe, run, *meters, "train.profile.steps=1", ranks=2)
    assert first.returncode == 0, first.stderr
    second = train_small(recipe, run, *meters, "train.steps=6", ranks=2)
    assert second.returncode == 0, second.stderr
    records = read_metrics(run / "logs" / "metrics.jsonl")
    assert [r["step"] for r in records] == [1, 2, 3, 4, 5, 6]
    assert not [name for name in EVERY_RECORD if name not in records[-1]]
    assert [sum(name in r for name in COSTLY) for r in records] == [0, len(COSTLY)] * 3
    assert any(name.startswith("system/") and name.endswith("cpu_utilization_percentage") for name in records[0])

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    run_id = json.loads((run / "run.json").read_text())["run_id"]
    lines = [json.loads(line) for line in (run / "logs" / "metrics.jsonl").read_text().splitlines()]
    written: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for name, value in line.items():
            if name != "step":
                written.setdefault(group_of(name), []).append((line["step"], value))
    assert history(uri, run_id) == written
    groups = {name.split("/")[0] for name in written}
    assert groups == {"loss", "features", "gradient", "weight", "rate", "speed", "health", "memory", "system"}
    check_lineage(uri, run_id, tmp_path)
    assert len(list((run / "profile").glob("step-000000002-rank-00000.json.gz"))) == 1


def check_lineage(uri: str, run_id: str, root: Path) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment: Any = client.get_experiment_by_name("mcjepa")
    found = client.get_run(run_id)
    before = found.data.tags["mcjepa.continues"]  # the longer run has another recipe, and so a run of its own
    assert {each.info.run_id for each in client.search_runs([experiment.experiment_id])} == {run_id, before}
    assert client.get_run(before).data.params["train.steps"] == "4"
    assert client.get_run(before).data.tags["mcjepa.continued_by"] == run_id
    assert found.info.status == "FINISHED" and found.data.params["train.steps"] == "6"
    assert found.info.end_time is not None
    assert found.info.run_name == f"train {run_label(yaml.safe_load((root / 'run' / 'recipe.yaml').read_text()))}"
    assert found.data.tags["mlflow.source.name"] == "mcjepa train quickstart" and found.data.tags["mlflow.user"]
    assert found.data.tags["mcjepa.checkpoint"].startswith("6 ") and found.data.tags["mcjepa.git_sha"]
    assert {item.dataset.name for item in found.inputs.dataset_inputs} == {"clips", "images"}
    assert "recipe.yaml" in {item.path for item in client.list_artifacts(run_id)}
    assert [item.path for item in client.list_artifacts(before, "pictures")] == ["pictures/step-000000004.png"]
    versions = client.search_model_versions("name = 'quickstart'")
    assert {(v.run_id, v.tags["mcjepa.step"], v.tags["mcjepa.run"]) for v in versions} == {
        (before, "4", "run"), (run_id, "6", "run"),
    }  # fmt: skip
    newest = json.loads((root / "run" / "checkpoints" / "step-000000006" / "manifest.json").read_text())
    assert client.get_model_version("quickstart", "2").tags["mcjepa.weights_digest"] == newest["weights_sha256"]
    saved = Path(client.download_artifacts(run_id, "checkpoints.jsonl", str(root))).read_text().splitlines()
    assert [json.loads(line)["step"] for line in saved] == [2, 4, 6]
