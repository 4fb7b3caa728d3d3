"""Trains and evaluates every arm and seed of a study, one after the other; what is finished is not done again.

    OUT/study.json                          the MLflow run that all trainings are children of
    OUT/runs/ARM/seed-N/recipe.yaml         the run's own whole recipe; `mcjepa train` and `mcjepa eval all` read it
                        run/  eval/         what these write
                        train.log eval.log

Runs go seed by seed, so that every finished seed is a complete comparison. Several commands may share a study: each
takes runs that no other holds (a kernel lock, which ends with its process). Studies that share `out` share arms of the
same name: an arm that another one has trained is there already, and its settings must be the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mcjepa.cluster.local import GRACE_S, INTERRUPTED, Interrupted, run_ranks
from mcjepa.data_prep.storage import atomic_write
from mcjepa.pipeline.errors import RunError, UsageError
from mcjepa.pipeline.exits import OK, PARTIAL
from mcjepa.pipeline.launch.ranks import program
from mcjepa.pipeline.recipe.files import apply_overrides, override
from mcjepa.pipeline.recipe.recipe import Recipe, required
from mcjepa.pipeline.recipe.validation import validate
from mcjepa.pipeline.run.folder import RECIPE, TRAIN_REPORT, WEIGHTS
from mcjepa.pipeline.tracking import Tracker, quiet_environment
from mcjepa.pipeline.tracking.lineage import PARENT_VARIABLE

RECORD, SUMMARY = "study.json", "summary.json"
Start = Callable[[list[str], Path, Mapping[str, str], float], int]
"""Runs a command line, its output added to a file, with more variables and so many seconds to stop; its exit code."""


@dataclass(frozen=True)
class StudyRun:
    """One training of a study."""

    arm: str
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        """ARM/seed-N."""
        return f"{self.arm}/{self.folder.name}"

    @property
    def run(self) -> Path:
        """Its `train.run`."""
        return self.folder / "run"

    @property
    def trained(self) -> bool:
        """Whether its training has reached its last step."""
        path = self.run / TRAIN_REPORT
        return path.is_file() and bool(json.loads(path.read_bytes())["finished"])

    @property
    def weights(self) -> Path | None:
        """Its newest weights."""
        return max(self.run.glob(f"{WEIGHTS}/step-*"), default=None)


def study_runs(recipe: Recipe) -> list[StudyRun]:
    """All runs of a recipe's study, seed by seed.

    Raises:
        UsageError: the recipe has no study, none with arms, or its results go to a bucket.
    """
    study = required(recipe.study, "study", recipe)
    if not study.arms or "://" in recipe.out:
        found = f"out={recipe.out}" if study.arms else "no arms"
        raise UsageError(f"study of {recipe.name}: {found}, expected arms and a local folder; correct the recipe")
    root = Path(recipe.out) / "runs"
    return [StudyRun(arm, seed, root / arm / f"seed-{seed}") for seed in study.seeds for arm in study.arms]


def run_recipe(run: StudyRun, recipe: Recipe, plain: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of one run, as plain data; `start_of` adds the weights that it starts from.

    Raises:
        UsageError: an arm's override is none of the recipe's keys, or a value does not fit.
    """
    words = {
        **required(recipe.study, "study", recipe).arms[run.arm].overrides,
        "name": f"{recipe.name}-{run.arm}-{run.seed}",
        "out": str(run.folder),
        "train.run": str(run.run),
        "train.seed": run.seed,
        "eval.seed": run.seed,
        "study": None,
    }
    content = apply_overrides(dict(plain), [override(key, value) for key, value in words.items()])
    validate(Recipe, content, f"study of {recipe.name}, {run.name}")
    return content


def start_of(run: StudyRun, recipe: Recipe) -> str:
    """The weights of another arm and the same seed that a run starts from; empty: none.

    Raises:
        UsageError: that arm has none yet.
    """
    other = required(recipe.study, "study", recipe).arms[run.arm].starts_from
    if not other:
        return ""
    before = StudyRun(other, run.seed, run.folder.parents[1] / other / run.folder.name)
    if not before.trained or before.weights is None:
        raise UsageError(f"{run.name} starts from {before.name}, which is not trained; train that arm first")
    return str(before.weights)


def run_study(recipe: Recipe, plain: Mapping[str, Any], say: Callable[[str], None], start: Start | None = None) -> None:
    """Trains and evaluates what is not finished; the next call goes on where this one ended.

    Args:
        recipe: with a `study`.
        plain: the same as plain data.
        say: told of every run, one line each.
        start: runs a command line; None: as a process of this machine.

    Raises:
        UsageError: as `run_recipe` and `start_of`; or a run was begun with other settings.
        RunError: a command failed; it is named with its log.
        Interrupted: we were asked to stop.
    """
    runs, start = study_runs(recipe), start or _start
    contents = [run_recipe(run, recipe, plain) for run in runs]
    parent = _parent_run(recipe, plain)
    for number, (run, content) in enumerate(zip(runs, contents, strict=True), 1):
        weights = start_of(run, recipe)
        content["train"] = content["train"] | ({"init_from": weights} if weights else {})
        with _held(run) as free:
            done = _run_once(run, content, parent, start) if free else "left to the command that works on it"
        say(f"{number}/{len(runs)} {run.name}: {done}")


@contextlib.contextmanager
def _held(run: StudyRun) -> Iterator[bool]:
    """Whether the run is ours meanwhile; False where another command has it."""
    run.folder.mkdir(parents=True, exist_ok=True)
    with (run.folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _run_once(run: StudyRun, content: dict[str, Any], parent: str, start: Start) -> str:
    """Trains and evaluates one run where that is not done; what was done, in words."""
    path, done, grace_s = run.folder / RECIPE, [], content["train"]["checkpoint"]["grace_s"]
    before = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    if before:
        _require_same(run, before, content)
    if before and before["eval"] != content["eval"]:
        (run.folder / SUMMARY).unlink(missing_ok=True)  # of another protocol: not to be taken for this one's
    if before != content:
        atomic_write(path, yaml.safe_dump(content, sort_keys=False).encode())
    if not run.trained:
        _checked(program("train", str(path)), run.folder / "train.log", {PARENT_VARIABLE: parent}, grace_s, start)
        done.append("trained")
    if before is None or not (run.folder / SUMMARY).is_file() or done:
        _checked(program("eval", "all", str(path)), run.folder / "eval.log", {}, GRACE_S, start)
        done.append("evaluated")
    return " and ".join(done) or "finished before"


def _require_same(run: StudyRun, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuses to go on with a run that was begun with another model or training."""
    for part in ("model", "train"):
        if before[part] != now[part]:
            raise UsageError(
                f"{run.name} was begun with another `{part}` ({run.folder / RECIPE}), expected the study's; give the "
                "study another `out` or the arm another name, or remove the run's folder"
            )


def _checked(words: list[str], path: Path, variables: Mapping[str, str], grace_s: float, start: Start) -> None:
    code = start(words, path, variables, grace_s)
    if code == INTERRUPTED:
        raise Interrupted("a run was asked to stop")
    if code not in (OK, PARTIAL):  # scores that lack an item say so on their cards
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines() if path.is_file() else []
        raise RunError(f"{' '.join(words[3:])} ended with {code}: {(lines or [''])[-1]} (all of it in {path})")


def _start(words: list[str], path: Path, variables: Mapping[str, str], grace_s: float) -> int:
    variables = {**quiet_environment(), **variables}
    return run_ranks(words, 1, environment=variables, grace_s=grace_s, logs=lambda rank: path)


def _parent_run(recipe: Recipe, plain: Mapping[str, Any]) -> str:
    """The study's MLflow run, the same one whenever the study goes on."""
    path, where = Path(recipe.out) / RECORD, recipe.tracking
    known = json.loads(path.read_bytes()).get(recipe.name, "") if path.is_file() else ""
    tracker = Tracker(
        where.uri, where.experiment, where.artifacts,
        run_name=f"study {recipe.name}", run_id=known or None, tags={"mcjepa.stage": "study"},
    )  # fmt: skip
    tracker.document(plain["study"], RECORD)  # names of measures are for people; MLflow refuses some of their letters
    tracker.end()
    records = json.loads(path.read_bytes()) if path.is_file() else {}
    atomic_write(path, json.dumps({**records, recipe.name: tracker.run_id}, indent=1).encode())
    return tracker.run_id
