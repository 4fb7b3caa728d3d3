"""Makes one shard: its inputs are cut in the decode child, the tar is written, and then its sidecar."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcjepa.data_prep.corpora.places import is_local, plain_location
from mcjepa.data_prep.dataset.inputs import InputRecord, Outcome
from mcjepa.data_prep.dataset.manifest import Sidecar, read_sidecar, write_sidecar
from mcjepa.data_prep.dataset.shards import ShardWriter
from mcjepa.data_prep.decode.client import DecodeClient
from mcjepa.data_prep.decode.cutter import CutSample, DroppedSample
from mcjepa.data_prep.decode.fetch import failed_read, local_input
from mcjepa.data_prep.decode.messages import DecodeFailure, Unwanted
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.layout import shard_key, sidecar_key
from mcjepa.data_prep.plan.plan import PlannedInput, ShardPlan, sample_key
from mcjepa.data_prep.settings import DatasetConfig
from mcjepa.data_prep.storage import GrowingFile, Store, explained_disk_errors, open_store
from mcjepa.data_prep.workers.leakage_index import fetch_leakage_index

READ_BYTES = 1 << 18


@dataclass(frozen=True)
class ShardResult:
    """What the driver learns of a finished shard: numbers only."""

    name: str
    samples: int
    bytes: int
    reused: bool


@dataclass(frozen=True)
class ShardWork:
    """What all shards of a dataset have in common; sent to the workers."""

    location: str
    config: DatasetConfig
    plan_digest: str


class ShardMaker:
    """Makes shards of one dataset after another in one process, with one decode child."""

    def __init__(self, work: ShardWork) -> None:
        """Prepare for the shards of a dataset; nothing is started yet but the leakage index is fetched."""
        self.work = work
        self._store: Store = open_store(work.location)
        self._config = work.config
        self._plan_digest = work.plan_digest
        index = fetch_leakage_index(self._store) if work.config.filters.leakage.mode != "off" else ""
        self._client = DecodeClient(work.config, leakage_index=index)

    def make(self, plan: ShardPlan) -> ShardResult:
        """Make a shard, or keep it when it is finished.

        Raises:
            DataError: it cannot be stored, or the place of its inputs is gone.
        """
        finished = finished_sidecar(self._store, plan.name, self._plan_digest)
        if finished:
            return ShardResult(plan.name, len(finished.samples), finished.bytes, reused=True)
        path = self._store.scratch() / f"{plan.name}.{os.getpid()}.partial"
        try:
            with self._store.growing_file(shard_key(plan.name), path) as growing:
                with explained_disk_errors(str(path)):
                    sidecar = self._write(path, plan, growing)
                growing.finish()
            write_sidecar(self._store, sidecar)
        finally:
            path.unlink(missing_ok=True)
        return ShardResult(plan.name, len(sidecar.samples), sidecar.bytes, reused=False)

    def close(self) -> None:
        """End the decode child."""
        self._client.close()

    def stop(self) -> None:
        """Make `make`, at work in another thread, end with an error, and so all that follow."""
        self._client.stop()

    def _write(self, path: Path, plan: ShardPlan, growing: GrowingFile) -> Sidecar:
        """Write the tar; what is whole of it may be uploaded meanwhile."""
        cuts, scratch = [], self._store.scratch()
        with path.open("w+b") as file:
            writer = ShardWriter(file)
            for planned in plan.inputs:
                cuts.append(self._add_input(writer, plan.name, planned, scratch))
                file.flush()
                growing.settle(writer.mark().offset)
            digest, size, samples = writer.finish()
        return Sidecar(
            name=plan.name,
            sha256=digest,
            bytes=size,
            plan_digest=self._plan_digest,
            samples=samples,
            inputs=tuple(vars(cut.record) for cut in cuts),
            dropped=tuple(line for cut in cuts for line in cut.dropped),
            hashes=tuple(h for cut in cuts for h in cut.hashes) if self._wants_hashes else (),
        )

    @property
    def _wants_hashes(self) -> bool:
        return self._config.filters.duplicates.mode != "off"

    def _add_input(self, writer: ShardWriter, shard: str, planned: PlannedInput, scratch: Path) -> _CutInput:
        """Add all samples of an input, or none of them; what must be fetched for it lies in `scratch` meanwhile."""
        mark = writer.mark()
        outcome: Outcome = "ok"
        digest = reason = decoder = ""
        hashes: list[str] = []
        dropped: list[DroppedSample] = []
        try:
            if planned.item.refusal:
                raise DecodeFailure(planned.item.refusal)
            with local_input(planned.item, scratch) as item:
                digest, size = content_digest(item.files)
                if planned.bytes not in (size, -1):
                    raise DecodeFailure(f"changed since it was listed: {planned.bytes} bytes then, {size} now")
                for piece in self._client.cut(item):
                    if isinstance(piece, DroppedSample):
                        dropped.append(piece)
                        continue
                    writer.add(sample_key(planned.name, len(hashes)), sample_members(piece, planned.name))
                    decoder = piece.decoder
                    hashes.append(piece.meta.get("scores", {}).get("phash", ""))
            if not hashes:
                counts = Counter(piece.filter for piece in dropped)
                found = ", ".join(f"{n} {name}" for name, n in sorted(counts.items()))
                raise Unwanted(f"all {len(dropped)} samples dropped: {found}")
        except DecodeFailure as failure:
            if not planned.item.refusal:
                self._require_corpus(planned)
            outcome, reason = "quarantined", str(failure)
        except Unwanted as refusal:
            outcome, reason = "filtered", str(refusal)
        if outcome != "ok":
            writer.go_back(mark)
            hashes = []
        if outcome == "quarantined":
            dropped = []
        record = InputRecord(
            name=planned.name,
            uri=planned.item.uri,
            bytes=planned.bytes,
            sha256=digest,
            outcome=outcome,
            reason=reason,
            shard=shard,
            samples=len(hashes),
            dropped=len(dropped),
            decoder=decoder,
        )
        lines = tuple({"input": planned.name, **dataclasses.asdict(piece)} for piece in dropped)
        return _CutInput(record, lines, tuple(hashes))

    def _require_corpus(self, planned: PlannedInput) -> None:
        """Tell an input that failed from one whose whole corpus is away, as after an unmount.

        Raises:
            DataError: its folder is absent or empty, which it was not when the input was listed.
        """
        corpus = self._config.corpora[int(planned.name.partition("-")[0])]
        path = plain_location(corpus.path)
        if is_local(path) and os.path.isabs(path) and not _holds_anything(path):
            raise DataError(
                f"{path} is absent or empty now; expected the corpus that was planned; mount it or bring it back, then "
                "run again: finished parts are kept"
            )


@dataclass(frozen=True)
class _CutInput:
    """What became of one input."""

    record: InputRecord
    dropped: tuple[dict[str, Any], ...]
    hashes: tuple[str, ...]


def _holds_anything(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except OSError:
        return False


def sample_members(sample: CutSample, input_name: str) -> dict[str, bytes]:
    """The files of a sample by their suffixes: its frames (and flow) and `json`."""
    meta = json.dumps({**sample.meta, "input": input_name}, sort_keys=True, separators=(",", ":"))
    return {**sample.members, "json": meta.encode()}


def content_digest(files: tuple[str, ...]) -> tuple[str, int]:
    """sha256 (hex) of a file's bytes, and their number; of several files, of their digests one per line.

    Raises:
        DecodeFailure: a file cannot be read.
        DataError: nor can others: the disk, the file server or this machine is at fault.
    """
    digests, size = [], 0
    for path in files:
        digest = hashlib.sha256()
        try:
            with open(path, "rb", buffering=0) as file:
                while piece := file.read(READ_BYTES):
                    digest.update(piece)
                    size += len(piece)
        except OSError as error:
            raise failed_read(path, error) from error
        digests.append(digest.hexdigest())
    if len(digests) == 1:
        return digests[0], size
    return hashlib.sha256("".join(f"{d}\n" for d in digests).encode()).hexdigest(), size


def finished_sidecar(store: Store, name: str, plan_digest: str) -> Sidecar | None:
    """The sidecar of a shard that is complete and of this plan, else None."""
    if not store.exists(sidecar_key(name)):
        return None
    sidecar = read_sidecar(store, name)
    if sidecar.plan_digest != plan_digest or not store.exists(shard_key(name)):
        return None
    return sidecar if store.size(shard_key(name)) == sidecar.bytes else None


_MAKERS: dict[int, ShardMaker] = {}
"""By thread its maker, with its decode child: one, of the dataset that is being made. Ray's workers have one thread."""


def make_shard(work: ShardWork, plan: ShardPlan) -> ShardResult:
    """Make a shard with the decode child of this thread."""
    thread = threading.get_ident()
    maker = _MAKERS.get(thread)
    if maker is None or maker.work != work:
        if maker:
            maker.close()
        maker = _MAKERS[thread] = ShardMaker(work)
    return maker.make(plan)


def stop_makers() -> None:
    """End what other threads of this process are making, with an error, and their decode children."""
    for maker in list(_MAKERS.values()):
        maker.stop()


def close_makers() -> None:
    """End the decode children of this process, when its other threads make nothing any more."""
    while _MAKERS:
        _MAKERS.popitem()[1].close()
