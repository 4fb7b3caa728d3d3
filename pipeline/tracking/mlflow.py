"""The MLflow adapter: one run a stage, linked by tags, written by one process only.

`Tracker` writes at once, for stages that are short (prep, eval). Training writes through the spool (`run_tracker`),
whose courier uses the functions below. Nothing is sent anywhere but to the tracking location: telemetry is off. MLflow
is imported on first use.
Tags: `mcjepa.stage` (prep, train, eval), `mcjepa.recipe`, `mcjepa.dataset_ids`, `mcjepa.prep_run`, `mcjepa.train_run`,
`mcjepa.weights_digest`; together they are the chain from inputs to score.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.run.recipes import flatten
from mcjepa.pipeline.tracking.database import file_of, is_file, make_database
from mcjepa.pipeline.tracking.lineage import job_tags
from mcjepa.pipeline.tracking.models import tag_versions

log = logging.getLogger(__name__)
PARAM_LIMIT = 6000
"""Characters of a parameter that MLflow takes."""
BATCH_LIMIT = 100
POINT_LIMIT = 1000
DIGEST_LIMIT = 36
NEWEST_RUNS = 20
RECIPE_TAG = "mcjepa.recipe"
VIEW_TAG = "mlflow.sharedViewState."
KIND_TAG = "mlflow.experimentKind"
"""Makes MLflow open the experiment as a table of runs; without it, as traces of language models."""
ABSENT = frozenset({"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"})
REFUSED_LOCATION = frozenset({"PERMISSION_DENIED", "UNAUTHENTICATED", "ENDPOINT_NOT_FOUND", "INVALID_PARAMETER_VALUE"})
REFUSED_CONTENT = frozenset({"INVALID_PARAMETER_VALUE", "BAD_REQUEST"})


def quiet_environment() -> dict[str, str]:
    """Variables with which MLflow, Ray and boto3 neither call home nor print; set here and for what we start."""
    return {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9/",
        "AWS_EC2_METADATA_DISABLED": "true",
        "GIT_PYTHON_REFRESH": "quiet",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # else the end of a run is printed among our results
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
        began: when the work of a new run began, Unix time, s; now without it.

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
        began: float | None = None,
    ) -> None:
        self._client = open_client(uri)
        try:
            known = run_id if run_id and run_is_active(self._client, run_id) else ""
            start_ms = round(began * 1000) if began else None
            self.run_id = known or create_run(self._client, experiment, artifacts, run_name, {}, start_ms)
            self._client.update_run(self.run_id, status="RUNNING")
            for name, value in {**tags, **job_tags()}.items():
                self._client.set_tag(self.run_id, name, value)
        except Exception as error:
            raise UsageError(f"MLflow at {uri} cannot be used ({describe_error(error)}); check tracking.uri") from error

    def params(self, values: Mapping[str, Any], prefix: str = "") -> None:
        """Logs nested plain data as parameters `a.b.c`; one that is already logged keeps its value."""
        self._send_each(lambda part: send_params(self._client, self.run_id, part), flatten(values, prefix))

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Logs numbers in one call; non-finite ones are left out."""
        now = round(time.time() * 1000)

        def send(part: Mapping[str, float]) -> None:
            send_points(self._client, self.run_id, [Point(k, float(v), now, step) for k, v in sorted(part.items())])

        self._send_each(send, {name: value for name, value in values.items() if math.isfinite(value)})

    def _send_each(self, send: Callable[[Mapping[str, Any]], None], values: Mapping[str, Any]) -> None:
        """Sends entries; one that MLflow refuses is named, and costs itself alone."""
        try:
            send(values)
        except Exception as error:
            if not refuses_content(error) or not values:
                raise
            if len(values) == 1:
                log.error("MLflow refuses %s: %s", next(iter(values)), describe_error(error))
                return
            items = sorted(values.items())
            for part in (items[: len(items) // 2], items[len(items) // 2 :]):
                self._send_each(send, dict(part))

    def datasets(self, records: Sequence[Mapping[str, str]]) -> None:
        """Logs datasets as the run's inputs; see `send_datasets`."""
        send_datasets(self._client, self.run_id, records)

    def artifact(self, path: Path, folder: str = "") -> None:
        """Stores a file or a folder with the run."""
        store = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        store(self.run_id, str(path), folder or None)

    def document(self, content: Mapping[str, Any], name: str) -> None:
        """Stores plain data as a JSON artifact."""
        self._client.log_dict(self.run_id, dict(content), name)

    def tag_models(self, digest: str, tags: Mapping[str, str]) -> None:
        """Tags the versions of registered models that have weights of this sha256, where models may be written."""
        try:
            tag_versions(self._client, digest, tags)
        except Exception as error:
            if not refuses_us(error):
                raise
            log.warning("MLflow keeps its models from us: %s", describe_error(error))

    def end(self, status: str = "FINISHED") -> None:
        """Ends the run: FINISHED, FAILED or KILLED."""
        self._client.set_terminated(self.run_id, status=status)


def run_is_active(client: Any, run_id: str) -> bool:
    """Whether there is such a run and it is not deleted.

    Raises:
        MlflowException: the tracking location does not answer.
    """
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code in ABSENT:
            return False
        raise


def create_run(
    client: Any,
    experiment: str,
    artifacts: str,
    run_name: str,
    tags: Mapping[str, str],
    start_ms: int | None = None,
) -> str:
    """Starts a run in an experiment, which is made if absent; returns its id.

    Args:
        client: of the tracking location.
        experiment: its name.
        artifacts: where artifacts of a new experiment go.
        run_name: shown in the interface.
        tags: text tags.
        start_ms: when its work began, Unix time; None: now.
    """
    found = client.get_experiment_by_name(experiment)
    if found is None:
        experiment_id = client.create_experiment(
            experiment, artifact_location=artifacts or None, tags={KIND_TAG: "custom_model_development"}
        )
    else:
        experiment_id = found.experiment_id
    made = client.create_run(experiment_id, start_time=start_ms, run_name=run_name, tags=dict(tags))
    return str(made.info.run_id)


def set_status(client: Any, run_id: str, status: str, time_ms: int) -> None:
    """A run's status; one that ends it comes with its time, Unix time, ms."""
    if status == "RUNNING":
        client.update_run(run_id, status=status)
    else:
        client.set_terminated(run_id, status=status, end_time=time_ms)


@dataclass(frozen=True)
class Found:
    """What an experiment has of a recipe."""

    experiment_id: str
    """Empty where there is no such experiment."""
    tagged: bool
    """Whether runs name the recipe."""
    metrics: tuple[str, ...]
    """All metrics of its newest runs."""


def look_up(uri: str, experiment: str, recipe: str) -> Found:
    """Looks for an experiment and the runs of a recipe in it.

    Raises:
        UsageError: the tracking location cannot be used.
    """
    try:
        client = open_client(uri)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            return Found("", False, ())
        condition = f"tags.`{RECIPE_TAG}` = '{recipe}'"
        runs: list[Any] = []
        if "'" not in recipe:  # a filter cannot hold one
            runs = client.search_runs([found.experiment_id], filter_string=condition, max_results=NEWEST_RUNS)
        shown = runs or client.search_runs([found.experiment_id], max_results=NEWEST_RUNS)
        names = sorted({name for run in shown for name in run.data.metrics})
        return Found(str(found.experiment_id), bool(runs), tuple(names))
    except Exception as error:
        raise UsageError(f"MLflow at {uri} cannot be used ({describe_error(error)}); check tracking.uri") from error


def share_view(uri: str, experiment_id: str, key: str, state: Mapping[str, Any]) -> bool:
    """Keeps a view of the table of runs with its experiment, for links that name its key; whether MLflow took it."""
    from mlflow.exceptions import MlflowException

    try:
        open_client(uri).set_experiment_tag(experiment_id, f"{VIEW_TAG}{key}", json.dumps(dict(state)))
    except MlflowException:  # a server that lets us read alone
        return False
    return True


def run_with_tag(client: Any, experiment: str, name: str, value: str) -> str:
    """Id of an active run with this tag, empty where there is none."""
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return ""
    runs = client.search_runs([found.experiment_id], filter_string=f"tags.`{name}` = '{value}'", max_results=1)
    return str(runs[0].info.run_id) if runs else ""


def refuses_us(error: Exception) -> bool:
    """Whether a tracking location answered that it does not serve us: settings or credentials are wrong."""
    return getattr(error, "error_code", "") in REFUSED_LOCATION


def refuses_content(error: Exception) -> bool:
    """Whether MLflow understood what was sent and will never take it; anything else may be tried again."""
    return getattr(error, "error_code", "") in REFUSED_CONTENT


@dataclass(frozen=True)
class Point:
    """One value of a metric, as it is stored."""

    key: str
    value: float
    time_ms: int
    step: int


def send_points(client: Any, run_id: str, points: Sequence[Point]) -> None:
    """Logs values in one call, at most `POINT_LIMIT`."""
    from mlflow.entities import Metric

    client.log_batch(run_id, metrics=[Metric(p.key, p.value, p.time_ms, p.step) for p in points])


def stored_points(client: Any, run_id: str, keys: Iterable[str]) -> set[Point]:
    """All values that a run has of these metrics."""
    return {
        Point(m.key, m.value, m.timestamp, m.step)
        for key in sorted(keys)
        for m in client.get_metric_history(run_id, key)
    }


def send_params(client: Any, run_id: str, values: Mapping[str, Any]) -> None:
    """Logs plain data as parameters `a.b.c`; one that is already logged keeps its value."""
    from mlflow.entities import Param

    logged = client.get_run(run_id).data.params
    flat = {k: str(v) for k, v in flatten(values).items() if k not in logged}
    for name in (name for name, text in flat.items() if len(text) > PARAM_LIMIT):
        log.warning("parameter %s has %d characters, MLflow takes %d of them", name, len(flat[name]), PARAM_LIMIT)
        flat[name] = flat[name][:PARAM_LIMIT]
    items = sorted(flat.items())
    for start in range(0, len(items), BATCH_LIMIT):
        batch = [Param(key, value) for key, value in items[start : start + BATCH_LIMIT]]
        client.log_batch(run_id, params=batch)


def send_tags(client: Any, run_id: str, tags: Mapping[str, str]) -> None:
    """Sets tags in one call."""
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(name, value) for name, value in sorted(tags.items())])


def send_datasets(client: Any, run_id: str, datasets: Sequence[Mapping[str, str]]) -> None:
    """Logs datasets as the run's inputs: `name`, `dataset_id`, `location`, `context` of each.

    MLflow takes 36 characters of a digest; the whole dataset id is in the profile.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = []
    for item in datasets:
        source = json.dumps({"uri": item["location"]})
        kind = "s3" if item["location"].startswith("s3://") else "local"
        profile = json.dumps({"dataset_id": item["dataset_id"]})
        dataset = Dataset(item["name"], item["dataset_id"][:DIGEST_LIMIT], kind, source, profile=profile)
        inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", item["context"])]))
    client.log_inputs(run_id, datasets=inputs)


def find_run(uri: str, experiment: str, tags: Mapping[str, str]) -> str | None:
    """Id of the newest finished run with these tags, None where there is none."""
    return newest_finished(open_client(uri), experiment, tags)


def find_tagged(uri: str, experiment: str, name: str, value: str) -> str | None:
    """Id of an active run with this tag, finished or not; None where there is none.

    Raises:
        UsageError: the tracking location cannot be used.
    """
    try:
        return run_with_tag(open_client(uri), experiment, name, value) or None
    except Exception as error:
        raise UsageError(f"MLflow at {uri} cannot be used ({describe_error(error)}); check tracking.uri") from error


def newest_finished(client: Any, experiment: str, tags: Mapping[str, str]) -> str | None:
    """`find_run` with a client at hand."""
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


def open_client(uri: str) -> Any:
    """A client of a tracking location; nothing is asked of a server yet, and a file is there."""
    os.environ.update({k: v for k, v in quiet_environment().items() if k not in os.environ})
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from mlflow.tracking import MlflowClient

    if is_file(uri):
        make_database(file_of(uri), lambda: MlflowClient(tracking_uri=uri))
    return MlflowClient(tracking_uri=uri)


def describe_error(error: Exception) -> str:
    """Kind and first line of what MLflow, or what lies below it, has raised."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def attach(uri: str, run_id: str, files: Sequence[Path]) -> None:
    """Stores files with a run that has ended."""
    client = open_client(uri)
    for path in files:
        client.log_artifact(run_id, str(path))
