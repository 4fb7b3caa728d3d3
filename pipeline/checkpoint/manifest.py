"""Which checkpoints a run has: their manifests, their digests, and which of them are kept.

A checkpoint is the folder `checkpoints/step-000001200`; it is complete only with its `manifest.json`, which is written
last and names every file with its digest. Everything here works on a folder and on s3 alike.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcjepa.data_prep.errors import AbsentKey
from mcjepa.data_prep.storage import FolderStore, Store, open_store
from mcjepa.pipeline.run.folder import CHECKPOINTS, MANIFEST, WEIGHTS
from mcjepa.pipeline.settings.train import CheckpointConfig

log = logging.getLogger(__name__)
VERSION = 2
BLOCK_BYTES = 4 << 20


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose manifest is there."""

    location: str
    """Of the run."""
    step: int
    record: Mapping[str, Any]
    """Its manifest."""

    @property
    def key(self) -> str:
        """Its folder below the run."""
        return f"{CHECKPOINTS}/{step_name(self.step)}"

    @property
    def name(self) -> str:
        """Where it is, for messages."""
        return f"{self.location}/{self.key}"

    @property
    def files(self) -> dict[str, dict[str, Any]]:
        """sha256 and bytes of every file."""
        return dict(self.record["files"])

    @property
    def digest(self) -> str:
        """sha256 over the digests of its files: what it holds, wherever it lies."""
        lines = "".join(f"{name} {entry['sha256']}\n" for name, entry in sorted(self.files.items()))
        return hashlib.sha256(lines.encode()).hexdigest()


def step_name(step: int) -> str:
    """Folder name of a step: steps sort as text."""
    return f"step-{step:09d}"


class _NotCounted(Exception):
    """A checkpoint that is incomplete or of another version."""


def list_checkpoints(store: Store, *, quiet: bool = False) -> list[Checkpoint]:
    """Checkpoints with a readable manifest, newest first; their files are not looked at.

    Args:
        store: the run's folder or prefix.
        quiet: do not warn of those that do not count.
    """
    steps = sorted({key.split("/")[1] for key in store.list(f"{CHECKPOINTS}/step-")}, reverse=True)
    found = []
    for name in steps:
        try:
            found.append(_read(store, name))
        except _NotCounted as error:
            if not quiet:
                log.warning("checkpoint %s/%s/%s does not count: %s", store.location, CHECKPOINTS, name, error)
    return found


def _read(store: Store, name: str) -> Checkpoint:
    try:
        content = store.read(f"{CHECKPOINTS}/{name}/{MANIFEST}")
    except AbsentKey as error:
        raise _NotCounted(f"it has no {MANIFEST}, so its writing was interrupted") from error
    try:
        record = json.loads(content)
        if record["version"] != VERSION:
            raise _NotCounted(f"its version is {record['version']}, expected {VERSION}")
        checkpoint = Checkpoint(store.location, int(record["step"]), record)
        if step_name(checkpoint.step) != name or not checkpoint.files:
            raise _NotCounted(f"its manifest is that of step {checkpoint.step}, or names no files")
    except (ValueError, KeyError, TypeError) as error:
        raise _NotCounted(f"its {MANIFEST} is damaged ({error})") from error
    return checkpoint


def find_damage(store: Store, checkpoint: Checkpoint, rank: int = 0, world_size: int = 1) -> str:
    """What differs from the manifest among this rank's share of the files; empty where nothing does.

    Raises:
        DataError: the store cannot be read, which says nothing about the checkpoint.
    """
    for name in sorted(checkpoint.files)[rank::world_size]:
        entry, key = checkpoint.files[name], f"{checkpoint.key}/{name}"
        try:
            if store.size(key) != entry["bytes"] or _digest(store, key) != entry["sha256"]:
                return f"its file {name} differs from the manifest"
        except AbsentKey:
            return f"its file {name} is absent"
    return ""


def _digest(store: Store, key: str) -> str:
    digest = hashlib.sha256()
    with store.open(key) as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def complete_checkpoints(run: str | Path) -> list[Checkpoint]:
    """Checkpoints of a run whose files are all there with the right digests, newest first."""
    store, found = open_store(str(run)), []
    for checkpoint in list_checkpoints(store):
        damage = find_damage(store, checkpoint)
        if damage:
            log.warning("checkpoint %s does not count: %s", checkpoint.name, damage)
        else:
            found.append(checkpoint)
    return found


def newest_checkpoint(run: str | Path) -> Checkpoint | None:
    """The newest complete checkpoint of a run, None where there is none."""
    return next(iter(complete_checkpoints(run)), None)


def best_checkpoint(checkpoints: Sequence[Checkpoint], config: CheckpointConfig) -> Checkpoint | None:
    """The one with the best value of `best_metric`, the newer of equals; None where none has it."""
    measured = [c for c in checkpoints if config.best_metric and config.best_metric in c.record["metrics"]]
    sign = 1.0 if config.best_is == "highest" else -1.0
    return max(measured, key=lambda c: (sign * c.record["metrics"][config.best_metric], c.step), default=None)


def superfluous(checkpoints: Sequence[Checkpoint], config: CheckpointConfig) -> list[Checkpoint]:
    """Which of a run's checkpoints, newest first, the rule does not keep."""
    best, every = best_checkpoint(checkpoints, config), config.keep_every_steps
    return [
        checkpoint
        for checkpoint in checkpoints[config.keep_last :]
        if not (every and checkpoint.step % every == 0) and checkpoint is not best
    ]


def remove_old(store: Store, config: CheckpointConfig) -> list[int]:
    """Removes superfluous checkpoints with their weights, and what interrupted saves have left behind.

    A manifest goes first: whatever is interrupted half-way does not count any more.

    Returns:
        The steps of the checkpoints removed.
    """
    checkpoints = list_checkpoints(store, quiet=True)
    removed = [checkpoint.step for checkpoint in superfluous(checkpoints, config)]
    complete = {step_name(checkpoint.step) for checkpoint in checkpoints}
    present = {key.split("/")[1] for key in store.list(f"{CHECKPOINTS}/step-")}
    newest = step_name(checkpoints[0].step) if checkpoints else ""
    for name in [*map(step_name, removed), *(name for name in present - complete if name < newest)]:
        remove_step(store, name)
    return removed


def remove_step(store: Store, name: str) -> None:
    """Removes the checkpoint and the weights of a step folder's name, the manifest first."""
    store.remove(f"{CHECKPOINTS}/{name}/{MANIFEST}")
    for folder in (f"{CHECKPOINTS}/{name}", f"{WEIGHTS}/{name}"):
        if isinstance(store, FolderStore):
            shutil.rmtree(store.path(folder), ignore_errors=True)
        else:
            for key in list(store.list(f"{folder}/")):
                store.remove(key)
