"""Trains the joint model from published datasets: the whole loop, to be read in one sitting.

    mcjepa train RECIPE [key=value ...]                              one process
    torchrun --nproc_per_node 8 -m pipeline.cli train RECIPE         eight on a node
    srun … python -m pipeline.cli train RECIPE                       many nodes, from Slurm's variables

A run lives in a folder and is continued from its newest complete checkpoint when the command is given again:

    RUN/recipe.yaml  RUN/run.json  RUN/checkpoints/  RUN/weights/  RUN/bad_steps/  RUN/logs/metrics.jsonl
"""

from __future__ import annotations

import contextlib
import hashlib
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
from pipeline import checkpoint as checkpoints
from pipeline.engine import World, build_engine, set_learning_rates, share_text, start_world, stop_world
from pipeline.guards import StepSetting, StopRequest
from pipeline.instruments import Instruments
from pipeline.loader import StepLoader, build_loader
from pipeline.meters import append_record
from pipeline.run_pictures import RunPictures
from pipeline.schedule import rate_factor
from pipeline.step import run_step
from pipeline.step_clock import CLOSING
from pipeline.tracking import dataset_tag
from pipeline.tracking.lineage import dataset_records, git_state
from pipeline.tracking.run_tracker import RunTracker
from pipeline.train_config import TrackingConfig, TrainConfig
from pipeline.watchdog import Watchdog

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
    with contextlib.ExitStack() as stack:
        stack.callback(stop_world)
        stop = stack.enter_context(StopRequest())
        torch.manual_seed(config.seed)
        engine = build_engine(MCJEPA(model_config), config, world)
        torch.manual_seed(config.seed + 1 + world.rank)
        start = checkpoints.newest_checkpoint(Path(config.run))
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
            "zero_stage": config.engine.zero_stage,
        }
        step = checkpoints.load_checkpoint(start, engine, world, facts) if start else 0
        if step:
            log.info("continuing %s from step %d", config.run, step)
        run = _Run(config, world, engine, facts, loader)
        stack.callback(run.instruments.close)
        stack.enter_context(Watchdog(config.guards, run.instruments.clock, run.folder, world.rank, world.size))
        tracker = run.open_tracker(tracking, recipe) if world.rank == 0 else None
        run.run_id = share_text(tracker.run_id if tracker else "")
        status = "FAILED"
        try:
            step, finished = run.loop(step, stop, tracker, on_progress)
            run.instruments.clock.enter(CLOSING)
            status = "FINISHED" if finished else "KILLED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            if tracker:
                tracker.end(status)
        weights = checkpoints.newest_weights(Path(config.run))
        return TrainReport(step, finished, run.run_id, weights, run.instruments.guard.total)


class _Run:
    """The parts of a run that the loop needs at hand."""

    def __init__(
        self, config: TrainConfig, world: World, engine: Any, facts: dict[str, Any], loader: StepLoader
    ) -> None:
        self.config, self.world, self.engine, self.facts, self.loader = config, world, engine, facts, loader
        self.folder = Path(config.run)
        self.instruments = Instruments(config, world, engine, self.folder)
        self.pictures = RunPictures(config.stream, config.seed, world, config.meters.pictures, self.folder)
        self.run_id = ""

    def loop(
        self,
        step: int,
        stop: StopRequest,
        tracker: RunTracker | None,
        on_progress: Callable[[TrainProgress], None],
    ) -> tuple[int, bool]:
        """Trains until the last step or a stop request; returns the steps done and whether that is all."""
        config, instruments, saved = self.config, self.instruments, step
        self.engine.train()
        batches = iter(self.loader)
        facts = {**self.facts, "seed": config.seed, "world_size": self.world.size, "precision": config.engine.precision}
        while step < config.steps:
            instruments.waits_for_data(step)
            asked = time.perf_counter()
            batch = next(batches)
            waited_s = time.perf_counter() - asked
            rates = set_learning_rates(self.engine, rate_factor(step, config.steps, config.optimizer.warmup_steps))
            setting = StepSetting(config.terms.weights_at(step), rates, facts)
            result = run_step(
                self.engine, batch, setting.weights, stop_requested=stop.signal is not None,
                alarm=bool(instruments.guard.alarm), clock=instruments.clock,
                tap=instruments.begin(batch, setting.weights),
            )  # fmt: skip
            instruments.end(batch, result, setting, waited_s)
            step += 1
            if step % config.log_every == 0 or step == config.steps:
                self._record(step, instruments.record(setting), tracker, on_progress)
            if config.meters.pictures_every and step % config.meters.pictures_every == 0:
                self._draw(step, tracker)
            if step % config.checkpoint.every_steps == 0 or step == config.steps or result.stop:
                instruments.clock.enter("checkpoint")
                self._save(step, tracker)
                saved = step
            if result.stop and step < config.steps:
                log.warning("stopped at step %d of %d; the same command continues it", saved, config.steps)
                return step, False
        return step, True

    def _record(
        self,
        step: int,
        values: dict[str, float],
        tracker: RunTracker | None,
        on_progress: Callable[[TrainProgress], None],
    ) -> None:
        if tracker is None:
            return
        append_record(self.folder / "logs" / "metrics.jsonl", step, values)
        tracker.metrics(values, step)
        on_progress(TrainProgress(step, self.config.steps, values))

    def _draw(self, step: int, tracker: RunTracker | None) -> None:
        self.instruments.clock.enter("pictures")
        path = self.pictures.draw(self.engine, step)
        if path and tracker:
            tracker.artifact(path, "pictures")

    def _save(self, step: int, tracker: RunTracker | None) -> None:
        checkpoints.save_checkpoint(self.folder, self.engine, self.world, step, self.facts)
        lineage = {"run_id": self.run_id, "dataset_ids": self.facts["dataset_ids"], "run": self.folder.name}
        checkpoints.save_weights(self.folder, self.engine, self.world, step, lineage)
        if tracker:
            manifest = self.folder / "checkpoints" / checkpoints.step_name(step) / "manifest.json"
            tracker.checkpoint(step, hashlib.sha256(manifest.read_bytes()).hexdigest())
        if self.world.rank == 0:
            checkpoints.remove_old(self.folder, self.config.checkpoint.keep_last)

    def open_tracker(self, tracking: TrackingConfig, recipe: Mapping[str, Any]) -> RunTracker:
        """Starts or continues the run's records and writes recipe.yaml and run.json."""
        tag = dataset_tag(self.facts["dataset_ids"])
        self.folder.mkdir(parents=True, exist_ok=True)
        atomic_write(self.folder / "recipe.yaml", yaml.safe_dump(dict(recipe), sort_keys=False).encode())
        tracker = RunTracker(
            tracking,
            self.folder,
            run_name=f"train {self.folder.name}",
            tags={"mcjepa.stage": "train", "mcjepa.dataset_ids": tag, **git_state()},
            on_contact=self._write_run,
        )
        if not tracker.run_id:
            self._write_run("")
        tracker.parent("mcjepa.prep_run", {"mcjepa.stage": "prep", "mcjepa.dataset_ids": tag})
        tracker.params(recipe)
        stream = self.config.stream
        locations = {name: [source.location for source in getattr(stream, name)] for name in ("pairs", "views")}
        tracker.datasets(dataset_records(locations, self.loader.dataset_ids))
        tracker.artifact(self.folder / "recipe.yaml")
        for name, summary in self.loader.describe().items():
            log.info("%s: %s", name, summary)
        return tracker

    def _write_run(self, run_id: str) -> None:
        """Writes run.json, again when the MLflow run is known."""
        self.run_id = run_id
        record = {"version": 1, "run_id": run_id, **git_state(), **self.facts}
        atomic_write(self.folder / "run.json", json.dumps(record, indent=1, sort_keys=True).encode())
