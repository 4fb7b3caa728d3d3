"""The tracker of a training run: everything goes to the run folder first, and from there to MLflow in the background.

Training never waits for MLflow, and nothing is lost when it is away: see `spool` and `courier`. Rank 0 alone has one.
"""

from __future__ import annotations

import json
import logging
import math
import shlex
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mcjepa.data_prep.errors import DataError
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.run.folder import CHECKPOINT_LOG
from mcjepa.pipeline.run.lines import PatientLines
from mcjepa.pipeline.run.recipes import flatten
from mcjepa.pipeline.settings.train import TrackingConfig
from mcjepa.pipeline.tracking.courier import FACTS_DUE, HISTORY, Courier
from mcjepa.pipeline.tracking.database import check_file, is_file, unusable
from mcjepa.pipeline.tracking.delivery import CourierThread
from mcjepa.pipeline.tracking.lineage import job_tags
from mcjepa.pipeline.tracking.spool import Spool, SpoolBusy

log = logging.getLogger(__name__)
CONTACT_S = 120.0
"""The longest wait for an MLflow run that is made in a file."""


class RunTracker:
    """Records of one run.

    Args:
        config: where MLflow is.
        run: the run folder; a spool in it is continued, and so is its MLflow run.
        run_name: shown in MLflow's interface.
        tags: text tags of a new MLflow run.
        renew: begin another MLflow run in a spool that has one: what follows was not done by the attempt before.
        on_contact: told the MLflow run's id when it is known, possibly in another thread and much later.

    A server is asked at once, so that one that refuses stops the run before it has begun. A file is only looked at: its
    MLflow run is made when `begin_delivery` says that there is time for it, which is seconds of a processor.

    Raises:
        UsageError: the tracking location is a file that cannot be used, or a server that refuses.
    """

    def __init__(
        self,
        config: TrackingConfig,
        run: Path,
        *,
        run_name: str,
        tags: Mapping[str, str],
        renew: bool = False,
        on_contact: Callable[[str], None] = lambda run_id: None,
    ) -> None:
        self._config, self._run, tags = config, run, {**tags, **job_tags()}
        self._spool = Spool(run)
        self._checkpoints = PatientLines(run / CHECKPOINT_LOG)
        before = self._spool.address()
        same = (before.get("uri"), before.get("experiment")) == (config.uri, config.experiment)
        self._spool.set_address(
            {
                "version": 1,
                "key": before.get("key") or uuid.uuid4().hex,
                "uri": config.uri,
                "experiment": config.experiment,
                "artifacts": config.artifacts,
                "run_name": run_name,
                "tags": {**before.get("tags", {}), **tags},
                "run_id": before.get("run_id", "") if same else "",
                HISTORY: before.get(HISTORY, -1),
                FACTS_DUE: before.get(FACTS_DUE, False),
                "begun_ms": before.get("begun_ms") or round(time.time() * 1000),
            }
        )
        if renew and before.get("key"):
            self._spool.append("run", key=uuid.uuid4().hex, tags=dict(tags))
        self._known = "" if self._spool.begins_run else str(self._spool.address()["run_id"])
        self._courier = Courier(self._spool, run, on_contact)
        check_file(config.uri)
        self._begun = self._spool.begins_run or not is_file(config.uri)
        if self._begun:
            self._first_contact()
        self._thread = CourierThread(self._courier, self._spool)
        self._append("status", status="RUNNING")
        self._append("tags", values=dict(tags))

    @property
    def run_id(self) -> str:
        """Id of the MLflow run, of the last start before the first contact of this one; empty where it has none yet."""
        return self._courier.run_id or self._known

    def begin_delivery(self) -> None:
        """Lets the background look for MLflow; the end of the run does so anyway."""
        if not self._begun:
            self._begun = True
            self._thread.wake()

    def await_run(self) -> None:
        """Waits until the MLflow run is known, where it is made in a file, or the first try has failed.

        Raises:
            UsageError: the file cannot be used after all.
        """
        self.begin_delivery()
        deadline = time.monotonic() + CONTACT_S
        while is_file(self._config.uri) and not self.run_id and time.monotonic() < deadline:
            self._require_usable()
            if self._thread.problem:
                return
            time.sleep(0.01)

    def _require_usable(self) -> None:
        """Raises what the background has found wrong with a file; a server may be away, a disk full for a while."""
        problem = self._thread.problem
        if problem is None or not is_file(self._config.uri) or self.run_id:
            return
        from sqlalchemy.exc import OperationalError

        if not isinstance(problem, SpoolBusy | DataError | OSError | OperationalError):
            raise UsageError(unusable(self._config.uri, _first_line(problem))) from problem

    def _first_contact(self) -> None:
        try:
            self._courier.contact()
            if self._spool.begins_run:
                self._courier.deliver()
        except Exception as error:  # whatever the client raises for a server that is away
            from mcjepa.pipeline.tracking.mlflow import refuses_us

            reason = _first_line(error)
            if refuses_us(error) or not self._config.uri.startswith(("http://", "https://")):
                raise UsageError(unusable(self._config.uri, reason)) from error
            log.warning(
                "MLflow at %s does not answer (%s); the run goes on and its records wait in %s. They are delivered "
                "when it is back, or by `mcjepa tracking sync %s`",
                self._config.uri, reason, self._spool.folder, shlex.quote(str(self._run)),
            )  # fmt: skip

    def params(self, values: Mapping[str, Any]) -> None:
        """Nested plain data as parameters `a.b.c`; one that is already logged keeps its value."""
        self._append("params", values=flatten(values))

    def tags(self, values: Mapping[str, str]) -> None:
        """Text tags; a later value replaces an earlier one."""
        self._append("tags", values=dict(values))

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of a step; non-finite ones are left out. A step that has metrics already gets no second ones.

        Raises:
            UsageError: the tracking location is a file that cannot be used after all.
        """
        self._require_usable()
        if step > self._spool.metrics_step:
            finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
            self._append("metrics", step=step, values=finite)

    def datasets(self, records: Sequence[Mapping[str, str]]) -> None:
        """Datasets as the run's inputs; see `lineage.dataset_records`."""
        self._append("datasets", datasets=[dict(record) for record in records])

    def parent(self, name: str, tags: Mapping[str, str]) -> None:
        """Tags this run with the newest finished run that has these tags."""
        self._append("parent", name=name, tags=dict(tags))

    def artifact(self, path: Path, folder: str = "") -> None:
        """Stores a file of the run folder with the run."""
        self._append("artifact", path=path.relative_to(self._run).as_posix(), folder=folder)

    def checkpoint(self, step: int, digest: str) -> None:
        """Notes a checkpoint: the tag `mcjepa.checkpoint` is its step and its digest, all are in checkpoints.jsonl."""
        self._append("tags", values={"mcjepa.checkpoint": f"{step} {digest}"})
        self._checkpoints.append(json.dumps({"step": step, "sha256": digest}))
        self.artifact(self._checkpoints.path)

    def end(self, status: str = "FINISHED", model: Mapping[str, Any] | None = None) -> None:
        """Ends the run (FINISHED, FAILED or KILLED), and waits a while for what is not delivered.

        Args:
            status: in MLflow's words.
            model: weights that become a version of a registered model: `name`, `path` in the run folder, `tags`.
        """
        self._append("status", status=status)
        if model:
            self._append("model", **model)
        try:
            self.await_run()
        except UsageError as error:
            log.error("%s", error)
        left = self._thread.close(self._config.close_s)
        if unwritten := self._spool.settle():
            log.error("the disk is still full: %d records are lost with this process", unwritten)
        if left:
            log.warning(
                "%d records wait in %s; `mcjepa tracking sync %s` delivers them",
                left, self._spool.folder, shlex.quote(str(self._run)),
            )  # fmt: skip

    def _append(self, kind: str, **content: Any) -> None:
        self._spool.append(kind, **content)
        if self._begun:
            self._thread.wake()


def _first_line(error: Exception | None) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
