"""Trains the joint model from published datasets: the whole loop, to be read in one sitting.

    mcjepa train RECIPE train.engine.precision=fp32                  on a CPU, one process
    mcjepa train RECIPE --ranks 0                                    one node, a process a GPU (or a core without GPUs)
    srun --ntasks-per-node 8 mcjepa train RECIPE                     many nodes, by Slurm's variables
    torchrun --nnodes 4 --nproc_per_node 8 … -m pipeline.cli train RECIPE        many nodes, by torchrun's

A run lives in a folder or an s3 prefix and is continued from its newest whole checkpoint when the command is given
again, on as many processes and in whichever ZeRO stage:

    RUN/recipe.yaml  RUN/run.json  RUN/checkpoints/  RUN/weights/  RUN/bad_steps/  RUN/logs/metrics.jsonl
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from data_prep.storage import atomic_write
from model.config import ModelConfig
from model.mcjepa import MCJEPA
from pipeline.checkpoint import CheckpointKeeper, newest_weights
from pipeline.checkpoint.resume import find_start
from pipeline.engine import World, build_engine, seed_step, set_learning_rates, start_world, stop_world
from pipeline.first_weights import first_weights, read_run
from pipeline.guards import BadStepGuard, StopRequest
from pipeline.loader import StepLoader, build_loader
from pipeline.meters import Meters, append_record
from pipeline.micro_batches import check_micro_batches
from pipeline.run_folder import RunFolder
from pipeline.schedule import Schedule, build_schedule
from pipeline.step import run_step
from pipeline.tracking import Tracker, dataset_tag, find_run
from pipeline.train_config import TrackingConfig, TrainConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainProgress:
    """Told to the caller at every record of the meters."""

    step: int
    steps: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class TrainReport:
    """How a call of `train` ended."""

    steps: int
    """Steps done in all."""
    finished: bool
    """Whether the run reached its last step; otherwise it was asked to stop."""
    run_id: str
    weights: Path | None
    bad_steps: int


def train(
    config: TrainConfig,
    model_config: ModelConfig,
    tracking: TrackingConfig,
    recipe: Mapping[str, Any],
    on_progress: Callable[[TrainProgress], None],
) -> TrainReport:
    """Runs or continues a training run; every rank calls it.

    Args:
        config: the run's settings.
        model_config: the model's.
        tracking: where MLflow is.
        recipe: the whole resolved recipe as plain data, kept with the run.
        on_progress: called on rank 0 at every record.

    Returns:
        How it ended, on every rank.

    Raises:
        UsageError, DataError, RunError: settings that do not fit, unusable datasets, too many bad steps in a row.
    """
    world = start_world(config.engine)
    check_micro_batches(config.stream, world.size, config.engine.accumulation_steps)
    with contextlib.ExitStack() as stack:
        stack.callback(stop_world)
        stop = stack.enter_context(StopRequest())
        folder = RunFolder(config.run, config.checkpoint.scratch)
        if world.rank == 0:
            folder.fetch()
        start = find_start(folder.store, world)
        torch.manual_seed(config.seed)
        model = MCJEPA(model_config)
        origin = first_weights(model, config.init_from, folder.path, continued=start is not None)
        engine = build_engine(model, config, world)
        loader = build_loader(
            config.stream,
            rank=world.rank,
            world_size=world.size,
            start_step=start.step if start else 0,
            seed=config.seed,
            device=world.device,
        )
        stack.callback(loader.close)
        facts = {
            "dataset_ids": sorted({i for ids in loader.dataset_ids.values() for i in ids}),
            "seed": config.seed,
            "pair_batch": config.stream.pair_batch,
            "view_batch": config.stream.view_batch,
        }
        keeper = CheckpointKeeper(config.checkpoint, world, folder, facts)
        stack.callback(keeper.abandon)
        step = keeper.restore(start, engine) if start else 0
        if step:
            log.info("continuing %s from step %d", config.run, step)
        run = _Run(config, world, engine, loader, keeper, folder, facts)
        run.init_from = origin
        tracker = run.open_tracker(tracking, recipe) if world.rank == 0 else None
        status = "FAILED"
        try:
            step, finished = run.loop(step, stop, tracker, on_progress)
            keeper.close(None if finished else run.grace_left_s())
            status = "FINISHED" if finished else "KILLED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            if tracker:
                tracker.end(status)
        return TrainReport(step, finished, run.run_id, newest_weights(folder.path), run.guard.total)


class _Run:
    """The parts of a run that the loop needs at hand."""

    def __init__(
        self,
        config: TrainConfig,
        world: World,
        engine: Any,
        loader: StepLoader,
        keeper: CheckpointKeeper,
        folder: RunFolder,
        facts: dict[str, Any],
    ) -> None:
        self.config, self.world, self.engine, self.loader = config, world, engine, loader
        self.keeper, self.folder, self.facts = keeper, folder.path, facts
        self.name = folder.name
        self.guard = BadStepGuard(self.folder / "bad_steps", world.rank, config.max_bad_steps)
        self.run_id = ""
        self.init_from: dict[str, str] | None = None
        self.stopped_at: float | None = None
        counts = loader.describe()
        self.schedule: Schedule = build_schedule(config, (counts.get("views") or counts["pairs"]).steps_per_epoch)

    def loop(
        self,
        step: int,
        stop: StopRequest,
        tracker: Tracker | None,
        on_progress: Callable[[TrainProgress], None],
    ) -> tuple[int, bool]:
        """Trains until the last step or a stop request; returns the steps done and whether that is all."""
        config, schedule, keeper, meters = self.config, self.schedule, self.keeper, Meters()
        values: dict[str, float] = {}
        self.engine.train()
        batches = iter(self.loader)
        while step < schedule.steps:
            asked = time.perf_counter()
            batch = next(batches)
            waited_s = time.perf_counter() - asked
            seed_step(config.seed, step, self.world.rank)
            rates = set_learning_rates(self.engine, schedule.rate_factor(step), schedule.idle_groups(step))
            weights = schedule.weights_at(step)
            result = run_step(self.engine, batch, weights, stop_requested=stop.signal is not None)
            if result.finite:
                self.guard.passed()
                meters.add(result.meters)
            else:
                keys = {
                    "pairs": batch.pairs.keys if batch.pairs else (),
                    "views": batch.views.keys if batch.views else (),
                }
                self.guard.failed(step, keys, result.output.terms)
            meters.step_done(waited_s)
            step += 1
            last = step == schedule.steps
            if step % config.log_every == 0 or last:
                values = {**meters.record(), **{f"lr_{k}": v for k, v in rates.items()}}
                self._record(step, values, tracker, on_progress)
            if result.stop:
                self.stopped_at = time.monotonic()
            if keeper.due(step) or last or result.stop:
                keeper.save(
                    self.engine, step, lineage=self._lineage(), metrics=values, final=last or result.stop
                )  # fmt: skip
            if result.stop and not last:
                log.warning("stopped at step %d of %d; the same command continues it", step, schedule.steps)
                return step, False
        return step, True

    def grace_left_s(self) -> float:
        """What is left of the time between a stop request and the kill."""
        spent = time.monotonic() - self.stopped_at if self.stopped_at else 0.0
        return max(self.config.checkpoint.grace_s - spent, 0.0)

    def _lineage(self) -> dict[str, Any]:
        lineage = {"run_id": self.run_id, "dataset_ids": self.facts["dataset_ids"], "run": self.name}
        return lineage | ({"init_from": self.init_from["sha256"]} if self.init_from else {})

    def _record(
        self,
        step: int,
        values: dict[str, float],
        tracker: Tracker | None,
        on_progress: Callable[[TrainProgress], None],
    ) -> None:
        if tracker is None:
            return
        values["bad_steps"] = float(self.guard.total)
        append_record(self.folder / "logs" / "metrics.jsonl", step, values)
        tracker.metrics(values, step)
        on_progress(TrainProgress(step, self.schedule.steps, values))

    def open_tracker(self, tracking: TrackingConfig, recipe: Mapping[str, Any]) -> Tracker:
        """Starts or continues the run's MLflow run and writes recipe.yaml and run.json."""
        before = read_run(self.folder)
        tag = dataset_tag(self.facts["dataset_ids"])
        prep_run = find_run(tracking.uri, tracking.experiment, {"mcjepa.stage": "prep", "mcjepa.dataset_ids": tag})
        tags = {"mcjepa.stage": "train", "mcjepa.dataset_ids": tag, "mcjepa.prep_run": prep_run or ""}
        tracker = Tracker(
            tracking.uri,
            tracking.experiment,
            tracking.artifacts,
            run_name=f"train {self.name}",
            run_id=before.get("run_id"),
            tags=tags,
        )
        self.run_id = tracker.run_id
        tracker.params(recipe)
        text = yaml.safe_dump(dict(recipe), sort_keys=False)
        self.folder.mkdir(parents=True, exist_ok=True)
        atomic_write(self.folder / "recipe.yaml", text.encode())
        record = {"version": 1, "run_id": tracker.run_id, "prep_run": prep_run, **self.facts}
        record |= {"zero_stage": self.config.engine.zero_stage, "init_from": self.init_from}
        atomic_write(self.folder / "run.json", json.dumps(record, indent=1, sort_keys=True).encode())
        tracker.artifact(self.folder / "recipe.yaml")
        for name, summary in self.loader.describe().items():
            log.info("%s: %s", name, summary)
        return tracker
