"""`mcjepa train`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time

from mcjepa.data_prep.storage import open_store
from mcjepa.model.config import ModelConfig
from mcjepa.pipeline.cli.output import StageProgress
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.recipe.recipe import load_recipe, required
from mcjepa.pipeline.settings.train import TrainConfig

INTERRUPTED = 130


def _start_ranks(arguments: argparse.Namespace, ranks: int, grace_s: float) -> int:
    """Runs this very command as several ranks on this machine."""
    from mcjepa.cluster.local import run_ranks

    options = ["-v"] if arguments.verbose else []
    words = ["train", arguments.recipe, *(["--json"] if arguments.json else []), *arguments.overrides]
    return run_ranks([sys.executable, "-m", "mcjepa.pipeline.cli", *options, *words], ranks, grace_s=grace_s)


def _fitting_ranks(config: TrainConfig) -> int:
    """One rank a GPU, else one a core of ours, rounded down to what the lanes of the streams allow."""
    import torch

    from mcjepa.pipeline.stream.order import check_world_size

    most = torch.cuda.device_count() or len(os.sched_getaffinity(0))
    batches = [batch for batch in (config.stream.pair_batch, config.stream.view_batch) if batch]
    for ranks in range(most, 1, -1):
        try:
            check_world_size(ranks, batches)
        except UsageError:
            continue
        return ranks
    return 1


def _replay(config: TrainConfig, model_config: ModelConfig, as_json: bool) -> int:
    from mcjepa.pipeline.replay import explain, replay

    report = replay(config, model_config)
    print(json.dumps(report) if as_json else "\n".join(explain(report)))
    return 0


def run_training(arguments: argparse.Namespace) -> int:
    """Trains one rank of a run to its end, or to the checkpoint after a stop request."""
    started = time.perf_counter()
    recipe, plain = load_recipe(arguments.recipe, arguments.overrides)
    config = required(recipe.train, "train", recipe)
    if recipe.sweep:
        raise UsageError(
            f"recipe {recipe.name} has a sweep over {', '.join(recipe.sweep)}, expected one run; train all "
            "with `mcjepa launch train`, or one with sweep=null"
        )
    from mcjepa.pipeline.world import adopt_world, slurm_variables

    world_started = "RANK" in os.environ or bool(slurm_variables(os.environ))
    if not world_started:
        ranks = arguments.ranks or _fitting_ranks(config)
        if ranks > 1:
            return _start_ranks(arguments, ranks, config.checkpoint.grace_s)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin at barriers starve each other
    if config.replay:
        return _replay(config, recipe.model, arguments.json)
    from mcjepa.pipeline.train import TrainProgress, train

    adopt_world(os.environ)
    first_rank = os.environ["RANK"] == "0"
    with StageProgress("train") as progress:

        def show(event: TrainProgress) -> None:
            values = event.values
            parts = [f"loss {values['loss']:.3f}"] if "loss" in values else []
            parts += [f"{k} {values[k]:.3f}" for k in ("reconstruction", "content") if k in values]
            parts.append(f"{values['seconds_per_step']:.2f} s/step, {values['data_wait_share']:.0%} waiting")
            progress.update("steps", event.step, event.steps, ", ".join(parts))

        report = train(config, recipe.model, recipe.tracking, plain, show)
    if not first_rank:
        return 0 if report.finished else INTERRUPTED
    record = {
        **dataclasses.asdict(report),
        "weights": str(report.weights) if report.weights else None,
        "seconds": round(time.perf_counter() - started, 1),
    }
    open_store(config.run).write("train_report.json", json.dumps(record, indent=1).encode())
    if arguments.json:
        print(json.dumps(record))
    elif report.finished:
        print(f"trained {report.steps} steps; weights: {report.weights}; MLflow run {report.run_id}")
    return 0 if report.finished else INTERRUPTED
