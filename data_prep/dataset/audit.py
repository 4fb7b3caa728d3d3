"""Checks a published dataset against its own words: digests, sizes, places of members, conservation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from mcjepa.data_prep.corpora.census import describe_others
from mcjepa.data_prep.dataset.inputs import OUTCOMES, InputsDigest, read_inputs
from mcjepa.data_prep.dataset.manifest import DatasetManifest, ShardEntry, Sidecar, read_manifest, read_sidecar
from mcjepa.data_prep.dataset.shards import BLOCK, tar_header
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.layout import shard_key
from mcjepa.data_prep.storage import Store, open_store

PIECE_BYTES = 16 << 20


@dataclass(frozen=True)
class AuditReport:
    """What an audit found."""

    dataset_id: str
    shards: int
    samples: int
    bytes: int
    problems: tuple[str, ...]
    """One line each; empty when everything agrees."""
    files: int = 0
    """Files and tar members of the inputs."""
    entries: int = 0
    """All that lies in the corpora: files and others."""
    others: str = ""
    """What of it is no input, in words."""

    @property
    def ok(self) -> bool:
        """Whether nothing disagrees."""
        return not self.problems


def audit_dataset(location: str) -> AuditReport:
    """Re-hash every shard, check every tar header against its sidecar, and prove conservation.

    Raises:
        DataError: there is no readable manifest.
    """
    store = open_store(location)
    manifest = read_manifest(store)
    problems = [*_input_problems(store, manifest), *_census_problems(manifest)]
    samples = size = 0
    for entry in manifest.shards:
        samples += entry.samples
        size += entry.bytes
        problems += _explained(f"shard {entry.name}", _shard_problems(store, manifest, entry))
    totals = manifest.totals
    if (totals.shards, totals.samples, totals.bytes) != (len(manifest.shards), samples, size):
        problems.append("manifest: totals are not the sums over its shards")
    return AuditReport(
        dataset_id=manifest.dataset_id,
        shards=len(manifest.shards),
        samples=samples,
        bytes=size,
        problems=tuple(problems),
        files=manifest.files,
        entries=manifest.census.get("entries", 0),
        others=describe_others(manifest.census),
    )


def _explained(where: str, problems: Iterator[str]) -> list[str]:
    """The problems; one that ends the check is the last of them."""
    found = []
    try:
        for problem in problems:
            found.append(f"{where}: {problem}")
    except DataError as error:
        found.append(f"{where}: {error}")
    return found


def _shard_problems(store: Store, manifest: DatasetManifest, entry: ShardEntry) -> Iterator[str]:
    sidecar = read_sidecar(store, entry.name)
    if (sidecar.sha256, sidecar.bytes, len(sidecar.samples)) != (entry.sha256, entry.bytes, entry.samples):
        yield "sidecar and manifest disagree on digest, size or number of samples"
    if sidecar.plan_digest not in (manifest.plan_digest, *manifest.requeue_digests):
        yield "sidecar is of another plan"
    size = store.size(shard_key(entry.name))
    if size != entry.bytes:
        yield f"has {size} bytes, the manifest says {entry.bytes}"
    digest = hashlib.sha256()
    headers = _expected_headers(sidecar)
    expected = next(headers, None)
    for offset in range(0, size, PIECE_BYTES):
        piece = store.read_range(shard_key(entry.name), offset, min(PIECE_BYTES, size - offset))
        digest.update(piece)
        while expected and expected[0] < offset + len(piece):  # headers lie on blocks: none is cut in two
            at = expected[0] - offset
            if piece[at : at + BLOCK] != expected[1]:
                yield f"the header at byte {expected[0]} is not that of {expected[2]}"
            expected = next(headers, None)
    if expected:
        yield f"ends before {expected[2]}"
    if digest.hexdigest() != entry.sha256:
        yield f"has digest {digest.hexdigest()[:12]}, the manifest says {entry.sha256[:12]}"


def _expected_headers(sidecar: Sidecar) -> Iterator[tuple[int, bytes, str]]:
    """Offset, bytes and name of every member's tar header."""
    for sample in sidecar.samples:
        for member in sample.members:
            name = f"{sample.key}.{member.suffix}"
            yield member.offset - BLOCK, tar_header(name, member.bytes), name


def _census_problems(manifest: DatasetManifest) -> Iterator[str]:
    """Conservation over the corpora: entries = files of inputs + others."""
    entries, others = manifest.census.get("entries", 0), sum(manifest.census.get("others", {}).values())
    if manifest.census and entries != manifest.files + others:
        yield f"census: {entries} entries in the corpora, {manifest.files} of inputs and {others} others"


def _input_problems(store: Store, manifest: DatasetManifest) -> Iterator[str]:
    """Conservation: inputs = ok + filtered + quarantined, samples by input = samples by shard."""
    counts = dict.fromkeys(OUTCOMES, 0)
    samples: dict[str, int] = {}
    digest = InputsDigest()
    dropped = 0
    try:
        for record in read_inputs(store, manifest.revision):
            counts[record.outcome] += 1
            dropped += record.dropped
            samples[record.shard] = samples.get(record.shard, 0) + record.samples
            digest.add(record)
    except DataError as error:
        yield f"inputs: {error}"
        return
    totals = manifest.totals
    if counts != {"ok": totals.ok, "filtered": totals.filtered, "quarantined": totals.quarantined}:
        yield f"inputs: outcomes {counts} are not those of the manifest"
    if sum(counts.values()) != totals.inputs:
        yield f"inputs: {sum(counts.values())} lines, the manifest counts {totals.inputs}"
    if dropped != totals.dropped:
        yield f"inputs: {dropped} samples dropped, the manifest counts {totals.dropped}"
    if digest.hexdigest() != manifest.inputs_digest:
        yield "inputs: names and digests are not those the manifest was published with"
    listed = {entry.name: entry.samples for entry in manifest.shards}
    if {name: n for name, n in samples.items() if n} != listed:
        yield "inputs: samples by input do not add up to the shards' samples"
