"""The files that describe a published dataset: its manifest and one sidecar a shard.

    ROOT/manifest.json                written last, once: its presence publishes the dataset
    ROOT/shards/clip-000123.tar       samples
    ROOT/shards/clip-000123.json      sidecar: digest and size of the shard, place of every sample's members

Readers are strict: another version, a missing or an unknown field is a DataError.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from data_prep.errors import DataError
from data_prep.storage import Store, open_store

MANIFEST_VERSION = 1
SIDECAR_VERSION = 1
MANIFEST_NAME = "manifest.json"
INPUTS_NAME = "inputs.jsonl.gz"
SHARD_FOLDER = "shards"


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
    """Sums over a dataset; inputs = ok + filtered + quarantined."""

    shards: int
    samples: int
    bytes: int
    inputs: int
    ok: int
    filtered: int
    quarantined: int


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
    """The shard's lines of inputs.jsonl.gz: uri, bytes, sha256, outcome, reason, samples."""
    version: int = SIDECAR_VERSION


def shard_key(name: str) -> str:
    """Key of a shard's tar in its dataset's store.

    >>> shard_key("clip-000001")
    'shards/clip-000001.tar'
    """
    return f"{SHARD_FOLDER}/{name}.tar"


def sidecar_key(name: str) -> str:
    """Key of a shard's sidecar in its dataset's store."""
    return f"{SHARD_FOLDER}/{name}.json"


def compute_dataset_id(shards: Iterable[ShardEntry]) -> str:
    """sha256 (hex) over the hex digests of the shards, in order, one a line."""
    digest = hashlib.sha256()
    for shard in shards:
        digest.update(shard.sha256.encode() + b"\n")
    return digest.hexdigest()


def read_manifest(location: str | Store) -> DatasetManifest:
    """Read and check manifest.json of a dataset.

    Raises:
        DataError: it is absent, of another version, lacks or has too many fields, or its id does not fit.
    """
    store = _as_store(location)
    where = f"{store.location}/{MANIFEST_NAME}"
    if not store.exists(MANIFEST_NAME):
        raise DataError(
            f"{where} is not there; expected a published dataset; run `mcjepa prep run` or correct the path"
        )
    content = _parse(store.read(MANIFEST_NAME), where, MANIFEST_VERSION)
    content["shards"] = tuple(_build(ShardEntry, s, where) for s in _sequence(content, "shards", where))
    content["totals"] = _build(Totals, content.get("totals"), where)
    manifest: DatasetManifest = _build(DatasetManifest, content, where)
    if compute_dataset_id(manifest.shards) != manifest.dataset_id:
        raise DataError(
            f"{where} names dataset {manifest.dataset_id[:12]} but lists shards of another; "
            "expected them to agree; the file was edited or damaged: prepare the dataset again"
        )
    return manifest


def write_manifest(location: str | Store, manifest: DatasetManifest) -> bool:
    """Publish a dataset by one conditional put; False when a manifest is already there."""
    return _as_store(location).write_if_absent(MANIFEST_NAME, encode_json(manifest))


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
    content = _parse(data, where, SIDECAR_VERSION)
    content["samples"] = tuple(_sample(s, where) for s in _sequence(content, "samples", where))
    content["inputs"] = tuple(_sequence(content, "inputs", where))
    sidecar: Sidecar = _build(Sidecar, content, where)
    return sidecar


def encode_json(record: Any) -> bytes:
    """A dataclass as sorted, compact JSON: the same record gives the same bytes."""
    text = json.dumps(record, default=vars, sort_keys=True, separators=(",", ":"))
    return text.encode() + b"\n"


def _as_store(location: str | Store) -> Store:
    return open_store(location) if isinstance(location, str) else location


def _sample(content: Any, where: str) -> SampleEntry:
    if not isinstance(content, dict):
        raise _malformed(where, "a sample that is no object")
    members = tuple(_build(Member, m, where) for m in _sequence(content, "members", where))
    sample: SampleEntry = _build(SampleEntry, {**content, "members": members}, where)
    return sample


def _parse(data: bytes, where: str, version: int) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except ValueError as error:
        raise _malformed(where, f"no JSON ({error})") from error
    if not isinstance(content, dict):
        raise _malformed(where, "no JSON object")
    if content.get("version") != version:
        raise DataError(
            f"{where} has version {content.get('version')!r}; expected {version}; "
            "prepare the dataset again with this mcjepa, or use the one that wrote it"
        )
    return content


def _sequence(content: dict[str, Any], name: str, where: str) -> list[Any]:
    value = content.get(name)
    if not isinstance(value, list):
        raise _malformed(where, f"no list `{name}`")
    return value


def _build(kind: type[Any], content: Any, where: str) -> Any:
    """A record from a JSON object that has exactly its fields."""
    if not isinstance(content, dict):
        raise _malformed(where, f"no object for {kind.__name__}")
    fields = {f.name for f in dataclasses.fields(kind)}
    if missing := sorted(fields - content.keys()):
        raise _malformed(where, f"no field {', '.join(missing)} ({kind.__name__})")
    if unknown := sorted(content.keys() - fields):
        raise _malformed(where, f"the unknown field {', '.join(unknown)} ({kind.__name__})")
    return kind(**content)


def _malformed(where: str, found: str) -> DataError:
    return DataError(f"{where} has {found}; expected the fields of docs/formats.md; prepare the dataset again")
