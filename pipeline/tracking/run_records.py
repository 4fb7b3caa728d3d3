"""What a training run says of itself: recipe.yaml, run.json, logs/metrics.jsonl, and all of it in MLflow.

Rank 0 alone writes, and knows the MLflow run's id.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcjepa.data_prep.storage import atomic_write
from mcjepa.pipeline.run.folder import (
    METRICS,
    PICTURES,
    RECIPE,
    RUN_RECORD,
    RunFolder,
    cut_metrics,
    metrics_line,
    read_metrics,
    read_run_record,
)
from mcjepa.pipeline.run.lines import MOST_WAITING, PatientLines
from mcjepa.pipeline.run.recipes import RECIPES, Continuation, RunRecipes
from mcjepa.pipeline.settings.stream import StreamConfig
from mcjepa.pipeline.settings.train import TrackingConfig
from mcjepa.pipeline.tracking import dataset_tag
from mcjepa.pipeline.tracking.lineage import (
    dataset_records,
    git_state,
    grouped,
    made_by,
    origin_tags,
    run_label,
)
from mcjepa.pipeline.tracking.models import DIGEST_TAG, model_name
from mcjepa.pipeline.tracking.run_tracker import RunTracker
from mcjepa.pipeline.world import World

if TYPE_CHECKING:
    from mcjepa.pipeline.stream.loader import StepLoader


log = logging.getLogger(__name__)


class RunRecords:
    """Records of one run; every rank makes one, at the same time.

    Args:
        folder: where the run's files are.
        world: this process among all.
        tracking: where MLflow is.
        recipe: the whole resolved recipe as plain data.
        facts: what run.json says of the run beside its ids: dataset ids, seed, ZeRO stage and so on.
        continuation: how this start relates to earlier ones.

    Raises:
        UsageError: MLflow's location cannot be used.
    """

    def __init__(
        self,
        folder: RunFolder,
        world: World,
        tracking: TrackingConfig,
        recipe: Mapping[str, Any],
        facts: Mapping[str, Any],
        continuation: Continuation,
    ) -> None:
        self._folder, self._name, self._facts = folder.path, folder.name, dict(facts)
        self._recipe_name = str(recipe.get("name", ""))
        self._lines, self._logged = PatientLines(folder.path / METRICS), 0
        self._held: deque[tuple[int, dict[str, float]]] = deque(maxlen=MOST_WAITING)
        self.run_id = ""
        self._continuation = continuation
        self._tracker = self._open(tracking, recipe, world) if world.rank == 0 else None
        if self._tracker and self._renewed:
            folder.copy()  # on s3 too, what was thrown away must not come back

    def _open(self, tracking: TrackingConfig, recipe: Mapping[str, Any], world: World) -> RunTracker:
        tag = dataset_tag(self._facts["dataset_ids"])
        self._folder.mkdir(parents=True, exist_ok=True)
        self._renewed = self._goes_on_otherwise(world)
        if self._renewed:
            cut_metrics(self._folder, self._continuation.step)
        tracker = RunTracker(
            tracking,
            self._folder,
            run_name=f"train {run_label(recipe, str(recipe['train']['run']))}",
            tags={**origin_tags("train", recipe), "mcjepa.dataset_ids": tag, **git_state()},
            renew=self._renewed,
            on_contact=self._write_run,
        )
        if not self.run_id:  # there was no contact yet
            self._write_run(tracker.run_id)
        RunRecipes(self._folder).keep(recipe, self._continuation.step)
        for record in read_metrics(self._folder / METRICS):  # what a crash kept from the spool; all of it for a new run
            self._logged = int(record["step"])
            values = {name: value for name, value in record.items() if name != "step"}
            tracker.metrics(grouped(values), self._logged)
        tracker.parent("mcjepa.prep_run", {"mcjepa.stage": "prep", "mcjepa.dataset_ids": tag})
        tracker.params(recipe)
        for path in (self._folder / RECIPE, self._folder / RUN_RECORD):  # a run's lineage, where its folder is gone
            tracker.artifact(path)
        for path in sorted((self._folder / RECIPES).glob("*.yaml")):
            tracker.artifact(path, RECIPES)
        return tracker

    def _goes_on_otherwise(self, world: World) -> bool:
        """Whether MLflow shows, or its parameters say, what this start does not do.

        Another recipe: MLflow's parameters are for good. Steps that were recorded and are trained again: the same
        numbers come out on a CPU with as many ranks, else others.
        """
        if self._continuation.other_recipe:
            return True
        records = read_metrics(self._folder / METRICS)
        again = bool(records) and records[-1]["step"] > self._continuation.step
        exact = world.device.type == "cpu" and read_run_record(self._folder).get("world_size") == world.size
        return again and not exact

    def _write_run(self, run_id: str) -> None:
        """Writes run.json, again when the MLflow run is known."""
        self.run_id = run_id
        record = {"version": 1, "run_id": run_id, **git_state(), **made_by(), **self._facts}
        atomic_write(self._folder / RUN_RECORD, json.dumps(record, indent=1, sort_keys=True).encode())

    def datasets(self, stream: StreamConfig, loader: StepLoader) -> None:
        """The datasets that the run reads, as MLflow datasets."""
        if self._tracker:
            locations = {name: [source.location for source in getattr(stream, name)] for name in ("pairs", "views")}
            self._tracker.datasets(dataset_records(locations, loader.dataset_ids))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """One record of the meters. Steps that are trained again with the same numbers are recorded once."""
        if self._tracker and step > self._logged:
            self._held.append((step, grouped(values)))
            self._lines.append(metrics_line(step, values))
            self._settle(self._tracker)

    def _settle(self, tracker: RunTracker) -> bool:
        """Writes what waits for room; MLflow gets a step after the run folder has it: a kill in between must not leave
        MLflow with values that the next start measures otherwise (times, memory)."""
        settled = self._lines.settle()
        while settled and self._held:
            step, values = self._held.popleft()
            tracker.metrics(values, step)
        return settled

    def unwritten(self) -> str:
        """Why records are not on disk yet, in words: a checkpoint behind them must not count. Empty: all are."""
        if not self._tracker or self._settle(self._tracker):
            return ""
        return f"no room for {self._lines.waiting} records of {METRICS}"

    def picture(self, path: Path | None) -> None:
        """A picture in the run folder."""
        if self._tracker and path:
            self._tracker.artifact(path, PICTURES)

    def checkpoint(self, step: int, digest: str) -> None:
        """A checkpoint that counts."""
        if self._tracker:
            self._tracker.checkpoint(step, digest)

    def begin_delivery(self) -> None:
        """Lets MLflow be looked for: nothing of it is loaded before the first step is done."""
        if self._tracker:
            self._tracker.begin_delivery()

    def lineage(self) -> dict[str, Any]:
        """Where weights of this run come from, its MLflow run among them on rank 0, which writes them.

        Raises:
            UsageError: MLflow's file cannot be used.
        """
        if self._tracker:
            self._tracker.await_run()
        parents = {"run_id": self.run_id, "dataset_ids": self._facts["dataset_ids"], "run": self._name}
        origin = self._facts.get("init_from")
        return parents | ({"init_from": origin["sha256"]} if origin else {})

    def end(self, status: str, weights: Path | None = None) -> None:
        """Ends the MLflow run: FINISHED, FAILED or KILLED; final weights become a version of the recipe's model."""
        if self._tracker:
            if not self._settle(self._tracker):
                log.error("the disk is still full: %d records of %s are lost", self._lines.waiting, METRICS)
            self._tracker.end(status, self._model(weights) if weights else None)

    def _model(self, weights: Path) -> dict[str, Any]:
        from mcjepa.model.pretrained import WEIGHTS_NAME, file_digest

        tags = {
            DIGEST_TAG: file_digest(weights / WEIGHTS_NAME),
            "mcjepa.dataset_ids": dataset_tag(self._facts["dataset_ids"]),
            "mcjepa.step": str(int(weights.name.rpartition("-")[2])),
            "mcjepa.run": self._name,
        }
        path = weights.relative_to(self._folder).as_posix()
        return {"name": model_name(self._recipe_name), "path": path, "tags": tags}
