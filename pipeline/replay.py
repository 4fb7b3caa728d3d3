"""Runs one step of a run again to see what went wrong in it: `mcjepa train RECIPE train.replay=RUN/bad_steps/FILE`.

The step's batch is read again by its number, its random state and term weights come from the flight record. The model's
weights are those of the newest complete checkpoint at or before the step, or those that the run began with; with
`train.replay_exact` the steps between are trained again first (nothing is saved), which gives the very weights of the
step where the run is deterministic. Nothing is updated and nothing goes to MLflow. What is found is printed and written
beside the record:

    RUN/bad_steps/replay-000000123-rank-00004.json
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mcjepa.data_prep.storage import atomic_write
from mcjepa.model.config import ModelConfig
from mcjepa.model.mcjepa import MCJEPA
from mcjepa.pipeline.checkpoint.resume import check_continuation, find_start, in_order_of, restore
from mcjepa.pipeline.engine.engine import build_engine, seed_step, set_learning_rates, start_world, stop_world
from mcjepa.pipeline.engine.parameters import branch_gradient_norms, stop_gradients
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.monitor.flight_record import (
    finite_samples,
    numbers,
    read_record,
    samples_of,
    state_of,
)
from mcjepa.pipeline.run.folder import RunFolder
from mcjepa.pipeline.run.weights import load_initial_weights
from mcjepa.pipeline.settings.train import TrainConfig
from mcjepa.pipeline.step.schedule import build_schedule
from mcjepa.pipeline.step.step import forward_parts, restore_random_state, run_step
from mcjepa.pipeline.stream.batches import StepBatch
from mcjepa.pipeline.stream.loader import StepLoader, build_loader
from mcjepa.pipeline.train import run_facts
from mcjepa.pipeline.world import World

log = logging.getLogger(__name__)


def replay(config: TrainConfig, model_config: ModelConfig) -> dict[str, Any]:
    """Runs the step of `config.replay` again; every rank calls it.

    Returns:
        This rank's report: also in its file.

    Raises:
        UsageError: no such record, or it is from another number of ranks.
        DataError: the datasets are gone or damaged.
    """
    world = start_world(config.engine)
    with contextlib.ExitStack() as stack:
        stack.callback(stop_world)
        record = read_record(Path(config.replay), world.rank)
        if record["world_size"] != world.size:
            raise UsageError(
                f"train.replay: {world.size} ranks, expected {record['world_size']} as in {config.replay}; "
                f"start as many: a rank's samples depend on it (--ranks {record['world_size']})"
            )
        folder = RunFolder(config.run, config.checkpoint.scratch)
        store = folder.store
        found = find_start(store, world, up_to=record["step"])
        config = in_order_of(found, config)
        model = _first_model(config, model_config, folder.path, continued=found is not None)
        watchable = replace(config, engine=replace(config.engine, compile=False))  # layer by layer
        engine = build_engine(model, watchable, world)
        exact = config.replay_exact or (found.step if found else 0) == record["step"]
        first = (found.step if found else 0) if config.replay_exact else record["step"]
        loader = build_loader(
            config.stream, rank=world.rank, world_size=world.size, start_step=first, seed=config.seed,
            device=world.device,
        )  # fmt: skip
        stack.callback(loader.close)
        if found:
            check_continuation(found, run_facts(config, loader))
            restore(found, store, engine, world)
        engine.train()
        batch = _train_up_to(record["step"], engine, loader, config, world)
        report = _run_again(engine, batch, record, world)
        report |= {"weights_of_step": found.step if found else 0, "exact_weights": exact}
        path = Path(config.replay).parent / f"replay-{record['step']:09d}-rank-{world.rank:05d}.json"
        atomic_write(path, json.dumps(report, indent=1).encode())
        log.info("replay of step %d: %s", record["step"], path)
        return report


def _first_model(config: TrainConfig, model_config: ModelConfig, run: Path, *, continued: bool) -> MCJEPA:
    """The model as a training builds it."""
    torch.manual_seed(config.seed)
    model = MCJEPA(model_config)
    load_initial_weights(model, config.init_from, run, continued=continued)
    if config.frozen_encoder:
        stop_gradients(model.encoder)
    return model


def _train_up_to(step: int, engine: Any, loader: StepLoader, config: TrainConfig, world: World) -> StepBatch:
    """Takes the steps before `step` that the loader starts with; returns the batch of `step`."""
    schedule = build_schedule(config, loader.steps_per_epoch)
    for batch in loader:
        seed_step(config.seed, batch.step, world.rank)
        if batch.step == step:
            return batch
        set_learning_rates(engine, schedule.rate_factor(batch.step), schedule.idle_groups(batch.step))
        run_step(engine, batch, schedule.weights_at(batch.step), stop_requested=False)
    raise AssertionError("the stream is endless")


def _run_again(engine: Any, batch: StepBatch, record: Mapping[str, Any], world: World) -> dict[str, Any]:
    restore_random_state(state_of(record), world.device)
    with _modules_watched(engine.module) as watched:
        output, last = forward_parts(engine, batch, record["weights"])
        engine.backward(last)
    norms = branch_gradient_norms(engine)
    samples = samples_of(batch)
    return {
        "step": record["step"],
        "rank": world.rank,
        "recorded": {name: record[name] for name in ("reason", "loss", "terms")},
        "same_samples": samples == record["samples"],
        "samples": samples,
        "finite_samples": finite_samples(batch),
        "loss": repr(float(output.loss.detach())),
        "terms": numbers(output.terms),
        "gradient_norms": numbers(norms) if norms is not None else None,
        "first_non_finite_module": watched.first,
    }


@dataclass
class _Watched:
    first: str = ""
    """The first module, in order of the forward pass, whose output is not finite although its inputs are."""
    handles: list[Any] = field(default_factory=list)


@contextlib.contextmanager
def _modules_watched(module: nn.Module) -> Iterator[_Watched]:
    watched = _Watched()

    def look(name: str, inputs: Any, outputs: Any) -> None:
        if not watched.first and not _finite(outputs) and _finite(inputs):
            watched.first = name

    for name, part in module.named_modules():
        if not list(part.children()):
            watched.handles.append(part.register_forward_hook(lambda _, i, o, name=name: look(name, i, o)))
    try:
        yield watched
    finally:
        for handle in watched.handles:
            handle.remove()


def _finite(values: Any) -> bool:
    if isinstance(values, Tensor):
        return bool(values.isfinite().all())
    return all(_finite(value) for value in values) if isinstance(values, (list, tuple)) else True


def explain_replay(report: Mapping[str, Any]) -> Iterator[str]:
    """The report of a rank in lines for a person."""
    recorded = report["recorded"]
    yield f"step {report['step']}, rank {report['rank']}: recorded as a bad {recorded['reason']}"
    how = "the step's own weights" if report["exact_weights"] else "older weights: train.replay_exact=true for its own"
    yield f"  weights of step {report['weights_of_step']} ({how})"
    yield f"  samples {'as recorded' if report['same_samples'] else 'DIFFER from the record: other data or seed'}"
    for stream, flags in report["finite_samples"].items():
        wrong = [key for key, finite in zip(report["samples"][stream], flags, strict=True) if not finite]
        yield f"  {stream}: {len(flags)} samples, " + (f"not finite: {', '.join(wrong)}" if wrong else "all finite")
    yield f"  loss {report['loss']} (recorded {recorded['loss']})"
    for name, value in report["terms"].items():
        yield f"  {name:<16} {value:>24} (recorded {recorded['terms'].get(name, 'absent')})"
    for name, value in (report["gradient_norms"] or {}).items():
        yield f"  gradient of {name:<12} {value}"
    yield f"  first module with a non-finite output: {report['first_non_finite_module'] or 'none'}"
