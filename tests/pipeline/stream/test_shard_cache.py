"""The node's cache of shards: shared by processes, below its cap, unharmed by crashes and by wrong content."""

from __future__ import annotations

import contextlib
import hashlib
import io
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

from mcjepa.data_prep.errors import DataError
from mcjepa.pipeline.stream import shard_cache
from mcjepa.pipeline.stream.shard_cache import ShardCache

MEBI = 1 << 20


def shard(number: int, length: int = MEBI) -> tuple[str, bytes]:
    content = hashlib.shake_128(str(number).encode()).digest(length)
    return hashlib.sha256(content).hexdigest(), content


def opener(content: bytes) -> Callable[[], io.BytesIO]:
    return lambda: io.BytesIO(content)


def fill(cache: ShardCache, number: int, length: int = MEBI) -> bool:
    digest, content = shard(number, length)
    return cache.fill(digest, length, opener(content), "sha256")


def age(folder: Path, number: int, seconds: float) -> None:
    path, then = folder / f"{shard(number)[0]}.tar", time.time() - seconds
    os.utime(path, (then, then))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".lock"}


def present(folder: Path, *numbers: int) -> list[bool]:
    return [f"{shard(number)[0]}.tar" in names(folder) for number in numbers]


def test_what_was_filled_is_read_back_and_other_content_is_absent(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 4 * MEBI)
    assert cache.open(*digest_and_length(1)) is None
    assert fill(cache, 1) and not fill(cache, 1)
    descriptor = cache.open(*digest_and_length(1))
    assert descriptor is not None and os.pread(descriptor, MEBI, 0) == shard(1)[1]
    os.close(descriptor)
    assert names(tmp_path / "cache") == {f"{shard(1)[0]}.tar"}


def digest_and_length(number: int) -> tuple[str, int]:
    return shard(number)[0], MEBI


def test_the_least_recently_used_leave_first_and_the_cap_holds(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 3 * MEBI + 10)
    for number in (1, 2, 3):
        assert fill(cache, number)
        age(tmp_path, number, 100 * (4 - number))
    descriptor = cache.open(*digest_and_length(1))  # used now
    assert descriptor is not None
    assert fill(cache, 4)
    assert present(tmp_path, 1, 2, 3, 4) == [True, False, True, True]
    assert cache.held_bytes() == 3 * MEBI
    os.close(descriptor)


def test_a_shard_that_leaves_stays_readable_where_it_is_open(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, MEBI)
    fill(cache, 1)
    descriptor = cache.open(*digest_and_length(1))
    assert descriptor is not None and cache.touch(descriptor)
    age(tmp_path, 1, 100)
    assert fill(cache, 2)
    assert present(tmp_path, 1, 2) == [False, True]
    assert os.pread(descriptor, MEBI, 0) == shard(1)[1]
    assert not cache.touch(descriptor)
    os.close(descriptor)


def test_shards_in_use_are_not_given_up_for_others(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 2 * MEBI)
    assert fill(cache, 1) and fill(cache, 2)
    age(tmp_path, 1, 100)
    assert not fill(cache, 3, 2 * MEBI)  # shard 1 alone would not make room: it stays
    assert present(tmp_path, 1, 2) == [True, True]
    assert fill(cache, 4) and present(tmp_path, 1, 2, 4) == [False, True, True]
    assert not fill(cache, 5) and not fill(cache, 6, 3 * MEBI)
    assert cache.held_bytes() == 2 * MEBI


@pytest.mark.parametrize(
    "change",
    [lambda c: c[:-1], lambda c: c + b"x", lambda c: bytes([c[0] ^ 1]) + c[1:], lambda c: b""],
    ids=["shorter", "longer", "another byte", "empty"],
)
def test_content_that_is_not_the_shards_is_refused_and_leaves_nothing(
    tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    cache, (digest, content) = ShardCache(tmp_path, 4 * MEBI), shard(1)
    with pytest.raises(DataError, match=r"a shard in the store has \d+ bytes and sha256 .*, expected 1048576 and"):
        cache.fill(digest, MEBI, opener(change(content)), "sha256")
    assert names(tmp_path) == set() and fill(cache, 1)


def test_by_length_only_the_length_is_compared(tmp_path: Path) -> None:
    cache, (digest, content) = ShardCache(tmp_path, 4 * MEBI), shard(1)
    assert cache.fill(digest, MEBI, opener(content[::-1]), "length")
    with pytest.raises(DataError, match="has 5 bytes"):
        cache.fill(shard(2)[0], MEBI, opener(b"12345"), "length")


def test_a_file_of_another_length_is_removed(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 4 * MEBI)
    fill(cache, 1)
    os.truncate(tmp_path / f"{shard(1)[0]}.tar", 100)
    assert cache.open(*digest_and_length(1)) is None
    assert names(tmp_path) == set()


def test_one_of_two_fillers_does_the_work(tmp_path: Path) -> None:
    cache, (digest, content) = ShardCache(tmp_path, 4 * MEBI), shard(1)
    begun, go_on = threading.Event(), threading.Event()

    @contextmanager
    def slow() -> Iterator[BinaryIO]:
        begun.set()
        assert go_on.wait(20)
        yield io.BytesIO(content)

    worker = threading.Thread(target=cache.fill, args=(digest, MEBI, slow, "sha256"))
    worker.start()
    assert begun.wait(20)
    assert not fill(ShardCache(tmp_path, 4 * MEBI), 1)
    assert cache.held_bytes() == MEBI  # reserved already
    assert not fill(cache, 2, 4 * MEBI)
    go_on.set()
    worker.join()
    assert present(tmp_path, 1) == [True]


def hang_while_filling(folder: Path, begun: object) -> None:
    digest, _ = shard(1)

    @contextmanager
    def never_ends() -> Iterator[BinaryIO]:
        begun.set()  # type: ignore[attr-defined]
        time.sleep(60)
        yield io.BytesIO(b"")

    ShardCache(folder, 2 * MEBI).fill(digest, MEBI, never_ends, "sha256")


def test_a_killed_filler_leaves_no_lock_and_its_rest_makes_room(tmp_path: Path) -> None:
    processes = multiprocessing.get_context("spawn")
    begun = processes.Event()
    child = processes.Process(target=hang_while_filling, args=(tmp_path, begun))
    child.start()
    assert begun.wait(60) and child.pid
    cache = ShardCache(tmp_path, 2 * MEBI)
    assert not fill(cache, 1) and not fill(cache, 2, 2 * MEBI)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert names(tmp_path) == {f".{shard(1)[0]}.partial"}
    assert fill(cache, 2, 2 * MEBI)
    assert names(tmp_path) == {f"{shard(2, 2 * MEBI)[0]}.tar"}


def fill_many(folder: Path, seed: int, failures: object) -> None:
    cache = ShardCache(folder, 5 * MEBI)
    for turn in range(60):
        number = (turn * 7 + seed) % 13
        descriptor = cache.open(*digest_and_length(number))
        if descriptor is None:
            fill(cache, number)
            continue
        if os.pread(descriptor, MEBI, 0) != shard(number)[1]:
            failures.put(number)  # type: ignore[attr-defined]
        os.close(descriptor)


def test_processes_that_fill_and_read_at_once_see_whole_shards_below_the_cap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_cache, "RECENT_S", 0.0)  # forked below: shards leave while they are read
    processes = multiprocessing.get_context("fork")
    failures = processes.Queue()
    children = [processes.Process(target=fill_many, args=(tmp_path, seed, failures)) for seed in range(4)]
    for child in children:
        child.start()
    most = 0
    while any(child.is_alive() for child in children):
        with contextlib.suppress(FileNotFoundError):  # one left meanwhile
            most = max(most, sum(path.stat().st_size for path in tmp_path.glob("*.tar")))
        time.sleep(0.01)
    assert [child.exitcode for child in children] == [0] * 4 and failures.empty()
    assert 4 * MEBI <= most <= 5 * MEBI
    assert not list(tmp_path.glob(".*.partial"))
