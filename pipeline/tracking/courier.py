"""The courier: brings the spool's records to MLflow, each exactly once.

MLflow's metrics are not idempotent: a value that is sent twice may be there twice. So before a batch is sent, its last
number is written down as in doubt, and after the answer as delivered. When the answer never came (the server died, or
this process), the batch is asked for in the run's history, and only what is missing is sent: a value is the same by
(name, value, time, step), and its time is that of the record. One batch is in doubt at most. A run that is to be made
gets a key of its own as a tag, by which it is found again when the answer to its making never came. Everything else
(parameters, tags, artifacts, datasets, status, models) may be sent twice without harm.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mcjepa.pipeline.run.folder import METRICS, read_metrics
from mcjepa.pipeline.tracking import mlflow as mlflow_run
from mcjepa.pipeline.tracking import models
from mcjepa.pipeline.tracking.lineage import grouped
from mcjepa.pipeline.tracking.mlflow import POINT_LIMIT, Point
from mcjepa.pipeline.tracking.spool import Spool

log = logging.getLogger(__name__)
KEY_TAG = "mcjepa.run_key"
CONTINUES_TAG, CONTINUED_TAG = "mcjepa.continues", "mcjepa.continued_by"
"""Link the MLflow run of a training that goes on otherwise with that of the attempt before."""
HISTORY = "history_until"
"""Key of the spool's address: the last step that a new MLflow run is to be sent out of the run folder; -1: none."""
FACTS_DUE = "facts_due"
"""Key of the spool's address: whether a new MLflow run is to be sent what the one before was told beside metrics."""
CLIENT_DEFAULTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
"""The courier tries again by itself, so that its client need not."""


class RecordUnusable(Exception):
    """A record that can never be delivered."""


class Courier:
    """Delivers a spool; one at a time.

    Args:
        spool: the records.
        run: the run folder, which artifacts are named below.
        on_contact: told the id of the MLflow run when it is known.
    """

    def __init__(self, spool: Spool, run: Path, on_contact: Callable[[str], None] = lambda run_id: None) -> None:
        self._spool, self._run, self._on_contact = spool, run, on_contact
        self._client: Any = None
        self.run_id = ""

    def deliver(self) -> int:
        """Delivers all that is pending; the number of records.

        Raises:
            SpoolBusy: another process delivers.
            Exception: whatever the client raises where the tracking location does not answer; nothing is lost.
        """
        with self._spool.held():
            if self._client is None:
                self.contact()
            try:
                return self._deliver_all()
            except Exception:
                self._client = None  # the next contact looks whether the run is still there
                raise

    def _deliver_all(self) -> int:
        done = 0
        self._spool.settle()
        while pending := self._spool.pending():
            while pending:
                state = self._spool.state()
                batch = next_batch(pending, state["in_doubt"])
                self._deliver_batch(batch, state)
                done += len(batch)
                pending = pending[len(batch) :]
        return done

    def contact(self, history: bool = True) -> str:
        """Finds or makes the MLflow run; its id.

        Args:
            history: whether a run that has to be made gets what another one had: one that was deleted, or whose
                tracking location is no longer the run's.

        Raises:
            Exception: the tracking location does not answer.
        """
        for name, value in CLIENT_DEFAULTS.items():
            os.environ.setdefault(name, value)
        address = self._spool.address()
        client = mlflow_run.open_client(address["uri"])
        run_id = address.get("run_id") or ""
        if not run_id or not mlflow_run.run_is_active(client, run_id):
            run_id = mlflow_run.run_with_tag(client, address["experiment"], KEY_TAG, address["key"])
        if not run_id:
            address[HISTORY] = self._spool.state()["metrics_step"] if history else -1
            address[FACTS_DUE] = history and bool(self._spool.kept())
            self._spool.set_address({**address, "run_id": ""})  # before the run is there: we may die in between
            run_id = mlflow_run.create_run(
                client, address["experiment"], address["artifacts"], address["run_name"],
                {**address["tags"], KEY_TAG: address["key"]}, address.get("begun_ms"),
            )  # fmt: skip
        self._client = client
        if run_id != self.run_id:
            self._spool.set_address({**address, "run_id": run_id})
            self.run_id = run_id
            self._on_contact(run_id)
        self._send_history()
        return run_id

    def _send_history(self) -> None:
        """Sends what was delivered to another MLflow run, where that is due: metrics come out of the run folder."""
        address = self._spool.address()
        until = int(address.get(HISTORY, -1))
        if until < 0 and not address.get(FACTS_DUE):
            return
        log.warning(
            "MLflow run %s takes another one's place: it gets what that one was told%s again",
            self.run_id, f" and its metrics to step {until}" if until >= 0 else "",
        )  # fmt: skip
        if address.get(FACTS_DUE):
            self._send_facts()
        kept = [record for record in read_metrics(self._run / METRICS) if record["step"] <= until]
        self._resend([_as_sent(record, address["begun_ms"]) for record in kept])
        self._spool.set_address({**address, HISTORY: -1, FACTS_DUE: False})

    def _send_facts(self) -> None:
        for record in self._spool.kept():
            try:
                self._send_other(record)
            except Exception as error:
                if isinstance(error, RecordUnusable):
                    log.warning("MLflow run %s lacks something that the one before it has: %s", self.run_id, error)
                elif self._is_final(error):
                    self._deliver_entries(record, error)
                else:
                    raise

    def _begin_run(self, record: Mapping[str, Any]) -> None:
        """Turns to another MLflow run and links both; the one before ends with what it has."""
        address, before = self._spool.address(), self.run_id
        if address["key"] != record["key"]:
            address |= {"key": record["key"], "tags": {**record["tags"], CONTINUES_TAG: before}, "run_id": ""}
            self._spool.set_address(address | {"begun_ms": record["time_ms"]})
        else:  # this process, or one before it, died in between
            before = address["tags"].get(CONTINUES_TAG, "")
        present = self.contact(history=False)  # all steps that are kept come behind this record
        if before and before != present and mlflow_run.run_is_active(self._client, before):
            mlflow_run.send_tags(self._client, before, {CONTINUED_TAG: present})
            mlflow_run.set_status(self._client, before, "KILLED", int(record["time_ms"]))

    def _deliver_batch(self, batch: Sequence[Mapping[str, Any]], state: Mapping[str, int]) -> None:
        last = int(batch[-1]["number"])
        doubted = state["in_doubt"] >= last
        if not doubted:
            self._spool.note(delivered=state["delivered"], in_doubt=last)
        try:
            self._send(batch, doubted)
        except Exception as error:
            if not self._is_final(error):
                raise
            if len(batch) == 1:
                self._deliver_entries(batch[0], error)
            else:  # one of them is to blame: they go one by one, and what is there already not again
                self._one_by_one(batch)
        if batch[0]["kind"] != "metrics":
            self._spool.keep(batch[0])
        self._spool.note(delivered=last, metrics_step=_last_step(batch), new_run=batch[0]["kind"] == "run")

    def _one_by_one(self, batch: Sequence[Mapping[str, Any]]) -> None:
        for record in batch:
            try:
                self._send([record], doubted=True)
            except Exception as error:
                if not self._is_final(error):
                    raise
                self._deliver_entries(record, error)
            number = int(record["number"])
            self._spool.note(delivered=number, in_doubt=int(batch[-1]["number"]), metrics_step=_last_step([record]))

    def _resend(self, batch: Sequence[Mapping[str, Any]]) -> None:
        """Sends what is not there of metrics that are no records of the spool any more; of refused ones the halves."""
        try:
            self._send_metrics(batch, doubted=True)
        except Exception as error:
            if not self._is_final(error):
                raise
            if halves := _halves(batch):
                for half in halves:
                    self._resend(half)
            else:
                self._reject(batch[0], error)

    def _deliver_entries(self, record: Mapping[str, Any], error: Exception) -> None:
        """Delivers what can be of a record that was refused: one bad name or value costs itself alone."""
        values = record.get("values", {})
        if len(values) < 2:
            self._reject(record, error)
            return
        items = list(values.items())
        for part in (items[: len(items) // 2], items[len(items) // 2 :]):
            entries = {**record, "values": dict(part)}
            try:
                self._send([entries], doubted=True)
            except Exception as refusal:
                if not self._is_final(refusal):
                    raise
                self._deliver_entries(entries, refusal)

    def _is_final(self, error: Exception) -> bool:
        """Whether the record is to blame; a run that was deleted refuses everything in the same words."""
        if isinstance(error, RecordUnusable):
            return True
        return mlflow_run.refuses_content(error) and mlflow_run.run_is_active(self._client, self.run_id)

    def _reject(self, record: Mapping[str, Any], error: Exception) -> None:
        what = f"{record['kind']} {', '.join(map(str, record['values']))}" if record.get("values") else record["kind"]
        reason = mlflow_run.describe_error(error)
        log.error("MLflow refuses a record for good (%s), it is kept in %s: %s", what, self._spool.folder, reason)
        self._spool.reject(record, reason)

    def _send(self, batch: Sequence[Mapping[str, Any]], doubted: bool) -> None:
        if batch[0]["kind"] == "metrics":
            self._send_metrics(batch, doubted)
        else:
            self._send_other(batch[0])

    def _send_metrics(self, batch: Sequence[Mapping[str, Any]], doubted: bool) -> None:
        points = [
            Point(key, value, int(record["time_ms"]), int(record["step"]))
            for record in batch
            for key, value in sorted(record["values"].items())
        ]
        if doubted:
            there = mlflow_run.stored_points(self._client, self.run_id, {p.key for p in points})
            points = [p for p in points if p not in there]
        for start in range(0, len(points), POINT_LIMIT):
            mlflow_run.send_points(self._client, self.run_id, points[start : start + POINT_LIMIT])

    def _send_other(self, record: Mapping[str, Any]) -> None:
        client, run_id, kind = self._client, self.run_id, record["kind"]
        if kind == "params":
            mlflow_run.send_params(client, run_id, record["values"])
        elif kind == "tags":
            mlflow_run.send_tags(client, run_id, record["values"])
        elif kind == "datasets":
            mlflow_run.send_datasets(client, run_id, record["datasets"])
        elif kind == "parent":
            found = mlflow_run.newest_finished(client, self._spool.address()["experiment"], record["tags"])
            mlflow_run.send_tags(client, run_id, {record["name"]: found or ""})
        elif kind == "artifact":
            path = self._run / record["path"]
            if not path.exists():
                raise RecordUnusable(f"artifact {path} is gone")
            client.log_artifact(run_id, str(path), record["folder"] or None)
        elif kind == "model":
            self._register(record)
        elif kind == "status":
            mlflow_run.set_status(client, run_id, record["status"], int(record["time_ms"]))
        elif kind == "run":
            self._begin_run(record)
        else:
            raise RecordUnusable(f"a record of kind {kind!r}, which this release does not know")

    def _register(self, record: Mapping[str, Any]) -> None:
        """Weights as a version of a model; a location without models, or one that keeps them from us, ends it."""
        folder = self._run / record["path"]
        if not folder.is_dir():
            raise RecordUnusable(f"weights {folder} are gone")
        self._client.log_artifacts(self.run_id, str(folder), record["path"])
        try:
            models.register_version(self._client, self.run_id, record["name"], record["path"], record["tags"])
        except Exception as error:
            if mlflow_run.refuses_us(error):
                raise RecordUnusable(mlflow_run.describe_error(error)) from error
            raise


def _as_sent(record: Mapping[str, float], time_ms: int) -> dict[str, Any]:
    """A line of the run folder's metrics like a record of the spool."""
    values = {name: value for name, value in record.items() if name != "step" and math.isfinite(value)}
    return {"kind": "metrics", "step": int(record["step"]), "values": grouped(values), "time_ms": time_ms}


def _halves(batch: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Metrics cut in two by their names, those of one name by their steps; empty: it is a single value."""
    names = sorted({name for record in batch for name in record["values"]})
    middle = len(batch) // 2
    if len(names) < 2:
        return [list(batch[:middle]), list(batch[middle:])] if middle else []
    halves = (names[: len(names) // 2], names[len(names) // 2 :])
    cut = [[{**r, "values": {k: v for k, v in r["values"].items() if k in half}} for r in batch] for half in halves]
    return [[record for record in half if record["values"]] for half in cut]


def _last_step(batch: Sequence[Mapping[str, Any]]) -> int:
    return max((int(record["step"]) for record in batch if record["kind"] == "metrics"), default=-1)


def next_batch(pending: Sequence[dict[str, Any]], in_doubt: int) -> list[dict[str, Any]]:
    """The records that go in one call: metrics side by side up to MLflow's limit, anything else alone.

    A batch in doubt is taken as it was sent, so that no other record is mixed with it.
    """
    first = pending[0]
    if first["kind"] != "metrics":
        return [first]
    batch, points = [first], len(first["values"])
    for record in pending[1:]:
        points += len(record["values"]) if record["kind"] == "metrics" else POINT_LIMIT
        if record["kind"] != "metrics" or points > POINT_LIMIT or batch[-1]["number"] == in_doubt:
            break
        batch.append(record)
    return batch
