"""Trains the joint model from published datasets: the whole loop, to be read in one sitting.

    mcjepa train RECIPE train.engine.precision=fp32                  on a CPU, one process
    mcjepa train RECIPE --ranks 0                                    one node, a process per GPU (per core without GPUs)
    srun --ntasks-per-node 8 mcjepa train RECIPE                     many nodes, by Slurm's variables
    torchrun --nnodes 4 --nproc_per_node 8 … -m mcjepa train RECIPE        many nodes, by torchrun's

A run lives in a folder or an s3 prefix and is continued from its newest whole checkpoint when the command is given
again, on as many processes and in whichever ZeRO stage:

    RUN/recipe.yaml  RUN/run.json  RUN/checkpoints/  RUN/weights/  RUN/bad_steps/  RUN/logs/metrics.jsonl
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mcjepa.data_prep.errors import DataError
from mcjepa.model.config import ModelConfig
from mcjepa.model.mcjepa import MCJEPA, TERMS
from mcjepa.pipeline.agreement import require_same_start
from mcjepa.pipeline.checkpoint import CheckpointKeeper, newest_weights
from mcjepa.pipeline.checkpoint.resume import find_start, in_order_of
from mcjepa.pipeline.checkpoint.rotation import find_metric, set_aside_after
from mcjepa.pipeline.engine.engine import build_engine, seed_step, set_learning_rates, start_world, stop_world
from mcjepa.pipeline.engine.parameters import stop_gradients
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.monitor.guards import StepSetting, StopRequest
from mcjepa.pipeline.monitor.instruments import Instruments
from mcjepa.pipeline.monitor.watchdog import Watchdog
from mcjepa.pipeline.run.claim import RunClaim, claimed
from mcjepa.pipeline.run.folder import RunFolder
from mcjepa.pipeline.run.pictures import RunPictures
from mcjepa.pipeline.run.recipes import Continuation, RunRecipes, check_model_changes, check_steps_left, say_changes
from mcjepa.pipeline.run.start import begin_start
from mcjepa.pipeline.run.weights import load_initial_weights
from mcjepa.pipeline.settings.train import TrackingConfig, TrainConfig
from mcjepa.pipeline.step.clock import CLOSING
from mcjepa.pipeline.step.micro_batches import check_micro_batches
from mcjepa.pipeline.step.schedule import Schedule, build_schedule, late_terms
from mcjepa.pipeline.step.step import run_step
from mcjepa.pipeline.stream.loader import StepLoader, build_loader
from mcjepa.pipeline.tracking.run_records import RunRecords
from mcjepa.pipeline.world import World, broadcast_from_rank0, gather_all

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainProgress:
    """Told to the caller before the first step and after each."""

    step: int
    steps: int
    values: Mapping[str, float]
    """The meters' last record; empty before the first."""


@dataclass(frozen=True)
class TrainReport:
    """How a call of `train` ended."""

    steps: int
    """Steps done in all."""
    finished: bool
    """Whether the run reached its last step; otherwise it was asked to stop."""
    run_id: str
    """Of MLflow, on rank 0; empty on the others, and where it is away."""
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
        on_progress: called on rank 0 before the first step and after each.

    Returns:
        How it ended, on every rank.

    Raises:
        UsageError: settings that do not fit, or not to the run that is continued; a spike that the recipe stops at.
        DataError: unusable datasets, a run without a whole checkpoint, one that another process trains, or one in a
            folder that the nodes do not share.
        RunError: too many bad steps or failed saves in a row, or the last checkpoint was not saved.
    """
    world = start_world(config.engine)
    with contextlib.ExitStack() as stack:
        stack.callback(stop_world)
        require_same_start(recipe, world, "recipe")
        stop = stack.enter_context(StopRequest())
        run, step = _open_run(config, model_config, world, recipe, stack)
        records = RunRecords(run.folder, world, tracking, recipe, run.facts, run.continuation)
        records.datasets(config.stream, run.loader)
        status = "FAILED"
        try:
            step, finished = run.loop(step, stop, records, on_progress)
            run.instruments.clock.enter(CLOSING)
            run.keeper.close(lambda: run.grace_left_s(stop))
            run.record_checkpoints(records)
            status = "FINISHED" if finished else "KILLED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            weights = newest_weights(run.folder.path)
            records.end(status, weights if status == "FINISHED" else None)
        return TrainReport(step, finished, records.run_id, weights, run.instruments.guard.total)


def _open_run(
    config: TrainConfig,
    model_config: ModelConfig,
    world: World,
    recipe: Mapping[str, Any],
    stack: contextlib.ExitStack,
) -> tuple[_Run, int]:
    """Builds the parts of a run, which the stack ends, and puts its newest checkpoint into them; the steps done."""
    check_micro_batches(config.stream, world.size, config.engine.accumulation_steps)
    folder = RunFolder(config.run, config.checkpoint.scratch)
    claim = stack.enter_context(claimed(folder.store, world))
    begin_start(folder, world)
    start = find_start(folder.store, world)
    continuation = _compare_recipes(folder, recipe, config, world, start.step if start else 0)
    config = in_order_of(start, config)
    torch.manual_seed(config.seed)
    model = MCJEPA(model_config)
    origin = load_initial_weights(model, config.init_from, folder.path, continued=start is not None)
    if config.frozen_encoder:
        stop_gradients(model.encoder)
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
    require_same_start(loader.order, world, "set of datasets")
    _check_shards(loader, world)
    for name, summary in loader.describe().items():
        log.info("%s: %s", name, summary.in_words())
    schedule = _checked_schedule(config, loader, continuation)
    facts = run_facts(config, loader)
    keeper = CheckpointKeeper(config.checkpoint, world, folder, facts)
    stack.callback(keeper.abandon)
    if start:
        keeper.restore(start, engine)
        if world.rank == 0:
            set_aside_after(folder.store, start.step)
        if world.local_rank == 0:
            folder.forget_weights_after(start.step)
        log.info("continuing %s from step %d", config.run, start.step)
    instruments = Instruments(config, world, engine, folder.path)
    stack.callback(instruments.close)
    stack.enter_context(Watchdog(config.guards, instruments.clock, folder.path, world.rank, world.size))
    engine_facts = {"zero_stage": config.engine.zero_stage, "precision": config.engine.precision}
    facts |= {"world_size": world.size, "init_from": origin, **engine_facts}
    parts = (config, world, claim, engine, loader, keeper, instruments, folder, facts, continuation, schedule)
    return _Run(*parts), start.step if start else 0


def _compare_recipes(
    folder: RunFolder, recipe: Mapping[str, Any], config: TrainConfig, world: World, step: int
) -> Continuation:
    """What differs from the recipe that the run has had so far: said, or refused by all ranks."""
    found = RunRecipes(folder.path).continuation(recipe, step) if world.rank == 0 else Continuation(step)
    continuation = broadcast_from_rank0(found, world)
    check_model_changes(continuation, config.allow_model_changes)
    if world.rank == 0:
        say_changes(continuation)
    return continuation


def _check_shards(loader: StepLoader, world: World) -> None:
    """Compares shards with their manifests, each rank its share; damage that any of them finds is refused by all."""
    try:
        problem = loader.find_damage()
    except (DataError, OSError) as error:  # told to all: the other ranks are waiting
        problem = str(error)
    if problems := [text for text in gather_all(problem, world) if text]:
        raise DataError(problems[0])


def _checked_schedule(config: TrainConfig, loader: StepLoader, continuation: Continuation) -> Schedule:
    """The run's schedule; a run that is longer already is refused, terms that never begin are named."""
    schedule, step = build_schedule(config, loader.steps_per_epoch), continuation.step
    if step > schedule.steps:
        raise UsageError(
            f"resume refused: {config.run} is at step {step}, and the recipe ends it after {schedule.steps}; expected "
            f"train.steps of at least {step}; raise it, or choose another folder with train.run=DIR"
        )
    check_steps_left(continuation, schedule.steps, config.allow_model_changes)
    if late := late_terms(schedule, config):
        log.warning("%s; start them earlier (train.terms), train longer, or set their weights to 0", late)
    return schedule


def _ignore(_: TrainProgress) -> None:
    """For ranks that tell nothing."""


def run_facts(config: TrainConfig, loader: StepLoader) -> dict[str, Any]:
    """What must be the same when a run is continued: all that the order of samples hangs on."""
    return {
        "dataset_ids": sorted({i for ids in loader.dataset_ids.values() for i in ids}),
        "seed": config.seed,
        "pair_batch": config.stream.pair_batch,
        "view_batch": config.stream.view_batch,
        "order": loader.order,
    }


@dataclass
class _Run:
    """The parts of a run that the loop needs at hand."""

    config: TrainConfig
    world: World
    claim: RunClaim
    engine: Any
    loader: StepLoader
    keeper: CheckpointKeeper
    instruments: Instruments
    folder: RunFolder
    facts: Mapping[str, Any]
    continuation: Continuation
    schedule: Schedule
    stopped_at: float | None = None
    best_metric_seen: bool = False

    def loop(
        self, step: int, stop: StopRequest, records: RunRecords, on_progress: Callable[[TrainProgress], None]
    ) -> tuple[int, bool]:
        """Trains until the last step or a stop request; returns the steps done and whether that is all."""
        config, engine, instruments = self.config, self.engine, self.instruments
        schedule = self.schedule
        pictures = RunPictures(config.stream, config.seed, self.world, config.meters.pictures, self.folder.path)
        values: dict[str, float] = {}
        engine.train()
        tell = on_progress if self.world.rank == 0 else _ignore
        tell(TrainProgress(step, schedule.steps, values))
        batches = iter(self.loader)
        while step < schedule.steps:
            instruments.waits_for_data(step)
            asked = time.perf_counter()
            batch = next(batches)
            waited_s = time.perf_counter() - asked
            seed_step(config.seed, step, self.world.rank)
            rates = set_learning_rates(engine, schedule.rate_factor(step), schedule.idle_groups(step))
            setting = StepSetting(schedule.weights_at(step), rates, self.facts)
            ends = stop.signal is not None or self.claim.taken_over.is_set()
            result = run_step(
                engine, batch, setting.weights, stop_requested=ends,
                alarm=bool(instruments.guard.alarm), clock=instruments.clock,
                tap=instruments.begin(batch, setting.weights),
            )  # fmt: skip
            if result.stop:
                self.claim.check()
            instruments.end(batch, result, setting, waited_s)
            records.begin_delivery()
            step += 1
            last = step == schedule.steps
            if step % config.log_every == 0 or last:
                values = instruments.record(setting)
                records.metrics(step, values)
                self.record_checkpoints(records)
            tell(TrainProgress(step, schedule.steps, values))
            if config.meters.pictures_every and step % config.meters.pictures_every == 0:
                instruments.clock.enter("pictures")
                records.picture(pictures.draw(engine, step))
            if result.stop:
                self.stopped_at = stop.asked_at or time.monotonic()
            if self.keeper.due(step) or last or result.stop:
                self._save(step, values, records, final=last or result.stop)
            if result.stop and not last:
                log.warning("stopped at step %d of %d; the same command continues it", step, schedule.steps)
                return step, False
        return step, True

    def _save(self, step: int, values: Mapping[str, float], records: RunRecords, *, final: bool) -> None:
        self.instruments.clock.enter("checkpoint")
        self.claim.check()
        self.keeper.save(
            self.engine, step,
            lineage=records.lineage(), metrics=values, final=final, problem=records.unwritten(),
        )  # fmt: skip
        self.record_checkpoints(records)
        self._check_best_metric(step, final=final)

    def _check_best_metric(self, step: int, *, final: bool) -> None:
        """Ends all ranks, behind a save that counts, when the meter of the best checkpoint is none that is recorded."""
        config = self.config
        unseen = config.checkpoint.best_metric and not self.best_metric_seen
        if not unseen or step < max(config.meters.every, config.log_every):
            return
        problem = find_metric(self.folder.path, config.checkpoint, TERMS) if self.world.rank == 0 else ""
        if final and problem:
            log.warning("%s", problem)
        elif problem := broadcast_from_rank0("" if final else problem, self.world):
            raise UsageError(problem)
        self.best_metric_seen = not problem

    def record_checkpoints(self, records: RunRecords) -> None:
        """Writes down which checkpoints have become complete."""
        for checkpoint in self.keeper.committed():
            records.checkpoint(checkpoint.step, checkpoint.digest)

    def grace_left_s(self, stop: StopRequest) -> float | None:
        """What is left of the time between a stop request, of this rank or another, and the kill; None: none came."""
        asked_at = self.stopped_at or stop.asked_at
        return None if asked_at is None else max(self.config.checkpoint.grace_s - (time.monotonic() - asked_at), 0.0)
