"""Makes one shard: its inputs are cut in the decode child, the tar is written, and then its sidecar."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from data_prep.config import DatasetConfig
from data_prep.decode.client import DecodeClient
from data_prep.decode.cutter import CutSample
from data_prep.decode.failures import DecodeFailure, Unwanted
from data_prep.manifest import Sidecar, read_sidecar, shard_key, sidecar_key, write_sidecar
from data_prep.plan import PlannedInput, ShardPlan, sample_key
from data_prep.quarantine import InputRecord, Outcome
from data_prep.shards import ShardWriter
from data_prep.storage import Store, explained_disk_errors, open_store

READ_BYTES = 1 << 20


@dataclass(frozen=True)
class ShardResult:
    """What the driver learns of a finished shard: numbers only."""

    name: str
    samples: int
    bytes: int
    reused: bool


class ShardMaker:
    """Makes shards of one dataset after another in one process, with one decode child."""

    def __init__(self, location: str, config: DatasetConfig, plan_digest: str) -> None:
        """Prepare for the shards of the dataset at `location`; nothing is started yet."""
        self._store: Store = open_store(location)
        self._config = config
        self._plan_digest = plan_digest
        self._client = DecodeClient(config)

    def make(self, plan: ShardPlan) -> ShardResult:
        """Make a shard, or keep it when it is finished.

        Raises:
            DataError: it cannot be stored.
        """
        finished = finished_sidecar(self._store, plan.name, self._plan_digest)
        if finished:
            return ShardResult(plan.name, len(finished.samples), finished.bytes, reused=True)
        path = self._store.scratch() / f"{plan.name}.{os.getpid()}.partial"
        try:
            with explained_disk_errors(str(path)):
                sidecar = self._write(path, plan)
            self._store.write_file(shard_key(plan.name), path)
            write_sidecar(self._store, sidecar)
        finally:
            path.unlink(missing_ok=True)
        return ShardResult(plan.name, len(sidecar.samples), sidecar.bytes, reused=False)

    def close(self) -> None:
        """End the decode child."""
        self._client.close()

    def _write(self, path: Path, plan: ShardPlan) -> Sidecar:
        with path.open("w+b") as file:
            writer = ShardWriter(file)
            records = [self._add_input(writer, plan.name, planned) for planned in plan.inputs]
            digest, size, samples = writer.finish()
            os.fsync(file.fileno())
        lines = tuple(dataclasses.asdict(record) for record in records)
        return Sidecar(plan.name, digest, size, self._plan_digest, samples, lines)

    def _add_input(self, writer: ShardWriter, shard: str, planned: PlannedInput) -> InputRecord:
        """Add all samples of an input, or none of them."""
        mark = writer.mark()
        outcome: Outcome = "ok"
        digest, reason, count = "", "", 0
        try:
            digest = content_digest(planned.item.files)
            for sample in self._client.cut(planned.item):
                key = sample_key(planned.name, count)
                writer.add(key, sample_members(sample, planned.name, self._config.kind))
                count += 1
        except DecodeFailure as failure:
            outcome, reason = "quarantined", str(failure)
        except Unwanted as refusal:
            outcome, reason = "filtered", str(refusal)
        if outcome != "ok":
            writer.go_back(mark)
            count = 0
        return InputRecord(planned.name, planned.item.uri, planned.bytes, digest, outcome, reason, shard, count)


def sample_members(sample: CutSample, input_name: str, kind: str) -> dict[str, bytes]:
    """The files of a sample: `jpg`, or `00.jpg`, `01.jpg` … for a clip, and `json`."""
    names = ["jpg"] if kind == "image" else [f"{n:02d}.jpg" for n in range(len(sample.frames))]
    meta = json.dumps({**sample.meta, "input": input_name}, sort_keys=True, separators=(",", ":"))
    return {**dict(zip(names, sample.frames, strict=True)), "json": meta.encode()}


def content_digest(files: tuple[str, ...]) -> str:
    """sha256 (hex) of a file's bytes; of several files, of their digests one a line.

    Raises:
        DecodeFailure: a file cannot be read.
    """
    digests = []
    for path in files:
        digest = hashlib.sha256()
        try:
            with open(path, "rb") as file:
                while piece := file.read(READ_BYTES):
                    digest.update(piece)
        except OSError as error:
            raise DecodeFailure(f"{path} cannot be read ({error.strerror})") from error
        digests.append(digest.hexdigest())
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(f"{d}\n" for d in digests).encode()).hexdigest()


def finished_sidecar(store: Store, name: str, plan_digest: str) -> Sidecar | None:
    """The sidecar of a shard that is complete and of this plan, else None."""
    if not store.exists(sidecar_key(name)):
        return None
    sidecar = read_sidecar(store, name)
    if sidecar.plan_digest != plan_digest or not store.exists(shard_key(name)):
        return None
    return sidecar if store.size(shard_key(name)) == sidecar.bytes else None
