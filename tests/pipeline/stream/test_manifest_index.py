"""The machine's index of a manifest: one reading for all processes, whoever dies, and never an old or damaged one."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import multiprocessing
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

from mcjepa.data_prep.dataset.manifest import (
    DatasetManifest,
    ShardEntry,
    Totals,
    compute_dataset_id,
    read_manifest,
    write_manifest,
)
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import FolderStore
from mcjepa.data_prep.storage.s3_client import S3Client
from mcjepa.pipeline.settings.stream import SourceConfig
from mcjepa.pipeline.stream import manifest_index
from mcjepa.pipeline.stream.catalogue import open_catalogue
from mcjepa.pipeline.stream.dataset_shards import DatasetShards
from mcjepa.pipeline.stream.manifest_index import open_shards

FORK = multiprocessing.get_context("fork")
WAIT_S = 60.0


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Manifests in folders are shared whatever their length."""
    monkeypatch.setattr(manifest_index, "SMALL_BYTES", -1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of the indexes."""
    return tmp_path / "indexes"


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """What all processes ask of stores, a line each: `open KEY`, `version KEY`."""
    log = tmp_path / "told"
    opened, version = FolderStore.open, FolderStore.version

    def say(text: str) -> None:
        with log.open("a") as file:
            file.write(f"{text}\n")

    def counted_open(self: FolderStore, key: str) -> contextlib.AbstractContextManager[BinaryIO]:
        say(f"open {key}")
        return opened(self, key)

    def counted_version(self: FolderStore, key: str) -> str:
        say(f"version {key}")
        return version(self, key)

    monkeypatch.setattr(FolderStore, "open", counted_open)
    monkeypatch.setattr(FolderStore, "version", counted_version)
    return lambda: log.read_text().splitlines() if log.exists() else []


def publish(location: str, shards: int = 5, *, revision: int = 1, salt: str = "") -> DatasetManifest:
    digests = [hashlib.sha256(f"{salt}{number}".encode()).hexdigest() for number in range(shards)]
    entries = tuple(ShardEntry(f"image-ä{10**n}", digests[n], 1000 + n, 7 + n % 3) for n in range(shards))
    samples, size = sum(e.samples for e in entries), sum(e.bytes for e in entries)
    totals = Totals(shards, samples, size, samples, samples, 0, 0)
    manifest = DatasetManifest(
        "image", compute_dataset_id(entries), "p", "i", "d", "e", {}, entries, totals, revision=revision
    )
    assert write_manifest(location, manifest)
    return manifest


def assert_same(found: DatasetShards, expected: DatasetManifest) -> None:
    shards = expected.shards
    assert (found.dataset_id, found.kind) == (expected.dataset_id, expected.kind)
    assert list(found.shards) == [each.name for each in shards] and found.shards[-1] == shards[-1].name
    assert list(found.sha256) == [each.sha256 for each in shards] and found.shards[1:3] == (
        shards[1].name,
        shards[2].name,
    )
    assert np.array_equal(found.samples, [each.samples for each in shards])
    assert np.array_equal(found.bytes, [each.bytes for each in shards])


def indexes(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


@contextlib.contextmanager
def processes(count: int, work: Callable[[], Any]) -> Iterator[list[Any]]:
    """So many processes that do it; they have ended well afterwards, but for those that were killed."""
    started = [FORK.Process(target=work) for _ in range(count)]
    for process in started:
        process.start()
    yield started
    for process in started:
        process.join(WAIT_S)
        assert process.exitcode in (0, -signal.SIGKILL)


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("shards", [3, 40])
def test_a_mapped_dataset_is_the_manifests(tmp_path: Path, folder: Path, shards: int) -> None:
    publish(str(tmp_path / "d"), shards)
    expected = read_manifest(str(tmp_path / "d"))
    for place in (None, folder, folder):  # in memory, made, mapped
        assert_same(open_shards(str(tmp_path / "d"), 0, place), expected)
    found = open_shards(str(tmp_path / "d"), 0, folder)
    with pytest.raises(ValueError, match="read-only"):
        np.asarray(found.samples)[0] = 1
    with pytest.raises(IndexError):
        found.shards[shards]


def test_ranks_that_start_together_read_once(tmp_path: Path, folder: Path, told: Callable[[], list[str]]) -> None:
    expected, barrier = publish(str(tmp_path / "d")), FORK.Barrier(8)

    def rank() -> None:
        barrier.wait()
        assert_same(open_shards(str(tmp_path / "d"), 0, folder), expected)

    with processes(8, rank):
        pass
    assert told().count("open manifest.json") == 1
    assert len(indexes(folder)) == 1


def test_a_look_that_began_after_one_asked_is_as_good_as_ones_own(
    tmp_path: Path, folder: Path, told: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(str(tmp_path / "d"))
    open_shards(str(tmp_path / "d"), 0, folder)
    open_shards(str(tmp_path / "d"), 0, folder)
    assert told() == ["version manifest.json", "open manifest.json", "version manifest.json"]
    before = time.monotonic() - 3600
    monkeypatch.setattr(manifest_index.time, "monotonic", lambda: before)  # one that has waited since then
    open_shards(str(tmp_path / "d"), 0, folder)
    assert len(told()) == 3
    monkeypatch.setattr(manifest_index, "_boot", lambda: "another start")  # whose clock says nothing
    open_shards(str(tmp_path / "d"), 0, folder)
    assert len(told()) == 4


def test_the_next_one_takes_over_from_a_killed_reader(
    tmp_path: Path, folder: Path, told: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = publish(str(tmp_path / "d"))
    write = manifest_index.ShardColumns.write

    def stuck(self: Any, path: Path) -> None:
        path.write_bytes(b"the first half")
        time.sleep(WAIT_S)

    monkeypatch.setattr(manifest_index.ShardColumns, "write", stuck)
    with processes(1, lambda: open_shards(str(tmp_path / "d"), 0, folder)) as (reader,):
        wait_until(lambda: bool(list(folder.glob(".*.partial"))) if folder.exists() else False)
        monkeypatch.setattr(manifest_index.ShardColumns, "write", write)
        with processes(1, lambda: assert_same(open_shards(str(tmp_path / "d"), 0, folder), expected)) as (waiting,):
            waiting.join(0.5)
            assert waiting.is_alive()  # the reader is at work
            os.kill(reader.pid, signal.SIGKILL)
    assert told().count("open manifest.json") == 2
    assert [name.rpartition(".")[2] for name in indexes(folder)] == ["index"]


@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "zeros", "version", "text"])
def test_a_damaged_index_is_made_again(
    tmp_path: Path, folder: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected = publish(str(tmp_path / "d"))
    open_shards(str(tmp_path / "d"), 0, folder)
    path = folder / indexes(folder)[0]
    whole = path.read_bytes()
    damaged = {
        "bit": whole[:-30] + bytes([whole[-30] ^ 1]) + whole[-29:],
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "zeros": bytes(len(whole)),
        "version": whole.replace(b"index 1 ", b"index 2 "),
        "text": b"what another program wrote there",
    }[damage]
    path.write_bytes(damaged)
    assert_same(open_shards(str(tmp_path / "d"), 0, folder), expected)
    assert f"{path} is damaged" in caplog.text
    assert path.read_bytes() == whole


def test_a_dataset_that_is_published_anew_is_seen_and_the_old_stays_readable(tmp_path: Path, folder: Path) -> None:
    place, other = str(tmp_path / "d"), str(tmp_path / "other")
    first, beside = publish(place), publish(other, 9, salt="other")
    old = open_shards(place, 0, folder)
    assert_same(open_shards(other, 0, folder), beside)
    second = publish(place, 6, revision=2, salt="more")
    assert_same(open_shards(place, 0, folder), second)
    assert_same(open_shards(place, 1, folder), first)
    shutil.rmtree(place)
    third = publish(place, 8, salt="another")
    assert_same(open_shards(place, 0, folder), third)
    assert_same(open_shards(other, 0, folder), beside)
    assert_same(old, first)  # its file is gone, its pages are not
    assert len(indexes(folder)) == 3  # newest and first of `place`, newest of `other`
    shutil.rmtree(place)
    with pytest.raises(DataError, match=r"manifest\.json is not there; expected a published dataset"):
        open_shards(place, 0, folder)


def test_what_nobody_opens_is_removed(tmp_path: Path, folder: Path) -> None:
    for name in "ab":
        publish(str(tmp_path / name), salt=name)
        open_shards(str(tmp_path / name), 0, folder)
    long_ago = time.time() - 2 * manifest_index.UNUSED_S
    for path in folder.iterdir():
        os.utime(path, (long_ago, long_ago))
    (folder / "notes.txt").write_text("of another program")
    os.utime(folder / "notes.txt", (long_ago, long_ago))
    open_shards(str(tmp_path / "a"), 0, folder)  # used again
    publish(str(tmp_path / "c"))
    open_shards(str(tmp_path / "c"), 0, folder)
    assert len(list(folder.glob("*.index"))) == len(list(folder.glob("*.lock"))) == 2
    assert (folder / "notes.txt").exists()


def test_without_a_folder_that_can_be_used_each_reads_for_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, told: Callable[[], list[str]]
) -> None:
    expected = publish(str(tmp_path / "d"))
    (tmp_path / "file").write_text("no folder")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        assert_same(open_shards(str(tmp_path / "d"), 0, folder), expected)
    assert caplog.text.count("is read and held by this process alone") == 2
    assert "stream.store.cache_dir" in caplog.text and told().count("open manifest.json") == 2


def test_a_full_disk_costs_the_index_and_one_reading(
    tmp_path: Path, folder: Path, told: Callable[[], list[str]]
) -> None:
    expected = publish(str(tmp_path / "d"), 40)

    def rank() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))  # of 40 shards it has 3,000
        assert_same(open_shards(str(tmp_path / "d"), 0, folder), expected)

    with processes(1, rank):
        pass
    assert indexes(folder) == [] and told().count("open manifest.json") == 1
    assert_same(open_shards(str(tmp_path / "d"), 0, folder), expected)
    assert len(indexes(folder)) == 1


def test_nobody_waits_for_ever(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    expected = publish(str(tmp_path / "d"))
    monkeypatch.setattr(manifest_index, "PATIENCE_S", 0.2)
    monkeypatch.setattr(manifest_index, "_SAY_S", 0.05)
    index = manifest_index._Index(folder, FolderStore(str(tmp_path / "d"), tmp_path / "d"), 0)
    with index.locked():
        assert_same(open_shards(str(tmp_path / "d"), 0, folder), expected)
    assert "another process of this machine reads the manifest" in caplog.text
    assert "has held" in caplog.text


def test_another_users_folder_among_the_temporary_files_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = publish(str(tmp_path / "d"))
    monkeypatch.setattr(manifest_index.tempfile, "tempdir", str(tmp_path))
    folder = manifest_index.index_folder("")
    assert_same(open_shards(str(tmp_path / "d"), 0, folder), expected)
    assert folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(manifest_index.os, "getuid", lambda: folder.stat().st_uid + 1)
    assert_same(open_shards(str(tmp_path / "d"), 0, folder), expected)
    assert "another user's" in caplog.text


def test_the_bucket_sees_one_reading_a_machine(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, log, barrier = publish(f"{s3}/d"), tmp_path / "calls", FORK.Barrier(4)
    call = S3Client.call

    def counted(self: S3Client, operation: str, key: str = "", **request: Any) -> dict[str, Any]:
        with log.open("a") as file:
            file.write(f"{operation}\n")
        return call(self, operation, key, **request)

    monkeypatch.setattr(S3Client, "call", counted)

    def rank() -> None:
        barrier.wait()
        sources = [SourceConfig(location=f"{s3}/d")]
        (dataset,) = open_catalogue(sources, manifest_index.index_folder(str(tmp_path / "cache"))).datasets
        assert_same(dataset, expected)

    with processes(4, rank):
        pass
    calls = log.read_text().splitlines()
    assert calls.count("get_object") == 1 and set(calls) == {"get_object", "head_object"}


def test_a_manifest_with_another_digest_is_refused(tmp_path: Path, folder: Path) -> None:
    shards = (ShardEntry("image-000000", "aa", 5, 1),)
    totals = Totals(1, 1, 5, 1, 1, 0, 0)
    manifest = DatasetManifest("image", compute_dataset_id(shards), "p", "i", "d", "e", {}, shards, totals)
    assert write_manifest(str(tmp_path / "d"), manifest)
    for place in (None, folder):
        with pytest.raises(DataError, match="sha256 'aa'; expected 64 hex digits"):
            open_shards(str(tmp_path / "d"), 0, place)
