"""The MLflow adapter: one run a stage, linked by tags, written by one process only.

Nothing is sent anywhere but to the tracking location: telemetry is off. MLflow is imported on first use.
Tags: `mcjepa.stage` (prep, train, eval), `mcjepa.dataset_ids`, `mcjepa.prep_run`, `mcjepa.train_run`,
`mcjepa.weights_digest`; together they are the chain from inputs to score.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import UsageError

PARAM_LIMIT = 500
BATCH_LIMIT = 100


def quiet_environment() -> dict[str, str]:
    """Variables under which neither MLflow, Ray nor boto3 calls home; the product sets them for what it starts."""
    return {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9/",
        "AWS_EC2_METADATA_DISABLED": "true",
        "GIT_PYTHON_REFRESH": "quiet",
    }


class Tracker:
    """One MLflow run.

    Args:
        uri: tracking server or `sqlite:///file`.
        experiment: experiment name, made if absent.
        artifacts: artifact location of a new experiment; empty for MLflow's choice.
        run_name: shown in the interface.
        run_id: an existing run to continue, or None for a new one.
        tags: text tags.

    Raises:
        UsageError: the tracking location cannot be used.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        artifacts: str,
        *,
        run_name: str,
        run_id: str | None,
        tags: Mapping[str, str],
    ) -> None:
        self._client = _client(uri)
        try:
            self.run_id = run_id if run_id and self._exists(run_id) else self._create(experiment, artifacts, run_name)
            self._client.update_run(self.run_id, status="RUNNING")
            for name, value in tags.items():
                self._client.set_tag(self.run_id, name, value)
        except Exception as error:
            raise UsageError(
                f"MLflow at {uri} cannot be used ({type(error).__name__}: {_first_line(error)}); check tracking.uri"
            ) from error

    def _exists(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return bool(self._client.get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException:
            return False

    def _create(self, experiment: str, artifacts: str, run_name: str) -> str:
        found = self._client.get_experiment_by_name(experiment)
        if found is None:
            experiment_id = self._client.create_experiment(experiment, artifact_location=artifacts or None)
        else:
            experiment_id = found.experiment_id
        return str(self._client.create_run(experiment_id, run_name=run_name).info.run_id)

    def params(self, values: Mapping[str, Any], prefix: str = "") -> None:
        """Logs nested plain data as parameters `a.b.c`; one that is already logged keeps its value."""
        from mlflow.entities import Param

        logged = self._client.get_run(self.run_id).data.params
        flat = {k: str(v)[:PARAM_LIMIT] for k, v in flatten(values, prefix).items() if k not in logged}
        items = sorted(flat.items())
        for start in range(0, len(items), BATCH_LIMIT):
            batch = [Param(key, value) for key, value in items[start : start + BATCH_LIMIT]]
            self._client.log_batch(self.run_id, params=batch)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Logs numbers in one call; non-finite ones are left out."""
        from mlflow.entities import Metric
        from mlflow.utils.time import get_current_time_millis

        now = get_current_time_millis()
        batch = [Metric(k, float(v), now, step) for k, v in sorted(values.items()) if math.isfinite(v)]
        self._client.log_batch(self.run_id, metrics=batch)

    def artifact(self, path: Path, folder: str = "") -> None:
        """Stores a file or a folder with the run."""
        store = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        store(self.run_id, str(path), folder or None)

    def document(self, content: Mapping[str, Any], name: str) -> None:
        """Stores plain data as a JSON artifact."""
        self._client.log_dict(self.run_id, dict(content), name)

    def end(self, status: str = "FINISHED") -> None:
        """Ends the run: FINISHED, FAILED or KILLED."""
        self._client.set_terminated(self.run_id, status=status)


def find_run(uri: str, experiment: str, tags: Mapping[str, str]) -> str | None:
    """Id of the newest finished run with these tags, None where there is none."""
    client = _client(uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return None
    conditions = [f"tags.`{name}` = '{value}'" for name, value in sorted(tags.items()) if "'" not in value]
    runs = client.search_runs(
        [found.experiment_id],
        filter_string=" and ".join([*conditions, "attributes.status = 'FINISHED'"]),
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    return str(runs[0].info.run_id) if runs else None


def dataset_tag(dataset_ids: Sequence[str]) -> str:
    """Dataset ids as one tag value, sorted."""
    return ",".join(sorted(dataset_ids))


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted names; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat.update(flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return flat


def _client(uri: str) -> Any:
    os.environ.update({k: v for k, v in quiet_environment().items() if k not in os.environ})
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]


def attach(uri: str, run_id: str, files: Sequence[Path]) -> None:
    """Stores files with a run that has ended."""
    client = _client(uri)
    for path in files:
        client.log_artifact(run_id, str(path))
