"""The shards of one published dataset in flat columns, in memory or in a file that processes map.

    mcjepa-manifest-index 1 SHA256 LENGTH     a line of 104 bytes: digest of all that follows, length of the header
    {"dataset_id": …, "kind": …, "revision": …, "shards": N, "names": M}      padded to a multiple of 64 bytes
    samples, bytes, ends of the names         N x int64 each, little-endian
    sha256 of the shards                      N x 32 bytes
    names                                     M bytes of UTF-8, one after the other

A million shards take 70 MB, and no page of them is a process's own. The file is a copy: what is damaged or of another
version is made anew from the manifest.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from mcjepa.data_prep.dataset.manifest import ShardEntry, scan_manifest
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import Store

_MAGIC = b"mcjepa-manifest-index 1 "
_LINE = len(_MAGIC) + 64 + 1 + 15
_ALIGNED, _DIGEST = 64, 32


class DamagedIndex(ValueError):
    """A file that is no index, or not the one that was written."""


class PackedNames(Sequence[str]):
    """Texts out of one block of UTF-8."""

    def __init__(self, ends: np.ndarray, block: np.ndarray) -> None:
        """Take over the texts' `ends` in `block`, int64 (N,), and the block, uint8."""
        self._ends, self._block = ends, block

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[str, ...]: ...
    def __getitem__(self, place: int | slice) -> str | tuple[str, ...]:
        if isinstance(place, slice):
            return tuple(self[number] for number in range(len(self))[place])
        number = range(len(self))[place]
        start = int(self._ends[number - 1]) if number else 0
        return self._block[start : int(self._ends[number])].tobytes().decode()


class PackedDigests(Sequence[str]):
    """Hex digests out of rows of 32 bytes."""

    def __init__(self, rows: np.ndarray) -> None:
        """Take over uint8 (N, 32)."""
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[str, ...]: ...
    def __getitem__(self, place: int | slice) -> str | tuple[str, ...]:
        if isinstance(place, slice):
            return tuple(self[number] for number in range(len(self))[place])
        return self._rows[place].tobytes().hex()


@dataclass(frozen=True, kw_only=True, eq=False)
class DatasetShards:
    """One published dataset: where it is and what its shards hold."""

    location: str
    """Folder or bucket prefix of the manifest."""
    dataset_id: str
    """Digest of the published content."""
    kind: str
    """`clip` or `image`."""
    shards: Sequence[str]
    """Names of the shards, in the manifest's order."""
    samples: Sequence[int] | np.ndarray
    """Samples in each shard."""
    sha256: Sequence[str]
    """Digest of each shard."""
    bytes: Sequence[int] | np.ndarray
    """Length of each shard."""


class ShardColumns:
    """A manifest in the bytes of its index, as they are collected."""

    def __init__(self, store: Store, revision: int = 0) -> None:
        """Read a revision of the dataset of `store`, 0 being the newest, in a stream.

        Raises:
            DataError: it is not published or its manifest is damaged.
        """
        self._location = store.location
        self._samples, self._bytes, self._name_ends = array("q"), array("q"), array("q")
        self._sha256, self._names = bytearray(), bytearray()
        manifest = scan_manifest(store, self._add, revision)
        facts = {"dataset_id": manifest.dataset_id, "kind": manifest.kind, "revision": manifest.revision}
        self._facts: dict[str, Any] = {**facts, "shards": len(self._samples), "names": len(self._names)}

    def _add(self, shard: ShardEntry) -> None:
        try:
            digest = bytes.fromhex(shard.sha256)
        except ValueError:
            digest = b""
        if len(digest) != _DIGEST or digest.hex() != shard.sha256:
            raise DataError(
                f"{self._location}: its manifest gives shard {shard.name} the sha256 {shard.sha256[:80]!r}; expected "
                "64 hex digits; prepare the dataset again"
            )
        self._samples.append(shard.samples)
        self._bytes.append(shard.bytes)
        self._sha256 += digest
        self._names += shard.name.encode()
        self._name_ends.append(len(self._names))

    def in_memory(self) -> DatasetShards:
        """The dataset, its columns in this process's own memory."""
        whole = np.frombuffer(b"".join(self._parts()), dtype=np.uint8)
        return _dataset(self._location, self._facts, whole)

    def write(self, path: Path) -> None:
        """Write the index, whole or not at all for whoever maps `path`.

        Raises:
            OSError: it cannot be written.
        """
        header = json.dumps(self._facts, sort_keys=True).encode()
        header += b" " * (-(_LINE + len(header)) % _ALIGNED)
        parts = [header, *self._parts()]
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        line = b"%s%s %014d\n" % (_MAGIC, digest.hexdigest().encode(), len(header))
        with path.open("wb") as file:
            for part in (line, *parts):
                file.write(part)
            file.flush()
            os.fsync(file.fileno())

    def _parts(self) -> list[Any]:
        return [self._samples, self._bytes, self._name_ends, self._sha256, self._names]


def map_shards(location: str, path: Path) -> DatasetShards:
    """The dataset behind an index, its columns in pages that all processes of the machine share.

    Args:
        location: of the dataset.
        path: of the index.

    Raises:
        DamagedIndex: the file is not what was written, or of another version.
        OSError: it cannot be opened.
    """
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size < _LINE:
            raise DamagedIndex("it ends within its first line")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    line = mapped[:_LINE]
    if not line.startswith(_MAGIC):
        raise DamagedIndex(f"it begins with {line[: len(_MAGIC)]!r}, expected {_MAGIC!r}")
    whole = np.frombuffer(mapped, dtype=np.uint8)
    if hashlib.sha256(memoryview(mapped)[_LINE:]).hexdigest().encode() != line[len(_MAGIC) : len(_MAGIC) + 64]:
        raise DamagedIndex("its content differs from its digest")
    end = _LINE + int(line[-15:])
    return _dataset(location, json.loads(mapped[_LINE:end]), whole[end:])


def _dataset(location: str, facts: dict[str, Any], columns: np.ndarray) -> DatasetShards:
    """The dataset with such columns, uint8, one after the other."""
    count = facts["shards"]
    samples, lengths, name_ends = columns[: 24 * count].view("<i8").reshape(3, count)
    digests = columns[24 * count :][: _DIGEST * count].reshape(count, _DIGEST)
    return DatasetShards(
        location=location,
        dataset_id=facts["dataset_id"],
        kind=facts["kind"],
        shards=PackedNames(name_ends, columns[(24 + _DIGEST) * count :][: facts["names"]]),
        samples=samples,
        sha256=PackedDigests(digests),
        bytes=lengths,
    )
