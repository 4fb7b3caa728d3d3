"""Small published datasets and loaders over them, for the tests of the loader."""

from __future__ import annotations

import hashlib
import io
import tarfile

import cv2
import numpy as np
import simplejpeg
import torch

from mcjepa.data_prep.dataset.manifest import (
    DatasetManifest,
    Member,
    SampleEntry,
    ShardEntry,
    Sidecar,
    Totals,
    compute_dataset_id,
    write_manifest,
    write_sidecar,
)
from mcjepa.data_prep.layout import shard_key
from mcjepa.data_prep.storage import open_store
from mcjepa.pipeline.settings.stream import StreamConfig
from mcjepa.pipeline.stream.batches import StepBatch
from mcjepa.pipeline.stream.loader import StepLoader, build_loader

HEIGHT, WIDTH = 40, 56


def frame_of(key_number: int, frame: int) -> np.ndarray:
    """A frame that names its sample and its place in the clip by its level."""
    ramp = np.linspace(0, 40, WIDTH, dtype=np.uint8)[None, :, None]
    level = np.uint8(4 * key_number % 160 + 30 * frame)
    return np.ascontiguousarray(np.broadcast_to(ramp + level, (HEIGHT, WIDTH, 3)))


def publish(location: str, kind: str, shard_samples: list[int], frames: int = 3, encoding: str = "jpg") -> None:
    """Publish a small dataset with `tarfile`, so that offsets come from another writer than ours."""
    store, entries, number = open_store(location), [], 0
    for shard, count in enumerate(shard_samples):
        name, buffer, samples = f"{kind}-{shard:06d}", io.BytesIO(), []
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            places: list[tuple[str, str, tarfile.TarInfo]] = []
            for _ in range(count):
                key = f"{kind}{number:05d}"
                suffixes = [f"{frame:02d}.{encoding}" for frame in range(frames)] if kind == "clip" else [encoding]
                contents = [(each, encode(frame_of(number, place), encoding)) for place, each in enumerate(suffixes)]
                for suffix, content in [*contents, ("json", b"{}")]:
                    info = tarfile.TarInfo(f"{key}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
                    places.append((key, suffix, info))
                number += 1
        with tarfile.open(fileobj=io.BytesIO(buffer.getvalue())) as tar:
            offsets = {info.name: (info.offset_data, info.size) for info in tar}
        for key in dict.fromkeys(key for key, _, _ in places):
            members = (Member(s, *offsets[f"{k}.{s}"]) for k, s, _ in places if k == key)
            samples.append(SampleEntry(key, tuple(members)))
        digest = hashlib.sha256(buffer.getvalue()).hexdigest()
        store.write(shard_key(name), buffer.getvalue())
        write_sidecar(store, Sidecar(name, digest, len(buffer.getvalue()), "plan", tuple(samples)))
        entries.append(ShardEntry(name, digest, len(buffer.getvalue()), count))
    totals = Totals(len(entries), number, sum(entry.bytes for entry in entries), number, number, 0, 0)
    dataset_id = compute_dataset_id(entries)
    assert write_manifest(
        store, DatasetManifest(kind, dataset_id, "plan", "inputs", "d", "e", {}, tuple(entries), totals)
    )


def encode(frame: np.ndarray, encoding: str = "jpg") -> bytes:
    if encoding == "jpg":
        return bytes(simplejpeg.encode_jpeg(frame, quality=95))
    done, data = cv2.imencode(f".{encoding}", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    assert done
    return data.tobytes()


def take(loader: StepLoader, count: int) -> list[StepBatch]:
    with loader:
        return [next(loader) for _ in range(count)]


def open_loader(config: StreamConfig, rank: int = 0, world_size: int = 1, start_step: int = 0) -> StepLoader:
    return build_loader(config, rank=rank, world_size=world_size, start_step=start_step, seed=11)


def assert_equal_steps(found: list[StepBatch], expected: list[StepBatch]) -> None:
    assert [batch.step for batch in found] == [batch.step for batch in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.pairs and other.pairs and one.views and other.views
        assert (one.pairs.keys, one.views.keys) == (other.pairs.keys, other.views.keys)
        for ours, theirs in (
            (one.pairs.as_dict(), other.pairs.as_dict()),
            (one.views.as_dict(), other.views.as_dict()),
        ):
            assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
