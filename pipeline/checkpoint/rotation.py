"""Which checkpoints a run keeps: whole ones count, damaged ones step aside, and the save just made always stays.

    checkpoints/damaged-step-000001200/     was no longer what its manifest says; neither resumed from nor removed
    weights/damaged-step-000001200/         the weights of the same save, which nothing chooses by itself any more

Only what is whole counts as kept, so a damaged checkpoint never drives out a good one. Sizes are looked at after every
save, by one listing; digests once for each checkpoint that this process has neither written nor resumed from.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from mcjepa.data_prep.errors import DataError, nearest_name
from mcjepa.data_prep.storage import FolderStore, Store
from mcjepa.pipeline.checkpoint.manifest import Checkpoint, find_damage, read_checkpoints, step_folders, step_name
from mcjepa.pipeline.run.folder import CHECKPOINTS, MANIFEST, METRICS, WEIGHTS, read_metrics
from mcjepa.pipeline.settings.train import CheckpointConfig

log = logging.getLogger(__name__)
DAMAGED = "damaged-"
"""In front of the folder names of checkpoints that have stepped aside."""


class Rotation:
    """The checkpoints of one run, as the process sees them that commits its saves.

    Args:
        store: the run's folder or prefix.
        config: how many are kept.
    """

    def __init__(self, store: Store, config: CheckpointConfig) -> None:
        self._store, self._config = store, config
        self._hashed: set[str] = set()

    def trust(self, checkpoint: Checkpoint) -> None:
        """Takes a checkpoint's digests for true: this run has just compared or written them."""
        self._hashed.add(checkpoint.digest)

    def turn(self, made: int) -> list[int]:
        """Removes what the recipe does not keep, with its weights, and what interrupted saves have left behind.

        A manifest goes first: whatever is interrupted half-way does not count any more.

        Args:
            made: the step of the save just made, which stays whatever the recipe says.

        Returns:
            The steps of the checkpoints removed.
        """
        store = self._store
        found, unreadable = read_checkpoints(store)
        for name, problem in unreadable.items():
            set_aside(store, name, problem)
        damaged = {each.step: self._damage(each) for each in found if each.step != made}
        for step, problem in damaged.items():
            if problem:
                set_aside(store, step_name(step), problem)
        whole = [each for each in found if not damaged.get(each.step)]
        removed = [each.step for each in superfluous(whole, self._config) if each.step != made]
        known = {step_name(each.step) for each in found} | set(unreadable)
        interrupted = [name for name in step_folders(store) if name not in known and name < step_name(made)]
        for name in [*map(step_name, removed), *interrupted]:
            remove_step(store, name)
        return removed

    def _damage(self, checkpoint: Checkpoint) -> str:
        """What is wrong with a checkpoint; empty where it is whole."""
        sizes = {each.key.rsplit("/", 1)[1]: each.bytes for each in self._store.files(f"{checkpoint.key}/")}
        for name, entry in sorted(checkpoint.files.items()):
            if sizes.get(name) != entry["bytes"]:
                return f"its file {name} has {sizes.get(name, 'no')} bytes, its manifest says {entry['bytes']}"
        if checkpoint.digest in self._hashed:
            return ""
        problem = find_damage(self._store, checkpoint)
        if not problem:
            self._hashed.add(checkpoint.digest)
        return problem


def best_checkpoint(checkpoints: Sequence[Checkpoint], config: CheckpointConfig) -> Checkpoint | None:
    """The one with the best value of `best_metric`, the newer of equals; None where none has it."""
    measured = [c for c in checkpoints if config.best_metric and config.best_metric in c.record["metrics"]]
    sign = 1.0 if config.best_is == "highest" else -1.0
    return max(measured, key=lambda c: (sign * c.record["metrics"][config.best_metric], c.step), default=None)


def find_metric(run: Path, config: CheckpointConfig, expected: Collection[str]) -> str:
    """What is wrong with `best_metric`, in words; empty where it is in a run's records so far, or expected there.

    Args:
        run: the run's local folder.
        config: the recipe's rules.
        expected: names that may come later: terms start when the recipe says.
    """
    known = {name for record in read_metrics(run / METRICS) for name in record} - {"step"}
    if not known or config.best_metric in known or config.best_metric in expected:
        return ""
    return (
        f"train.checkpoint.best_metric is {config.best_metric!r}, which no record in {run / METRICS} has, so that no "
        f"best checkpoint is kept; {nearest_name(config.best_metric, sorted(known))}; change it and rerun"
    )


def superfluous(checkpoints: Sequence[Checkpoint], config: CheckpointConfig) -> list[Checkpoint]:
    """Which of a run's whole checkpoints, newest first, the rule does not keep."""
    best, every = best_checkpoint(checkpoints, config), config.keep_every_steps
    return [
        checkpoint
        for checkpoint in checkpoints[config.keep_last :]
        if not (every and checkpoint.step % every == 0) and checkpoint is not best
    ]


def set_aside_after(store: Store, step: int) -> None:
    """Puts everything behind the step that a run is continued from out of the way: it did not count.

    Checkpoints with a manifest step aside with their weights; weights of saves that were never completed are removed.
    Incomplete checkpoints stay: the run will write them again, or remove them after its next save.
    """
    found, unreadable = read_checkpoints(store)
    named = {step_name(each.step): "it is damaged" for each in found} | unreadable
    for name in sorted(name for name in named if name > step_name(step)):
        set_aside(store, name, f"{named[name]}; the run is continued from step {step}")
    folders = {key.split("/")[1] for key in store.list(f"{WEIGHTS}/step-")}
    for name in sorted(name for name in folders if name > step_name(step)):
        remove_folder(store, f"{WEIGHTS}/{name}")


def set_aside(store: Store, name: str, problem: str) -> None:
    """Renames a checkpoint and its weights, and says so; where the store refuses, they stay and do not count."""
    aside = _free_name(store, name)
    try:
        _move_folder(store, f"{CHECKPOINTS}/{name}", f"{CHECKPOINTS}/{aside}")
        _move_folder(store, f"{WEIGHTS}/{name}", f"{WEIGHTS}/{aside}")
    except (DataError, OSError) as error:
        log.warning("%s/%s/%s does not count (%s) and stays: %s", store.location, CHECKPOINTS, name, problem, error)
        return
    log.warning(
        "%s/%s/%s does not count (%s): it is now %s/%s, remove it when you have looked at it",
        store.location, CHECKPOINTS, name, problem, CHECKPOINTS, aside,
    )  # fmt: skip


def _free_name(store: Store, name: str) -> str:
    taken = {key.split("/")[1] for part in (CHECKPOINTS, WEIGHTS) for key in store.list(f"{part}/{DAMAGED}{name}")}
    return next(each for each in _names(f"{DAMAGED}{name}") if each not in taken)


def _names(first: str) -> Iterator[str]:
    yield first
    number = 2
    while True:
        yield f"{first}-{number}"
        number += 1


def _move_folder(store: Store, folder: str, target: str) -> None:
    """Moves every file below a folder, the manifest first: what is interrupted half-way does not count any more."""
    keys = sorted(store.list(f"{folder}/"), key=lambda key: not key.endswith(f"/{MANIFEST}"))
    for key in keys:
        store.move(key, target + key.removeprefix(folder))
    if isinstance(store, FolderStore):
        shutil.rmtree(store.path(folder), ignore_errors=True)


def remove_step(store: Store, name: str) -> None:
    """Removes the checkpoint and the weights of a step folder's name, the manifest first."""
    store.remove(f"{CHECKPOINTS}/{name}/{MANIFEST}")
    for folder in (f"{CHECKPOINTS}/{name}", f"{WEIGHTS}/{name}"):
        remove_folder(store, folder)


def remove_folder(store: Store, folder: str) -> None:
    """Removes every file below a folder, and the folder where the store has such."""
    if isinstance(store, FolderStore):
        shutil.rmtree(store.path(folder), ignore_errors=True)
    else:
        for key in list(store.list(f"{folder}/")):
            store.remove(key)
