"""Drops inputs that repeat an earlier one, after all shards are made and before they are published.

Only then is every input known; who repeats whom is decided in the plan's order, so it does not depend on the
order of the work. The decisions are written once and then shards that hold repeated inputs are written again
without them, from their own bytes: nothing is decoded twice.

    ROOT/duplicates.jsonl.gz     one line a repeated input: input, of, kind (exact | near), distance, bits
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcjepa.data_prep.dataset.manifest import Sidecar, read_sidecar, write_sidecar
from mcjepa.data_prep.dataset.shards import ShardWriter
from mcjepa.data_prep.filters.duplicates import resolve_duplicates
from mcjepa.data_prep.layout import duplicates_key, shard_key, sidecar_key
from mcjepa.data_prep.settings import DatasetConfig
from mcjepa.data_prep.storage import Store, explained_disk_errors, open_store
from mcjepa.data_prep.storage.json_files import read_lines, write_lines
from mcjepa.data_prep.workers.tasks import RunTasks


@dataclass(frozen=True)
class Thinning:
    """A shard and the inputs to take out of it, with the reasons."""

    name: str
    reasons: tuple[tuple[str, str], ...]


def deduplicate(
    location: str,
    config: DatasetConfig,
    names: Sequence[str],
    *,
    run: RunTasks,
    on_shard: Callable[[int, int], None],
    earlier: Sequence[str] = (),
    revision: int = 1,
) -> bool:
    """Decide once which inputs repeat others and, unless they are only scored, take them out of their shards.

    Returns:
        Whether all is done; False: a task was killed between a shard and its sidecar, that shard must be made
        once more, and this be called again.

    Args:
        location: The dataset, all of whose shards are made.
        config: Its settings.
        names: The shards whose inputs are judged, in order.
        run: Who runs the tasks.
        on_shard: Called with the numbers of shards written again, and to write.
        earlier: Published shards, whose inputs stay and may be repeated by others.
        revision: Which revision the shards are made for.
    """
    store = open_store(location)
    key = duplicates_key(revision)
    if not store.exists(key):
        _decide(store, config, names, earlier, key)
    if config.filters.duplicates.mode != "drop":
        return True
    reasons = {line["input"]: f"{line['kind']} duplicate of {line['of']}" for line in read_duplicates(store, revision)}
    todo = list(_thinnings(store, names, reasons))
    thinned: list[bool] = []

    def count(result: bool) -> None:
        thinned.append(result)
        on_shard(len(thinned), len(todo))

    run(thin_shard, location, todo, on_result=count)
    return all(thinned)


def read_duplicates(store: Store, revision: int = 1) -> Iterator[dict[str, Any]]:
    """The decisions, in the plan's order."""
    yield from read_lines(store, duplicates_key(revision))


def thin_shard(location: str, thinning: Thinning) -> bool:
    """Write a shard again without the samples of some inputs; False when shard and sidecar do not agree."""
    store = open_store(location)
    reasons = dict(thinning.reasons)
    sidecar = read_sidecar(store, thinning.name)
    if store.size(shard_key(thinning.name)) != sidecar.bytes:
        store.remove(sidecar_key(thinning.name))
        return False
    path = store.scratch() / f"{thinning.name}.{os.getpid()}.partial"
    try:
        with explained_disk_errors(str(path)):
            thinned = _write_thinned(store, path, sidecar, reasons)
        store.write_file(shard_key(thinning.name), path)  # until the sidecar follows, the two disagree: made again
        write_sidecar(store, thinned)
    finally:
        path.unlink(missing_ok=True)
    return True


def _decide(store: Store, config: DatasetConfig, names: Sequence[str], earlier: Sequence[str], key: str) -> None:
    judged: set[str] = set()

    def fingerprints() -> Iterator[tuple[str, str, list[int | None]]]:
        yield from _fingerprints(store, earlier)
        for name, content, hashes in _fingerprints(store, names):
            if earlier:
                judged.add(name)
            yield name, content, hashes

    decisions = resolve_duplicates(fingerprints(), config.filters.duplicates.max_bits)
    lines = ({"input": name, **dataclasses.asdict(d)} for name, d in decisions.items() if not earlier or name in judged)
    path = store.scratch() / f"{key}.{os.getpid()}.partial"
    try:
        with explained_disk_errors(str(path)), path.open("wb") as file:
            write_lines(file, lines)
        store.write_file(key, path)
    finally:
        path.unlink(missing_ok=True)


def _fingerprints(store: Store, names: Sequence[str]) -> Iterator[tuple[str, str, list[int | None]]]:
    """Name, content digest and hashes of every usable input, shard by shard."""
    for shard in names:
        sidecar = read_sidecar(store, shard)
        hashes = iter(sidecar.hashes)
        for line in sidecar.inputs:
            own = [int(h, 16) if h else None for h in (next(hashes) for _ in range(line["samples"]))]
            if line["outcome"] == "ok":
                yield line["name"], line["sha256"], own


def _thinnings(store: Store, names: Sequence[str], reasons: dict[str, str]) -> Iterator[Thinning]:
    """Shards that still hold samples of repeated inputs."""
    if not reasons:
        return
    for shard in names:
        sidecar = read_sidecar(store, shard)
        held = [(i["name"], reasons[i["name"]]) for i in sidecar.inputs if i["samples"] and i["name"] in reasons]
        if held:
            yield Thinning(sidecar.name, tuple(held))


def _write_thinned(store: Store, path: Path, sidecar: Sidecar, reasons: dict[str, str]) -> Sidecar:
    owners = [line["name"] for line in sidecar.inputs for _ in range(line["samples"])]
    kept_hashes = []
    with path.open("w+b") as file:
        writer = ShardWriter(file)
        for sample, owner, phash in zip(sidecar.samples, owners, sidecar.hashes, strict=True):
            if owner in reasons:
                continue
            key = shard_key(sidecar.name)
            writer.add(sample.key, {m.suffix: store.read_range(key, m.offset, m.bytes) for m in sample.members})
            kept_hashes.append(phash)
        digest, size, samples = writer.finish()
        os.fsync(file.fileno())
    return dataclasses.replace(
        sidecar,
        sha256=digest,
        bytes=size,
        samples=samples,
        inputs=tuple(_without_samples(line, reasons) for line in sidecar.inputs),
        hashes=tuple(kept_hashes),
    )


def _without_samples(line: dict[str, Any], reasons: dict[str, str]) -> dict[str, Any]:
    if line["name"] not in reasons:
        return line
    return line | {"outcome": "filtered", "reason": reasons[line["name"]], "samples": 0}
