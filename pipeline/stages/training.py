"""The train stage: one rank of a run to its end, with the run's last word in RUN/train_report.json."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import resource
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil

from mcjepa.data_prep.process import interruption_kept
from mcjepa.data_prep.storage import open_store
from mcjepa.pipeline.errors import RunError, UsageError
from mcjepa.pipeline.launch.ranks import fitting_ranks
from mcjepa.pipeline.recipe.recipe import Recipe, required
from mcjepa.pipeline.run.folder import TRAIN_REPORT
from mcjepa.pipeline.settings.train import TrainConfig
from mcjepa.pipeline.world import adopt_world, is_world_started

if TYPE_CHECKING:
    from mcjepa.pipeline.train import TrainProgress


@dataclass(frozen=True)
class Trained:
    """How the stage ended on this rank."""

    finished: bool
    record: dict[str, Any] | None
    """What train_report.json holds; None on ranks other than the first."""


def single_run(recipe: Recipe) -> TrainConfig:
    """The settings of the recipe's only run.

    Raises:
        UsageError: the recipe has no `train` part, or several runs.
    """
    config: TrainConfig = required(recipe.train, "train", recipe)
    if recipe.sweep:
        raise UsageError(
            f"recipe {recipe.name} has a sweep over {', '.join(recipe.sweep)}, expected one run; train all "
            "with `mcjepa launch train`, or one with sweep=null"
        )
    return config


def ranks_to_start(config: TrainConfig, asked: int) -> int:
    """Processes that this one is to start; 1: it trains itself, alone or as a rank that a launcher started.

    Args:
        config: the run's settings.
        asked: number of ranks; 0: as many as fit this machine and the batch.
    """
    return 1 if is_world_started(os.environ) else asked or fitting_ranks(config)


OTHERS_GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process has terminated")
"""How gloo and NCCL say that another rank has ended."""


def explain_loss(reason: str, rank: str) -> str:
    """What a RuntimeError of torch means where another process of the run has ended or memory has; else empty.

    Args:
        reason: its text.
        rank: of this process.
    """
    where = f"rank {rank} on {socket.gethostname()}"
    if found := re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", reason):
        ended = re.search(r"signal: (\w+)", reason)
        used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        free = psutil.virtual_memory().available / 2**20
        signal_name = f" by signal {ended.group(1)}" if ended else ""
        return (
            f"a loading process of {where} (pid {found.group(1)}) was ended{signal_name}; out of memory is the usual "
            f"cause: the largest one used {used:.0f} MiB, {free:.0f} MiB are free now; lower train.stream.workers, "
            "prefetch or cache_mib, or ask for more memory; the same command continues"
        )
    if "out of memory" in reason or "can't allocate memory" in reason:
        return (
            f"{where} ran out of memory ({reason.splitlines()[0][:200]}), expected a step that fits; `mcjepa plan` "
            "says what one needs; lower train.stream.pair_batch, view_batch or the crops, set train.engine.offload or "
            "model.encoder.activation_checkpointing=true, or use more ranks"
        )
    if any(words in reason for words in OTHERS_GONE):
        first = reason.splitlines()[0][:200]
        return (
            f"{where} has lost another rank, which ended or was killed ({first}); the line of that rank, or of the "
            "command that started it, says why; the same command continues from the newest checkpoint"
        )
    return ""


def run_training(recipe: Recipe, plain: dict[str, Any], on_progress: Callable[[TrainProgress], None]) -> Trained:
    """Trains one rank of a run to its end, or to the checkpoint after a stop request."""
    with interruption_kept():
        from mcjepa.pipeline.train import train

    started = time.perf_counter()
    config = single_run(recipe)
    adopt_world(os.environ)
    first_rank = os.environ["RANK"] == "0"
    try:
        report = train(config, recipe.model, recipe.tracking, plain, on_progress)
    except RuntimeError as error:
        problem = explain_loss(str(error), os.environ["RANK"])
        if not problem:
            raise
        raise RunError(problem) from error
    if not first_rank:
        return Trained(report.finished, None)
    record = {
        **dataclasses.asdict(report),
        "weights": str(report.weights) if report.weights else None,
        "seconds": round(time.perf_counter() - started, 1),
    }
    open_store(config.run).write(TRAIN_REPORT, json.dumps(record, indent=1).encode())
    return Trained(report.finished, record)
