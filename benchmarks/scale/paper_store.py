"""A bucket on paper: a real manifest in a folder, made-up shards of images behind it, and a count of what is asked.

It stands where `open_store` gives an `S3Store`; what a request is there is a request here (a head for `exists`, `size`
and `version`, a list for every 1,000 keys of `files`, a get for the rest).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import simplejpeg

from mcjepa.data_prep.dataset.manifest import Member, SampleEntry, Sidecar
from mcjepa.data_prep.errors import AbsentKey
from mcjepa.data_prep.layout import MANIFEST_NAME, shard_name
from mcjepa.data_prep.storage import FileEntry, FolderStore, KeySpan, Store
from mcjepa.data_prep.storage.json_files import encode_json

LOCATION = "s3://bucket/images"
PAGE_KEYS = 1000


@functools.cache
def image() -> bytes:
    """The only image there is: 64 px of noise."""
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    return bytes(simplejpeg.encode_jpeg(pixels, quality=80))


def write_manifest(folder: Path, shards: int, samples: int) -> int:
    """Write the manifest of so many shards of so many images, as `data_prep` would, line by line; its bytes."""
    digest, path = hashlib.sha256(), folder / MANIFEST_NAME
    size = shard_bytes(samples)
    for number in range(shards):
        digest.update(f"{number:064x}\n".encode())
    total = samples * shards
    totals = f'"bytes":{size * shards},"dropped":0,"filtered":0,"inputs":{total},"ok":{total},"quarantined":0'
    with path.open("w") as file:
        file.write(f'{{"census":{{}},"dataset_id":"{digest.hexdigest()}","decoder":"d","encoder":"e","files":{total},')
        file.write('"inputs_digest":"i","kind":"image","parameters":{},"parent":"","plan_digest":"p",')
        file.write('"requeue_digests":[],"revision":1,"shards":[')
        for number in range(shards):
            entry = f'"bytes":{size},"name":"image-{number:06d}","samples":{samples},"sha256":"{number:064x}"'
            file.write(f"{',' if number else ''}{{{entry}}}")
        file.write(f'],"totals":{{{totals},"samples":{total},"shards":{shards}}},"version":3}}\n')
    return path.stat().st_size


def shard_bytes(samples: int) -> int:
    """Length of a shard: a header of 512 bytes before each image."""
    return samples * (512 + len(image()))


class PaperStore:
    """The bucket; requests and bytes are counted by what they were for."""

    location = LOCATION

    def __init__(self, folder: Path, samples: int, log: Path | None = None) -> None:
        """Stand before a manifest in `folder`.

        Args:
            folder: of `write_manifest`.
            samples: of each shard.
            log: a file to which all processes add a line a request; None: counted in this process.
        """
        self._manifest, self._samples, self._log = FolderStore(str(folder), folder), samples, log
        self.requests: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def as_store(self, location: str) -> Store:
        """In the place of `open_store`."""
        assert location == LOCATION
        return cast(Store, self)

    def exists(self, key: str) -> bool:
        """A head."""
        self._count("heads", 0)
        return self._manifest.exists(key)

    def size(self, key: str) -> int:
        """A head."""
        self._count("heads", 0)
        return shard_bytes(self._samples)

    def version(self, key: str) -> str:
        """A head."""
        self._count("heads", 0)
        return self._manifest.version(key)

    def files(self, prefix: str, span: KeySpan) -> Iterator[FileEntry]:
        """Listings of a stretch of shards, 1,000 keys of shards and sidecars each."""
        first, last = (int(key.rpartition("-")[2].partition(".")[0]) for key in span)
        shards = (prefix + shard_name("image", number) for number in range(first, last + 1))
        keys = (f"{shard}.{suffix}" for shard in shards for suffix in ("json", "tar"))
        for place, key in enumerate(filter(span.holds, keys)):
            if place % PAGE_KEYS == 0:
                self._count("lists", 0)
            yield FileEntry(key, shard_bytes(self._samples))

    @contextlib.contextmanager
    def open(self, key: str) -> Iterator[BinaryIO]:
        """A get of the manifest, or of a whole shard of zeros."""
        if not key.endswith(".json"):
            self._count("whole shards", shard_bytes(self._samples))
            yield io.BytesIO(bytes(shard_bytes(self._samples)))
            return
        if not self._manifest.exists(key):
            raise AbsentKey(f"{self.location}/{key}")
        self._count("manifests", self._manifest.size(key))
        with self._manifest.open(key) as file:
            yield file

    def read(self, key: str) -> bytes:
        """A get of a sidecar."""
        name = key.split("/")[1].removesuffix(".json")
        number, length = int(name.rpartition("-")[2]), len(image())
        places = itertools.count(512, 512 + length)
        entries = tuple(
            SampleEntry(f"{number:07d}-{place:06d}", (Member("jpg", offset, length),))
            for place, offset in zip(range(self._samples), places, strict=False)
        )
        size = shard_bytes(self._samples)
        content = encode_json(Sidecar(name, f"{number:064x}", size, "p", entries))
        self._count("sidecars", len(content))
        return content

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        """A ranged get of an image."""
        self._count("samples", length)
        return image()

    def _count(self, what: str, size: int) -> None:
        self.requests[what] += 1
        self.bytes[what] += size
        if self._log:
            with self._log.open("a") as file:
                file.write(f"{os.getpid()} {what} {size}\n")


def counted(log: Path) -> Counter[str]:
    """Requests of all processes by what they were for."""
    lines: Iterable[str] = log.read_text().splitlines() if log.exists() else ()
    return Counter(line.split(" ", 1)[1].rpartition(" ")[0] for line in lines)
