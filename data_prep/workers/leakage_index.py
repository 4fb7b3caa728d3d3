"""The index of evaluation frames that the leakage filter compares with, made once a dataset before its shards.

ROOT/leakage/000000.jsonl.gz    hashes of some evaluation inputs' frames, one task's work
ROOT/leakage.jsonl.gz           all of them in order: the index that the workers load
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from mcjepa.data_prep.corpora.items import Input
from mcjepa.data_prep.decode.encoders import shrink
from mcjepa.data_prep.decode.fetch import local_input
from mcjepa.data_prep.decode.flow_samples import FRAME_ROLES
from mcjepa.data_prep.decode.images import read_picture
from mcjepa.data_prep.decode.messages import DecodeFailure, Unwanted
from mcjepa.data_prep.decode.video.planes import Planes
from mcjepa.data_prep.decode.videos import ByteArray, open_video
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.layout import LEAKAGE_NAME
from mcjepa.data_prep.plan.plan import PlannedInput
from mcjepa.data_prep.settings import DatasetConfig
from mcjepa.data_prep.storage import FolderStore, Store, open_store
from mcjepa.data_prep.workers.tasks import RunTasks

INPUTS_PER_PART = 32


@dataclass(frozen=True)
class LeakagePart:
    """Some evaluation inputs, fingerprinted by one task."""

    name: str
    inputs: tuple[PlannedInput, ...]


@dataclass(frozen=True)
class LeakageWork:
    """What all parts have in common."""

    location: str
    config: DatasetConfig


def make_leakage_index(
    location: str,
    config: DatasetConfig,
    guarded: Iterable[PlannedInput],
    *,
    run: RunTasks,
    on_part: Callable[[int], None],
) -> None:
    """Fingerprint every frame of the evaluation sets, unless the index is there.

    Args:
        location: The dataset.
        config: Its settings.
        guarded: Inputs of the evaluation sets, in order.
        run: Who runs the tasks.
        on_part: Called with the number of finished parts.
    """
    from mcjepa.data_prep.filters.leakage import LeakageIndex

    store = open_store(location)
    if store.exists(LEAKAGE_NAME):
        return
    names: list[str] = []
    done = 0

    def parts() -> Iterator[LeakagePart]:
        stream = iter(guarded)
        while group := tuple(islice(stream, INPUTS_PER_PART)):
            names.append(f"{len(names):06d}")
            yield LeakagePart(names[-1], group)

    def count(_: str) -> None:
        nonlocal done
        done += 1
        on_part(done)

    run(fingerprint_part, LeakageWork(location, config), parts(), on_result=count)
    path = store.scratch() / f"{LEAKAGE_NAME}.{os.getpid()}.partial"
    lines: list[tuple[str, int]] = []
    for name in names:
        lines += LeakageIndex.load(_fetch(store, _part_key(name))).lines()
    LeakageIndex.build(lines).save(path)
    store.write_file(LEAKAGE_NAME, path)


def fingerprint_part(work: LeakageWork, part: LeakagePart) -> str:
    """Write the hashes of a part's frames, unless they are there; returns the part's name.

    Raises:
        DataError: an evaluation input cannot be read: a guard with a hole is none.
    """
    from mcjepa.data_prep.filters.leakage import LeakageIndex

    store = open_store(work.location)
    if store.exists(_part_key(part.name)):
        return part.name
    lines: list[tuple[str, int]] = []
    for planned in part.inputs:
        try:
            if planned.item.refusal:
                raise DecodeFailure(planned.item.refusal)
            with local_input(planned.item, store.scratch()) as item:
                lines += fingerprint_input(item, work.config)
        except (DecodeFailure, Unwanted) as failure:
            raise DataError(
                f"evaluation input {planned.item.uri} cannot be guarded ({failure}); expected to read every frame of "
                "filters.leakage.sets; repair the set, or leave it out"
            ) from failure
    path = store.scratch() / f"leakage-{part.name}.{os.getpid()}.partial"
    LeakageIndex.build(lines).save(path)
    store.write_file(_part_key(part.name), path)
    return part.name


def fingerprint_input(item: Input, config: DatasetConfig) -> Iterator[tuple[str, int]]:
    """Name and hash of every frame of an evaluation input, but of flat ones.

    Args:
        item: Local files; of a pair, only its frames are read.
        config: Settings of the dataset to guard: short side of its frames, video decoder, greatest size of a frame.

    Raises:
        DecodeFailure: it cannot be read (other exceptions of decoders come through as they are).
    """
    from mcjepa.data_prep.filters.phash import frame_hash

    for name, rgb in _frames(item, config):
        value = frame_hash(rgb)
        if value is not None:
            yield name, value


def _frames(item: Input, config: DatasetConfig) -> Iterator[tuple[str, ByteArray]]:
    """Names and frames as they would be stored."""
    if item.kind == "video":
        video = open_video(item.uri, config.decoder, config.max_megapixels, config.video)
        for frame in video.read(np.arange(video.frame_count, dtype=np.int64)):
            stored = frame.shrunk(config.short_side)
            yield f"{item.name}#{frame.number}", stored.rgb() if isinstance(stored, Planes) else stored
        return
    parts = item.roles or item.members or ("",)
    for part, path in zip(parts, item.files, strict=True):
        if item.kind != "pair" or part in FRAME_ROLES:
            picture = read_picture(Path(path), config.max_megapixels, config.short_side)
            yield f"{item.name}#{part}" if part else item.name, shrink(picture.rgb, config.short_side, picture.size)


def fetch_leakage_index(store: Store) -> str:
    """Path of the index as a local file."""
    return str(_fetch(store, LEAKAGE_NAME))


def _fetch(store: Store, key: str) -> Path:
    if isinstance(store, FolderStore):
        return store.path(key)
    path = store.scratch() / f"{key.replace('/', '-')}.{threading.get_native_id()}.fetched"
    store.download(key, path)
    return path


def _part_key(name: str) -> str:
    return f"leakage/{name}.jsonl.gz"
