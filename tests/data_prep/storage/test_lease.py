"""One writer a dataset: refused while another lives, taken over from a dead one, lost to a successor."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import Store, open_store
from mcjepa.data_prep.storage import lease as lease_module
from mcjepa.data_prep.storage.json_files import encode_json
from mcjepa.data_prep.storage.lease import STALE_S, Lease, WriterProgress, newest_lease, sole_writer

REPOSITORY = Path(__file__).parents[3]
HOLD = """
import sys, time
from mcjepa.data_prep.storage.lease import sole_writer
from mcjepa.data_prep.storage import open_store
with sole_writer(open_store(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def hold_elsewhere(location: str) -> subprocess.Popen[str]:
    """Another process that holds the lease."""
    command = [sys.executable, "-c", HOLD, location]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def put_lease(store: Store, **changes: object) -> Lease:
    """A lease as another machine would have written it."""
    now = time.time()
    lease = dataclasses.replace(Lease(1, "t", "node7", "another machine", 4, now, now, now), **changes)  # type: ignore[arg-type]
    store.write(f"writers/{lease.number:06d}.json", encode_json(lease))
    return lease


def test_a_second_writer_is_refused_and_the_lease_is_gone_afterwards(store: Store) -> None:
    with sole_writer(store):
        with pytest.raises(DataError, match=rf"being written by process {os.getpid()} on .*; expected one writer"):
            sole_writer(store).__enter__()
        found = newest_lease(store)
        assert found is not None and found.alive
    assert newest_lease(store) is None
    with sole_writer(store):
        pass


def test_a_process_that_was_killed_is_succeeded_at_once(tmp_path: Path) -> None:
    location = str(tmp_path / "d")
    holder = hold_elsewhere(location)
    with pytest.raises(DataError, match=f"process {holder.pid}"):
        sole_writer(open_store(location)).__enter__()
    holder.kill()
    holder.wait()
    left = newest_lease(open_store(location))
    assert left is not None and left.pid == holder.pid and not left.alive
    with sole_writer(open_store(location)):
        current = newest_lease(open_store(location))
        assert current is not None and (current.number, current.pid) == (left.number + 1, os.getpid())
    assert newest_lease(open_store(location)) is None


def test_a_silent_writer_of_another_machine_is_succeeded_a_talking_one_is_not(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "BEAT_S", 0.2)
    put_lease(store, beat=time.time() - STALE_S / 2)
    with pytest.raises(DataError, match=r"process 4 on node7 .last sign of life 4[0-9] s ago"):
        sole_writer(store).__enter__()
    put_lease(store, beat=time.time() - STALE_S - 1)
    with sole_writer(store):
        found = newest_lease(store)
        assert found is not None and found.number == 2


def test_of_many_writers_at_once_one_wins(store: Store) -> None:
    barrier, entered, refused = threading.Barrier(8), [], []

    def compete() -> None:
        barrier.wait()
        try:
            with sole_writer(store):
                entered.append(1)
                time.sleep(1.0)
        except DataError:
            refused.append(1)

    threads = [threading.Thread(target=compete) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(entered), len(refused)) == (1, 7)


def test_a_writer_given_up_for_dead_stops_and_a_living_one_tells_its_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "BEAT_S", 0.05)
    store = open_store(str(tmp_path))
    with sole_writer(store) as writer:
        writer.progress = WriterProgress("shards", 3, 9, 100, 12345)
        time.sleep(0.3)
        told = newest_lease(store)
        assert told is not None and told.progress == WriterProgress("shards", 3, 9, 100, 12345)
        writer.check()
        put_lease(store, number=7)
        time.sleep(0.3)
        with pytest.raises(DataError, match="process 4 on node7 took over"):
            writer.check()


@pytest.mark.parametrize("came_again", [False, True], ids=["ended", "followed"])
def test_a_writer_notices_a_successor_that_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, came_again: bool
) -> None:
    monkeypatch.setattr(lease_module, "BEAT_S", 0.05)
    store = open_store(str(tmp_path))
    with sole_writer(store) as writer:
        store.remove("writers/000001.json")  # as one that took over did, which has given its own back since
        if came_again:
            put_lease(store)
        assert writer.taken_over.wait(5.0)
        with pytest.raises(DataError, match="took over after 90 s without a sign of life"):
            writer.check()
    left = newest_lease(store)
    assert (left.token if left else "") == ("t" if came_again else "")


def test_a_writer_that_was_frozen_looks_before_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path))
    with sole_writer(store) as writer:  # its thread gives the next sign of life in five seconds
        store.remove("writers/000001.json")
        writer.check()
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + STALE_S)
        with pytest.raises(DataError, match=r"another writer took over .* and has ended"):
            writer.check()


@pytest.mark.parametrize("patient", [False, True])
def test_a_living_writer_whose_clock_is_minutes_behind_is_not_succeeded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patient: bool
) -> None:
    monkeypatch.setattr(lease_module, "BEAT_S", 0.5)
    store = open_store(str(tmp_path))
    put_lease(store, beat=time.time() - 300)
    beat = threading.Timer(0.4, lambda: put_lease(store, beat=time.time() - 299.5))
    beat.start()
    with pytest.raises(DataError, match="written by process 4 on node7"):
        sole_writer(store, patient=patient).__enter__()
    beat.join()


def test_a_damaged_lease_is_named(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.write("writers/000001.json", b"{")
    with pytest.raises(DataError, match=r"000001\.json is no writer's lease"):
        newest_lease(store)


def test_a_patient_writer_takes_over_from_a_lost_machine_and_not_from_one_that_talks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "STALE_S", 1.0)
    monkeypatch.setattr(lease_module, "BEAT_S", 0.1)
    store = open_store(str(tmp_path))
    put_lease(store, beat=time.time() + 30)  # its clock is ahead of ours
    with sole_writer(store, patient=True):
        found = newest_lease(store)
        assert found is not None and found.number == 2
    put_lease(store, number=3)
    talks = threading.Timer(0.3, lambda: put_lease(store, number=3, beat=time.time() + 1))
    talks.start()
    with pytest.raises(DataError, match="written by process 4 on node7"):
        sole_writer(store, patient=True).__enter__()
    talks.join()


def test_a_writer_that_nobody_has_reaped_is_dead(tmp_path: Path) -> None:
    location = str(tmp_path / "d")
    holder = hold_elsewhere(location)
    holder.kill()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:  # a zombie until `wait`
        left = newest_lease(open_store(location))
        if left is not None and not left.alive:
            break
        time.sleep(0.05)
    assert left is not None and not left.alive
    holder.wait()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system tells no other time of a process's start")
def test_a_writer_of_this_machine_lives_when_the_clock_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = hold_elsewhere(str(tmp_path))
    try:
        boot = psutil.boot_time()
        for set_by_s in (-3600.0, 0.0, 7.0):  # the system's start is reckoned back from the clock
            monkeypatch.setattr("psutil._pslinux.boot_time", lambda by=set_by_s: boot + by)
            lease = newest_lease(open_store(str(tmp_path)))
            assert lease is not None and lease.alive
        earlier = psutil.Process(process.pid).create_time()
        assert dataclasses.replace(lease, process_started=earlier).alive  # as releases before wrote it
        assert not dataclasses.replace(
            lease, process_started=lease.process_started + 5
        ).alive  # its number, given again
    finally:
        process.kill()
        process.wait()
    assert not lease.alive
