"""What must hold of a drill's run in the end, whatever has happened to it."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mcjepa.data_prep.storage import open_store
from mcjepa.pipeline.checkpoint import complete_checkpoints
from mcjepa.pipeline.run.folder import METRICS, RUN_RECORD, TRAIN_REPORT, read_metrics
from mcjepa.pipeline.tracking.delivery import deliver_spool
from mcjepa.pipeline.tracking.lineage import grouped
from tests.faults.test_mlflow_faults import history

if TYPE_CHECKING:
    from tests.rounds.train_drill import Round


DELIVERED_WITHIN_S = 120.0


def find_problems(found: Round, whole: Path, steps: int) -> list[str]:
    """Everything that is wrong with a finished run, in words.

    Args:
        found: the round; its MLflow server runs.
        whole: folder of the undisturbed run.
        steps: of each run.
    """
    deadline = time.monotonic() + DELIVERED_WITHIN_S
    while (delivery := deliver_spool(found.path)).left and time.monotonic() < deadline:
        time.sleep(1.0)
    problems = [f"{delivery.left} records are not delivered: {delivery.reason}"] if delivery.left else []
    return [*problems, *_of_the_run(found, whole, steps), *_of_mlflow(found)]


def _of_the_run(found: Round, whole: Path, steps: int) -> Iterator[str]:
    store = open_store(found.location)
    text = store.read(METRICS).decode()
    lines = [json.loads(line)["step"] for line in text.splitlines()]
    if lines != list(range(1, steps + 1)):
        yield f"{METRICS} has the steps {lines}"
    local = (found.path / METRICS).read_text()
    if local != text:
        yield f"{METRICS} in the bucket is not that of the scratch folder"
    losses = {record["step"]: record["loss"] for record in read_metrics(found.path / METRICS)}
    expected = {record["step"]: record["loss"] for record in read_metrics(whole / METRICS)}
    if losses != expected:
        yield f"other losses at steps {[step for step in expected if losses.get(step) != expected[step]]}"
    here, there = complete_checkpoints(found.location), complete_checkpoints(whole)
    if [each.step for each in here] != [each.step for each in there]:
        yield f"whole checkpoints of steps {[each.step for each in here]}"
    elif here[0].record["weights_sha256"] != there[0].record["weights_sha256"]:
        yield "other weights"
    if found.left() < found.met["damage"]:
        yield "the damaged checkpoint did not step aside"
    if not json.loads(store.read(TRAIN_REPORT))["finished"]:
        yield "its report does not call it finished"
    if left := [entry.key for entry in store.files("writers/")]:
        yield f"leases stay: {left}"


def _of_mlflow(found: Round) -> Iterator[str]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=found.mlflow.uri)
    experiment = client.get_experiment_by_name(found.experiment)
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    if len(runs) != 1:
        yield f"{len(runs)} runs in MLflow: {[run.data.tags for run in runs]}"
        return
    if runs[0].info.status != "FINISHED":
        yield f"the MLflow run is {runs[0].info.status}"
    run_id = json.loads(open_store(found.location).read(RUN_RECORD))["run_id"]
    if run_id not in ("", runs[0].info.run_id):  # empty: MLflow was away in the last start
        yield f"run.json names the MLflow run {run_id}"
    expected: dict[str, list[tuple[int, float]]] = {}
    for record in read_metrics(found.path / METRICS):
        for name, value in grouped({name: value for name, value in record.items() if name != "step"}).items():
            expected.setdefault(name, []).append((int(record["step"]), value))
    there = history(found.mlflow.uri, runs[0].info.run_id)
    wrong = [name for name in {**expected, **there} if expected.get(name) != there.get(name)]
    if wrong:
        name = sorted(wrong)[0]
        twice = [step for step, count in Counter(step for step, _ in there.get(name, [])).items() if count > 1]
        yield f"MLflow has other values than {METRICS} of {len(wrong)} meters, {name} at steps {twice} twice"
