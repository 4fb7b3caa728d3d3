"""Chooses some samples of a published dataset for its card and reads them; makes thumbnails.

Whatever the dataset's size, at most MOST_SHARDS sidecars and MOST_SAMPLES samples are read. The choice is random, by
the dataset's id: the same dataset has the same card.
"""

from __future__ import annotations

import io
import json
import random
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, ImageFile

from mcjepa.data_prep.dataset.manifest import DatasetManifest, Member, SampleEntry, read_sidecar
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.layout import shard_key
from mcjepa.data_prep.storage import Store, open_store

MOST_SHARDS = 40
MOST_SAMPLES = 240
SHOWN_SAMPLES = 24
SHOWN_FRAMES = 6
THUMBNAIL_PX = 120
FRAME_SUFFIX = re.compile(r"(?:(?P<number>\d+)\.)?(?:jpg|webp|png)")

FOREIGN_FORMATS = ("JPEG", "PNG", "WEBP")
FOREIGN_MEGAPIXELS = 16.0
FOREIGN_BYTES = 8 << 20
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, MemoryError, Image.DecompressionBombError)


@dataclass(frozen=True)
class ReadSample:
    """One sample that was read."""

    key: str
    meta: dict[str, Any]
    """Its KEY.json."""
    size: tuple[int, int]
    """Width and height of its first frame, px."""
    thumbnails: tuple[bytes, ...] = ()
    """JPEG, of its frames; empty for samples that only count in the statistics."""
    frames: int = 1


@dataclass(frozen=True)
class ReadSamples:
    """The chosen samples, and how many shards they come from."""

    samples: tuple[ReadSample, ...]
    shards: int


def read_samples(store: Store, manifest: DatasetManifest) -> ReadSamples:
    """Some samples of a dataset, spread over its shards, in its order; SHOWN_SAMPLES of them with thumbnails.

    Raises:
        DataError: a sidecar is damaged, or a sample's json or first frame.
    """
    rng = random.Random(manifest.dataset_id)
    shards = sorted(rng.sample(manifest.shards, min(MOST_SHARDS, len(manifest.shards))), key=lambda s: s.name)
    chosen = [(shard.name, entry) for shard in shards for entry in _choose(store, shard.name, len(shards), rng)]
    shown = set(rng.sample(range(len(chosen)), min(SHOWN_SAMPLES, len(chosen))))
    samples = (_read(store, name, entry, number in shown) for number, (name, entry) in enumerate(chosen))
    return ReadSamples(tuple(samples), len(shards))


def _choose(store: Store, shard: str, shards: int, rng: random.Random) -> list[SampleEntry]:
    entries = read_sidecar(store, shard).samples
    return [entries[k] for k in sorted(rng.sample(range(len(entries)), min(MOST_SAMPLES // shards, len(entries))))]


def _read(store: Store, shard: str, entry: SampleEntry, shown: bool) -> ReadSample:
    members = {m.suffix: m for m in entry.members}
    frames = [members[suffix] for suffix in frame_suffixes(members)]
    where = f"sample {entry.key} of {store.location}/{shard_key(shard)}"
    try:
        meta = json.loads(_content(store, shard, members["json"]))
        first = _content(store, shard, frames[0])
        with Image.open(io.BytesIO(first)) as image:
            size = image.size
        step = -(-len(frames) // SHOWN_FRAMES)
        thumbnails = [_thumbnail_of(store, shard, m) for m in frames[::step]] if shown else []
    except (KeyError, IndexError, *DAMAGE) as error:
        raise DataError(f"{where} is damaged ({error!r}); expected frames and json; run `mcjepa prep audit`") from error
    return ReadSample(entry.key, meta, size, tuple(thumbnails), len(frames))


def frame_suffixes(suffixes: Iterable[str]) -> list[str]:
    """The suffixes of frames in the order of their numbers, which have two digits and, from 100 on, three.

    >>> frame_suffixes(["100.jpg", "11.jpg", "02.jpg", "json"])
    ['02.jpg', '11.jpg', '100.jpg']
    """
    found = [match for suffix in suffixes if (match := FRAME_SUFFIX.fullmatch(suffix))]
    return [match[0] for match in sorted(found, key=lambda match: int(match["number"] or 0))]


def _content(store: Store, shard: str, member: Member) -> bytes:
    return store.read_range(shard_key(shard), member.offset, member.bytes)


def _thumbnail_of(store: Store, shard: str, member: Member) -> bytes:
    with Image.open(io.BytesIO(_content(store, shard, member))) as image:
        return _thumbnail(image)


def foreign_thumbnail(uri: str) -> bytes | None:
    """A small JPEG of a picture that may be damaged, as far as it goes; None where there is none to show.

    The header is read first: another format than JPEG, PNG and WebP, or too many pixels, and nothing is decoded.
    """
    try:
        with warnings.catch_warnings(), _open_foreign(uri) as file:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is lower
            image = Image.open(file, formats=FOREIGN_FORMATS)
            if image.width * image.height > FOREIGN_MEGAPIXELS * 1e6:
                return None
            with _truncated_pictures_allowed():
                return _thumbnail(image)
    except (DataError, *DAMAGE):
        return None


def _open_foreign(uri: str) -> BinaryIO:
    """The start of a regular file or an object; a pipe or a device would never end."""
    if "://" in uri:
        folder, _, name = uri.rpartition("/")
        return io.BytesIO(open_store(folder).read_range(name, 0, FOREIGN_BYTES))
    path = Path(uri)
    if not path.is_file():
        raise OSError("no regular file")
    with path.open("rb") as file:
        return io.BytesIO(file.read(FOREIGN_BYTES))


@contextmanager
def _truncated_pictures_allowed() -> Iterator[None]:
    """Pillow has but one switch for all pictures."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _thumbnail(image: Image.Image) -> bytes:
    image.draft("RGB", (THUMBNAIL_PX, THUMBNAIL_PX))  # JPEG: decodes fewer pixels
    small = image.convert("RGB")
    small.thumbnail((8 * THUMBNAIL_PX, THUMBNAIL_PX))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82)
    return buffer.getvalue()
