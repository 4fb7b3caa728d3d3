"""Finds the checkpoint that a run is continued from, and puts it into an engine of any world size and ZeRO stage."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import Store
from mcjepa.pipeline.checkpoint.manifest import MANIFEST, Checkpoint, find_damage, list_checkpoints
from mcjepa.pipeline.checkpoint.state_file import fill_pieces, read_index
from mcjepa.pipeline.engine.state import (
    buffer_pieces,
    held_pieces,
    parameter_shapes,
    refresh_parameters,
    set_loss_scale_state,
    set_updates_done,
)
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.run.folder import CHECKPOINTS
from mcjepa.pipeline.settings.train import TrainConfig
from mcjepa.pipeline.world import World, broadcast_from_rank0, gather_all

log = logging.getLogger(__name__)


def find_start(store: Store, world: World, up_to: int | None = None) -> Checkpoint | None:
    """The newest whole checkpoint of a run, or of its first `up_to` steps; all ranks call it, each hashes its share.

    A damaged one is passed over with a warning.

    Returns:
        None for a run that has never completed a checkpoint.

    Raises:
        DataError: the store cannot be read, or not one of the complete checkpoints is whole.
    """
    problem, checkpoints, manifests = "", [], 0
    if world.rank == 0:
        try:
            checkpoints = [c for c in list_checkpoints(store) if up_to is None or c.step <= up_to]
            manifests = sum(key.endswith(f"/{MANIFEST}") for key in store.list(f"{CHECKPOINTS}/step-"))
        except (DataError, OSError) as error:  # told to all: the other ranks are waiting
            problem = str(error)
    checkpoints, manifests, problem = broadcast_from_rank0((checkpoints, manifests, problem), world)
    if problem:
        raise DataError(problem)
    for checkpoint in checkpoints:
        try:
            finding = (find_damage(store, checkpoint, world.rank, world.size), "")
        except (DataError, OSError) as error:
            finding = ("", str(error))
        findings = gather_all(finding, world)
        if unread := [text for _, text in findings if text]:
            raise DataError(unread[0])
        damage = [text for text, _ in findings if text]
        if not damage:
            return checkpoint
        if world.rank == 0:
            log.warning("checkpoint %s does not count: %s; the one before is used", checkpoint.name, damage[0])
    if manifests and up_to is None:  # to begin anew by itself would throw a run away
        raise DataError(
            f"no checkpoint of {store.location} is whole, of {manifests} that were complete; expected one; look at the "
            f"disk, choose another folder with train.run=DIR, or remove its {CHECKPOINTS} to start anew"
        )
    return None


def in_order_of(start: Checkpoint | None, config: TrainConfig) -> TrainConfig:
    """The settings with the order of samples in which a run began: a later version of it is for new runs."""
    stream = config.stream
    if start is None or "version" in start.record["facts"]["order"] or stream.order_version == 1:
        return config
    log.info("the run goes on in version 1 of the order of samples, in which it began")
    return replace(config, stream=replace(stream, order_version=1, lanes=0))


def check_continuation(checkpoint: Checkpoint, facts: Mapping[str, Any]) -> None:
    """Refuses to continue with what would not be the same run: other data, another order of samples.

    World size, ZeRO stage and precision may change.

    Raises:
        UsageError: naming what differs.
    """
    for name, now in facts.items():
        before = checkpoint.record["facts"].get(name)
        if before != now:
            raise UsageError(
                f"resume refused: {name} is {now}, expected {before} as in {checkpoint.name}; "
                "restore it, or choose another folder with train.run=DIR"
            )


def restore(checkpoint: Checkpoint, store: Store, engine: Any, world: World) -> None:
    """Puts weights, moments and counts of a checkpoint into an engine; all ranks call it.

    The pieces that this rank holds are read by range out of whichever files they lie in: its own file where world and
    stage are those that wrote it, else a part of several.

    Raises:
        UsageError: the model is another one.
        DataError: the checkpoint does not hold all of it, or cannot be read.
    """
    _check_model(checkpoint, parameter_shapes(engine))
    problem, stored = "", []
    if world.rank == 0:
        try:
            names = sorted(name for name in checkpoint.files if name.startswith("state-"))
            stored = read_index(store, checkpoint.key, names)
        except (DataError, OSError) as error:
            problem = str(error)
    stored, problem = broadcast_from_rank0((stored, problem), world)
    if not problem:
        try:
            fill_pieces(store, checkpoint.key, stored, [*held_pieces(engine), *buffer_pieces(engine)])
        except (DataError, OSError) as error:
            problem = str(error)
    if problems := [text for text in gather_all(problem, world) if text]:
        raise DataError(problems[0])
    refresh_parameters(engine)
    set_updates_done(engine, checkpoint.record["updates"])
    set_loss_scale_state(engine, checkpoint.record["loss_scale"])
    engine.global_steps = checkpoint.step
    if world.rank == 0:
        before = (checkpoint.record["world_size"], checkpoint.record["zero_stage"])
        if before != (world.size, engine.zero_optimization_stage()):
            log.info(
                "resumed on %d ranks with ZeRO %d; %s was written by %d with ZeRO %d",
                world.size, engine.zero_optimization_stage(), checkpoint.name, *before,
            )  # fmt: skip


def _check_model(checkpoint: Checkpoint, now: Mapping[str, list[int]]) -> None:
    before = checkpoint.record["parameters"]
    for name in sorted(set(before) | set(now)):
        if before.get(name) != now.get(name):
            raise UsageError(
                f"resume refused: parameter {name} of the model has shape {now.get(name, 'none')}, expected "
                f"{before.get(name, 'none')} as in {checkpoint.name}; restore the recipe's model part, or choose "
                "another folder with train.run=DIR"
            )
