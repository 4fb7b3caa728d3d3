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

from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.run.folder import CHECKPOINT_LOG
from mcjepa.pipeline.run.lines import PatientLines
from mcjepa.pipeline.run.recipes import flatten
from mcjepa.pipeline.settings.train import TrackingConfig
from mcjepa.pipeline.tracking.courier import Courier, CourierThread
from mcjepa.pipeline.tracking.lineage import job_tags
from mcjepa.pipeline.tracking.spool import Spool

log = logging.getLogger(__name__)


class RunTracker:
    """Records of one run.

    Args:
        config: where MLflow is.
        run: the run folder; a spool in it is continued, and so is its MLflow run.
        run_name: shown in MLflow's interface.
        tags: text tags of a new MLflow run.
        renew: begin another MLflow run in a spool that has one: what follows was not done by the attempt before.
        on_contact: told the MLflow run's id when it is known, possibly in another thread and much later.

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
                "begun_ms": before.get("begun_ms") or round(time.time() * 1000),
            }
        )
        if renew and before.get("key"):
            self._spool.append("run", key=uuid.uuid4().hex, tags=dict(tags))
        self._courier = Courier(self._spool, run, on_contact)
        self._first_contact()
        self._thread = CourierThread(self._courier, self._spool)
        self._append("status", status="RUNNING")
        self._append("tags", values=dict(tags))

    @property
    def run_id(self) -> str:
        """Id of the MLflow run; empty before the first contact."""
        return self._courier.run_id

    def _first_contact(self) -> None:
        try:
            self._courier.contact()
            if self._spool.begins_run:
                self._courier.deliver()
        except Exception as error:  # whatever the client raises for a server that is away
            from mcjepa.pipeline.tracking.mlflow import refuses_us

            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
            if refuses_us(error) or not self._config.uri.startswith(("http://", "https://")):
                raise UsageError(
                    f"MLflow at {self._config.uri} cannot be used ({reason}); check tracking.uri"
                ) from error
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
        """Numbers of a step; non-finite ones are left out. A step that has metrics already gets no second ones."""
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
        self._thread.wake()
