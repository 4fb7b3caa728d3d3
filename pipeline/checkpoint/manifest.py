"""Which checkpoints a run has: their manifests and their digests.

A checkpoint is the folder `checkpoints/step-000001200`; it is complete only with its `manifest.json`, which is written
last and names every file with its digest, and itself. Everything here works on a folder and on s3 alike.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcjepa.data_prep.errors import AbsentKey
from mcjepa.data_prep.storage import Store, digest_of, open_store
from mcjepa.pipeline.run.folder import CHECKPOINTS, MANIFEST

log = logging.getLogger(__name__)
VERSION = 2
OWN_DIGEST = "sha256"
"""Entry of a manifest: digest of all others. Manifests of earlier releases have none."""


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
    def content(self) -> bytes:
        """The manifest as it is written."""
        record = {**self.record, OWN_DIGEST: _digest(self.record)}
        return json.dumps(record, indent=1, sort_keys=True).encode()

    @property
    def digest(self) -> str:
        """sha256 over the digests of its files: what it holds, wherever it lies."""
        lines = "".join(f"{name} {entry['sha256']}\n" for name, entry in sorted(self.files.items()))
        return hashlib.sha256(lines.encode()).hexdigest()


def step_name(step: int) -> str:
    """Folder name of a step: steps sort as text."""
    return f"step-{step:09d}"


def _digest(record: Mapping[str, Any]) -> str:
    """sha256 of a manifest's entries, as JSON gives them back."""
    entries = json.loads(json.dumps(record))
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


class _NotCounted(Exception):
    """A checkpoint whose manifest is damaged or of another version."""


def list_checkpoints(store: Store) -> list[Checkpoint]:
    """Checkpoints with a readable manifest, newest first; their files are not looked at. Others are warned of."""
    found, unreadable = read_checkpoints(store)
    readable = {step_name(each.step) for each in found}
    for name in reversed(step_folders(store)):
        if name not in readable:
            problem = unreadable.get(name, f"it has no {MANIFEST}, so its writing was interrupted")
            log.warning("checkpoint %s/%s/%s does not count: %s", store.location, CHECKPOINTS, name, problem)
    return found


def read_checkpoints(store: Store) -> tuple[list[Checkpoint], dict[str, str]]:
    """Checkpoints with a readable manifest, newest first, and the folders whose manifest says nothing, with the reason.

    Folders without a manifest are in neither: their saving was interrupted, or goes on.
    """
    keys = [key for key in store.list(f"{CHECKPOINTS}/step-") if key.endswith(f"/{MANIFEST}")]
    found, unreadable = [], {}
    for name in sorted({key.split("/")[1] for key in keys}, reverse=True):
        try:
            found.append(_read(store, name))
        except AbsentKey:  # removed meanwhile
            continue
        except _NotCounted as error:
            unreadable[name] = str(error)
    return found, unreadable


def step_folders(store: Store) -> list[str]:
    """Names of the folders below `checkpoints/` that belong to a step, complete or not, oldest first."""
    return sorted({key.split("/")[1] for key in store.list(f"{CHECKPOINTS}/step-")})


def _read(store: Store, name: str) -> Checkpoint:
    content = store.read(f"{CHECKPOINTS}/{name}/{MANIFEST}")
    try:
        record = json.loads(content)
        if record["version"] != VERSION:
            raise _NotCounted(f"its version is {record['version']}, expected {VERSION}")
        if (told := record.pop(OWN_DIGEST, None)) not in (None, _digest(record)):
            raise _NotCounted(f"its {MANIFEST} is not what was written: its own digest is not {str(told)[:12]}")
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
            if store.size(key) != entry["bytes"] or digest_of(store, key) != entry["sha256"]:
                return f"its file {name} differs from the manifest"
        except AbsentKey:
            return f"its file {name} is absent"
    return ""


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
