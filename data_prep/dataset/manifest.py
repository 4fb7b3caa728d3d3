"""The files that describe a published dataset: its manifest and one sidecar a shard.

    ROOT/manifest.json                written last, once: its presence publishes the dataset
    ROOT/manifest-000002.json         a later revision: more shards, from inputs that failed before
    ROOT/shards/clip-000123.tar       samples
    ROOT/shards/clip-000123.json      sidecar: digest and size of the shard, place of every sample's members

Readers are strict: another version, a missing or an unknown field is a DataError.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from mcjepa.data_prep.errors import AbsentKey, DataError
from mcjepa.data_prep.layout import manifest_key, sidecar_key
from mcjepa.data_prep.storage import Store, open_store
from mcjepa.data_prep.storage.json_files import (
    ObjectReader,
    build_record,
    check_version,
    encode_json,
    list_field,
    malformed_record,
    parse_record,
)

MANIFEST_VERSION = 4
READABLE_MANIFESTS = (2, 3, 4)
LATER_FIELDS: dict[int, dict[str, Any]] = {
    2: {"files": 0, "census": {}, "libraries": {}, "requeued_by": []},
    3: {"libraries": {}, "requeued_by": []},
}
"""What manifests of an earlier version lack."""
SIDECAR_VERSION = 2


@dataclass(frozen=True)
class ShardEntry:
    """One shard as the manifest lists it."""

    name: str
    """File name in `shards/` without its ending, e.g. `clip-000123`."""
    sha256: str
    bytes: int
    samples: int


@dataclass(frozen=True)
class Totals:
    """Sums over a dataset; inputs = ok + filtered + quarantined, `dropped` samples are in no shard."""

    shards: int
    samples: int
    bytes: int
    inputs: int
    ok: int
    filtered: int
    quarantined: int
    dropped: int = 0


@dataclass(frozen=True)
class DatasetManifest:
    """The content of manifest.json."""

    kind: str
    """`clip`, `image` or `flow`."""
    dataset_id: str
    """sha256 over the shards' digests, in order."""
    plan_digest: str
    """sha256 of what the dataset was planned from: inputs' names and sizes, and parameters."""
    inputs_digest: str
    """sha256 over the inputs' names and content digests, in order."""
    decoder: str
    """Name and version."""
    encoder: str
    """Name and version."""
    parameters: dict[str, Any]
    shards: tuple[ShardEntry, ...]
    totals: Totals
    revision: int = 1
    """1 for the first; every requeue that saved an input adds one."""
    parent: str = ""
    """Dataset id of the revision before; empty for the first."""
    requeue_digests: tuple[str, ...] = ()
    """Plan digests of the shards that requeues added, in order."""
    files: int = 0
    """Files and tar members that the inputs hold."""
    census: dict[str, Any] = field(default_factory=dict)
    """What lies in the corpora: `entries`, `others` by the end of their names, `unlabelled` inputs."""
    libraries: dict[str, str] = field(default_factory=dict)
    """The other libraries that decide the shards' bytes, with their versions; empty where nobody wrote them down."""
    requeued_by: tuple[dict[str, Any], ...] = ()
    """Of every requeue that added shards, in order: its `decoder`, `encoder`, `libraries`, and of `parameters` those
    that were other ones."""
    version: int = MANIFEST_VERSION


@dataclass(frozen=True)
class Member:
    """One file of a sample inside a shard."""

    suffix: str
    """What follows `KEY.`, e.g. `00.jpg`."""
    offset: int
    """Of the content (not of its tar header) in the shard, bytes."""
    bytes: int


@dataclass(frozen=True)
class SampleEntry:
    """One sample inside a shard."""

    key: str
    members: tuple[Member, ...]


@dataclass(frozen=True)
class Sidecar:
    """The content of a shard's sidecar; its presence means that the shard is complete."""

    name: str
    sha256: str
    bytes: int
    plan_digest: str
    samples: tuple[SampleEntry, ...]
    inputs: tuple[dict[str, Any], ...] = ()
    """The shard's lines of inputs.jsonl.gz: uri, bytes, sha256, outcome, reason, samples, dropped."""
    dropped: tuple[dict[str, Any], ...] = ()
    """Samples that a filter refused: input, frame_index, filter, reason."""
    hashes: tuple[str, ...] = ()
    """Perceptual hash of every sample's first frame, hex; empty where none is; () when nobody asked for them."""
    version: int = SIDECAR_VERSION


def compute_dataset_id(shards: Iterable[ShardEntry]) -> str:
    """sha256 (hex) over the hex digests of the shards, in order, one per line."""
    digest = hashlib.sha256()
    for shard in shards:
        digest.update(shard.sha256.encode() + b"\n")
    return digest.hexdigest()


def newest_revision(store: Store) -> int:
    """Number of the newest manifest, found without listing; 1 also when there is none."""
    revision = 1
    while store.exists(manifest_key(revision + 1)):
        revision += 1
    return revision


def read_manifest(location: str | Store, revision: int = 0) -> DatasetManifest:
    """Read and check a manifest of a dataset.

    Args:
        location: The dataset.
        revision: Which one; 0: the newest.

    Raises:
        DataError: it is absent, of another version, lacks or has too many fields, or its id does not fit.
    """
    shards: list[ShardEntry] = []
    manifest = scan_manifest(location, shards.append, revision)
    return replace(manifest, shards=tuple(shards))


def scan_manifest(location: str | Store, take: Callable[[ShardEntry], None], revision: int = 0) -> DatasetManifest:
    """Read and check a manifest in a stream: memory holds a block of it.

    Args:
        location: The dataset.
        take: Gets its shards in their order, before it is known that they fit the dataset's id.
        revision: Which one; 0: the newest.

    Returns:
        The manifest with no shards.

    Raises:
        DataError: as of `read_manifest`.
    """
    store = _as_store(location)
    key = manifest_key(revision or newest_revision(store))
    where = f"{store.location}/{key}"
    try:
        content, dataset_id = _scan(store, key, where, take)
    except AbsentKey as error:
        raise DataError(
            f"{where} is not there; expected a published dataset; run `mcjepa prep run` or correct the path"
        ) from error
    content |= LATER_FIELDS.get(content["version"], {})
    for name in ("requeue_digests", "requeued_by"):
        content[name] = tuple(list_field(content, name, where))
    content["totals"] = build_record(Totals, content.get("totals"), where)
    manifest: DatasetManifest = build_record(DatasetManifest, content, where)
    if dataset_id != manifest.dataset_id:
        raise DataError(
            f"{where} names dataset {manifest.dataset_id[:12]} but lists shards of another; "
            "expected them to agree; the file was edited or damaged: prepare the dataset again"
        )
    return manifest


def _scan(store: Store, key: str, where: str, take: Callable[[ShardEntry], None]) -> tuple[dict[str, Any], str]:
    """The fields of a manifest of a readable version, `shards` empty, and the dataset id of its shards."""
    content: dict[str, Any] = {}
    digest, fault = hashlib.sha256(), None
    with store.open(key) as file:
        reader = ObjectReader(file, where)
        for name in reader.fields():
            if name != "shards" or not reader.at_list():
                content[name] = reader.value()
                continue
            for item in reader.items():
                try:
                    shard = _shard(item, where)
                except DataError as error:
                    fault = fault or error  # unless it is of another version: that comes last
                    continue
                digest.update(shard.sha256.encode() + b"\n")
                take(shard)
            content["shards"] = []
    check_version(content, where, *READABLE_MANIFESTS)
    if fault:
        raise fault
    content["shards"] = tuple(list_field(content, "shards", where))
    return content, digest.hexdigest()


def write_manifest(location: str | Store, manifest: DatasetManifest) -> bool:
    """Publish a revision by one conditional put; False when its manifest is already there."""
    return _as_store(location).write_if_absent(manifest_key(manifest.revision), encode_json(manifest))


def read_sidecar(location: str | Store, shard_name: str) -> Sidecar:
    """Read and check a shard's sidecar.

    Raises:
        DataError: it is absent, of another version, or lacks or has too many fields.
    """
    store = _as_store(location)
    key = sidecar_key(shard_name)
    return decode_sidecar(store.read(key), f"{store.location}/{key}")


def write_sidecar(location: str | Store, sidecar: Sidecar) -> None:
    """Write a sidecar, after its shard: from then on the shard counts as done."""
    _as_store(location).write(sidecar_key(sidecar.name), encode_json(sidecar))


def decode_sidecar(data: bytes, where: str) -> Sidecar:
    """Build a sidecar from its JSON; `where` names it in errors."""
    content = parse_record(data, where, SIDECAR_VERSION)
    content["samples"] = tuple(_sample(s, where) for s in list_field(content, "samples", where))
    for name in ("inputs", "dropped", "hashes"):
        content[name] = tuple(list_field(content, name, where))
    sidecar: Sidecar = build_record(Sidecar, content, where)
    return sidecar


def _as_store(location: str | Store) -> Store:
    return open_store(location) if isinstance(location, str) else location


def _shard(content: Any, where: str) -> ShardEntry:
    try:
        shard = ShardEntry(**content)
    except TypeError:
        shard = build_record(ShardEntry, content, where)
    texts, numbers = (shard.name, shard.sha256), (shard.bytes, shard.samples)
    if not all(type(text) is str for text in texts) or not all(type(number) is int for number in numbers):
        raise malformed_record(where, f"the shard {content}, whose fields are of other kinds")
    return shard


def _sample(content: Any, where: str) -> SampleEntry:
    if not isinstance(content, dict):
        raise malformed_record(where, "a sample that is no object")
    members = tuple(build_record(Member, m, where) for m in list_field(content, "members", where))
    sample: SampleEntry = build_record(SampleEntry, {**content, "members": members}, where)
    return sample
