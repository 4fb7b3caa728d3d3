"""`mcjepa drill`: trains a few steps of a recipe undisturbed and disturbed, and compares what came out."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcjepa.cluster.drill import Disturbance, Kind, Rehearsal, disturb, train_whole
from mcjepa.cluster.local import INTERRUPTED
from mcjepa.cluster.preflight.findings import errors_of
from mcjepa.data_prep.errors import DataError
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.launch.sites import launch_errors
from mcjepa.pipeline.recipe.recipe import load_recipe, required
from mcjepa.pipeline.recipe.short import write_short_recipe
from mcjepa.pipeline.settings.train import TrainConfig

REJECTED = 3
EVERY_STEPS = 2
LEAST_STEPS = 4


@dataclass(frozen=True)
class Outcome:
    """What a run left behind."""

    losses: Mapping[int, str]
    """Of every step, exactly; of a step that was trained twice, both if they differ."""
    order: Mapping[str, Any]
    """What the order of samples is a function of."""
    step: int
    """Of its newest whole checkpoint; 0 without one."""
    weights: str
    """sha256 of that checkpoint's weights."""


def run_drill(arguments: argparse.Namespace) -> int:
    """`mcjepa drill`: 0 where everything was kept, else 3."""
    recipe, plain = load_recipe(arguments.recipe, arguments.overrides)
    config: TrainConfig = required(recipe.train, "train", recipe)
    if arguments.steps < LEAST_STEPS:
        raise UsageError(f"--steps {arguments.steps}, expected at least {LEAST_STEPS}: some before and some after")
    ranks = _ranks(config, arguments.kind)
    _check_datasets(config)
    out = Path(arguments.out).expanduser().absolute() if arguments.out else None
    if out and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out} is there already, expected a new or empty folder; name another")
    with tempfile.TemporaryDirectory(prefix="mcjepa-drill-") as temporary, launch_errors():
        try:
            record = _rehearse(arguments.kind, plain, out or Path(temporary), arguments.steps, ranks, config)
        except KeyboardInterrupt:
            print("\nmcjepa: the drill was interrupted; its processes have ended, start it anew", file=sys.stderr)
            return INTERRUPTED
    _show(record, out, as_json=arguments.json)
    return 0 if record["kept"] else REJECTED


def _ranks(config: TrainConfig, kind: str) -> int:
    """Two where the lanes allow it.

    Raises:
        UsageError: a node is to be lost and the lanes allow one rank only.
    """
    from mcjepa.pipeline.stream.order import check_world_size

    batches = [batch for batch in (config.stream.pair_batch, config.stream.view_batch) if batch]
    try:
        check_world_size(2, batches)
    except UsageError as error:
        if kind == "node-loss":
            raise UsageError(f"a drill of node-loss needs two ranks: {error}") from error
        return 1
    return 2


def _check_datasets(config: TrainConfig) -> None:
    from mcjepa.pipeline.launch.facts import read_streams

    problems = errors_of(read_streams(config.stream, config.seed)[1])
    if problems:
        raise DataError("; ".join(map(str, problems)))


def _rehearse(
    kind: Kind, plain: Mapping[str, Any], folder: Path, steps: int, ranks: int, config: TrainConfig
) -> dict[str, Any]:
    """Both runs and their comparison, as plain data."""
    grace_s = config.checkpoint.grace_s
    whole, disturbed = (_rehearsal(plain, folder / name, steps, ranks, grace_s) for name in ("whole", "disturbed"))
    print(f"drill {kind}: {steps} steps on {ranks} rank(s), undisturbed", file=sys.stderr, flush=True)
    train_whole(whole)
    print(f"drill {kind}: the same, disturbed", file=sys.stderr, flush=True)
    done = disturb(kind, disturbed, after=EVERY_STEPS if kind == "node-loss" else 1)
    expected, found = (read_outcome(folder / name / "run") for name in ("whole", "disturbed"))
    differences = ([done.problem] if done.problem else []) + compare(expected, found, steps)
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
    from mcjepa.pipeline.monitor.meters import read_records
    from mcjepa.pipeline.tracking import quiet_environment

    recipe = write_short_recipe(plain, folder, steps, EVERY_STEPS)
    words = [sys.executable, "-m", "mcjepa.pipeline.cli", "train", str(recipe), "--ranks", str(ranks), "--json"]
    metrics = folder / "run" / "logs" / "metrics.jsonl"
    return Rehearsal(
        words, quiet_environment(), folder / "train.log", lambda: len(read_records(metrics)), grace_s, ranks
    )


def read_outcome(run: Path) -> Outcome:
    """What a run's log and its newest checkpoint whose files are whole say."""
    from mcjepa.pipeline.checkpoint.manifest import complete_checkpoints

    losses: dict[int, str] = {}
    log = run / "logs" / "metrics.jsonl"
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
        return Outcome(losses, {}, 0, "")
    newest = saved[0]
    facts = newest.record["facts"]
    order = {k: facts[k] for k in ("dataset_ids", "seed", "pair_batch", "view_batch", "order")}
    return Outcome(losses, order, newest.step, newest.record["weights_sha256"])


def compare(expected: Outcome, found: Outcome, steps: int) -> list[str]:
    """What of a disturbed run differs from the undisturbed one, in words; empty where nothing does."""
    differences = []
    wanted = set(range(1, steps + 1))
    for name, outcome in (("undisturbed", expected), ("disturbed", found)):
        missing = sorted(wanted - outcome.losses.keys())
        if missing:
            differences.append(f"the {name} run has no loss of steps {missing}")
        if outcome.step != steps:
            differences.append(f"the {name} run's newest whole checkpoint is of step {outcome.step}, not {steps}")
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


def _show(record: Mapping[str, Any], out: Path | None, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(record))
        return
    done = Disturbance(**record["disturbance"])
    what = {
        "preempt": f"SIGTERM after step {done.step}: saved and ended in {done.seconds:.1f} s of "
        f"{record['grace_s']:.0f} s grace (exit code {done.code})",
        "node-loss": f"kill -9 of a rank after step {done.step}: all had ended after {done.seconds:.1f} s "
        f"(exit code {done.code})",
        "storage": f"writing failed from step {done.step} on, for {done.seconds:.1f} s, until a save had failed",
    }[done.kind]
    rows = [("disturbance", what), ("starts", f"{done.starts} of the same command")]
    if record["kept"]:
        rows += [
            ("losses", f"{record['steps']} of {record['steps']} steps bit for bit as undisturbed"),
            ("samples", "the same order"),
            ("weights", f"the same, sha256 {record['weights_sha256'][:12]}"),
        ]
    rows += [("DIFFERENT", text) for text in record["differences"]]
    for name, text in rows:
        print(f"{name:<14}{text}")
    print(f"{'kept' if record['kept'] else 'NOT kept'}" + (f"; runs and logs are in {out}" if out else ""))
