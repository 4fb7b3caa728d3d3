"""`mcjepa drill`: trains a few steps of a recipe undisturbed and disturbed, and compares what came out."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcjepa.cluster.drill import Kind, Rehearsal, disturb, train_whole
from mcjepa.cluster.preflight.findings import errors_of
from mcjepa.data_prep.errors import DataError
from mcjepa.pipeline.checkpoint.manifest import complete_checkpoints
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.launch.facts import read_streams
from mcjepa.pipeline.launch.ranks import fitting_ranks, program
from mcjepa.pipeline.launch.sites import launch_errors
from mcjepa.pipeline.recipe.recipe import Recipe, required
from mcjepa.pipeline.recipe.short import write_short_recipe
from mcjepa.pipeline.run.folder import METRICS, read_metrics
from mcjepa.pipeline.settings.train import TrainConfig
from mcjepa.pipeline.tracking import quiet_environment

EVERY_STEPS = 2
LEAST_STEPS = 4


@dataclass(frozen=True)
class RunEnd:
    """What a run left behind."""

    losses: Mapping[int, str]
    """Of every step, exactly; of a step that was trained twice, both if they differ."""
    order: Mapping[str, Any]
    """What the order of samples is a function of."""
    step: int
    """Of its newest whole checkpoint; 0 without one."""
    weights: str
    """sha256 of that checkpoint's weights."""


def rehearse(
    kind: Kind, recipe: Recipe, plain: Mapping[str, Any], out: Path | None, steps: int, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Trains undisturbed and disturbed, on two ranks where the batches allow it, and compares.

    Args:
        kind: of the disturbance.
        recipe: with a `train` part.
        plain: the same as plain data.
        out: folder of both runs; None: a temporary one.
        steps: of each run.
        tell: gets a line before each run.

    Returns:
        What was done, what is different, and whether everything was `kept`.

    Raises:
        UsageError: too few steps, or only one rank where one is to be lost.
        DataError: the datasets cannot be read.
    """
    config: TrainConfig = required(recipe.train, "train", recipe)
    if steps < LEAST_STEPS:
        raise UsageError(f"--steps {steps}, expected at least {LEAST_STEPS}: some before and some after")
    ranks = fitting_ranks(config, most=2)
    if kind == "node-loss" and ranks < 2:
        raise UsageError("a drill of node-loss needs two ranks, and 2 do not divide the batches; choose even ones")
    problems = errors_of(read_streams(config.stream, config.seed)[1])
    if problems:
        raise DataError("; ".join(map(str, problems)))
    with tempfile.TemporaryDirectory(prefix="mcjepa-drill-") as temporary, launch_errors():
        folder, grace_s = out or Path(temporary), config.checkpoint.grace_s
        whole, disturbed = (_rehearsal(plain, folder / name, steps, ranks, grace_s) for name in ("whole", "disturbed"))
        tell(f"drill {kind}: {steps} steps on {ranks} rank(s), undisturbed")
        train_whole(whole)
        tell(f"drill {kind}: the same, disturbed")
        done = disturb(kind, disturbed, after=EVERY_STEPS if kind == "node-loss" else 1)
        expected, found = (read_end(folder / name / "run") for name in ("whole", "disturbed"))
    differences = ([done.problem] if done.problem else []) + compare_ends(expected, found, steps)
    return {
        "kind": kind,
        "ranks": ranks,
        "steps": steps,
        "grace_s": grace_s,
        "disturbance": dataclasses.asdict(done),
        "weights_sha256": found.weights,
        "order": dict(found.order),
        "differences": differences,
        "kept": not differences,
    }


def _rehearsal(plain: Mapping[str, Any], folder: Path, steps: int, ranks: int, grace_s: float) -> Rehearsal:
    recipe = write_short_recipe(plain, folder, steps, EVERY_STEPS)
    words = program("train", str(recipe), "--ranks", str(ranks), "--json")
    metrics = folder / "run" / METRICS
    return Rehearsal(
        words, quiet_environment(), folder / "train.log", lambda: len(read_metrics(metrics)), grace_s, ranks
    )


def read_end(run: Path) -> RunEnd:
    """What a run's log and its newest checkpoint whose files are whole say."""
    losses: dict[int, str] = {}
    log = run / METRICS
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # torn by a kill; the step is trained again
            continue
        loss = repr(record["loss"])
        before = losses.get(record["step"], loss)
        losses[record["step"]] = loss if before == loss else f"{before} and {loss}"
    saved = complete_checkpoints(run)
    if not saved:
        return RunEnd(losses, {}, 0, "")
    newest = saved[0]
    facts = newest.record["facts"]
    order = {k: facts[k] for k in ("dataset_ids", "seed", "pair_batch", "view_batch", "order")}
    return RunEnd(losses, order, newest.step, newest.record["weights_sha256"])


def compare_ends(expected: RunEnd, found: RunEnd, steps: int) -> list[str]:
    """What of a disturbed run differs from the undisturbed one, in words; empty where nothing does."""
    differences = []
    wanted = set(range(1, steps + 1))
    for name, end in (("undisturbed", expected), ("disturbed", found)):
        missing = sorted(wanted - end.losses.keys())
        if missing:
            differences.append(f"the {name} run has no loss of steps {missing}")
        if end.step != steps:
            differences.append(f"the {name} run's newest whole checkpoint is of step {end.step}, not {steps}")
    both = sorted(expected.losses.keys() & found.losses.keys())
    differences += [
        f"loss of step {step}: {expected.losses[step]} undisturbed, {found.losses[step]} disturbed"
        for step in both
        if expected.losses[step] != found.losses[step]
    ]
    if expected.order != found.order:
        differences.append(f"the order of samples: {expected.order} undisturbed, {found.order} disturbed")
    if expected.weights != found.weights:
        differences.append(f"weights: sha256 {expected.weights[:12]} undisturbed, {found.weights[:12]} disturbed")
    return differences
