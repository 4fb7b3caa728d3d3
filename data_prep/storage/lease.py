"""One writer a dataset, a run, a spool: a numbered lease under `writers/`, with signs of life and progress.

    ROOT/writers/000003.json     machine, pid, time of the last sign of life, progress; absent when nobody writes

A lease is taken by a conditional put of the next number, so of two writers one loses, on a folder (whether it has
`flock` or not) as on S3. A writer on this machine is dead when its process is; one elsewhere when it gave no sign for
`STALE_S`, whether its clock agrees with ours or not: the age of its last sign counts only where it says that it lives.
A writer that finds a higher number than its own, or its own file gone, has been given up for dead and stops.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from mcjepa.data_prep.errors import AbsentKey, DataError
from mcjepa.data_prep.storage import Store
from mcjepa.data_prep.storage.json_files import encode_json

LOG = logging.getLogger(__name__)

LEASES = "writers"
"""Folder of the leases, below what is written."""
BEAT_S = 5.0
STALE_S = 90.0
LEAST_BEATS = 2.2
"""Signs of life that a writer of another machine has time for, whatever the age of its last one, and a little more."""
_OURS: set[str] = set()
"""Tokens of leases that this process holds."""


class Occupied(DataError):
    """Another writer is at work."""


@dataclass(frozen=True)
class WriterProgress:
    """How far a writer is."""

    stage: str = "start"
    done: int = 0
    total: int = 0
    samples: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Lease:
    """The content of a lease's file."""

    number: int
    token: str
    host: str
    machine: str
    """Identity of the running system and its process numbers: only there does `pid` mean anything."""
    pid: int
    process_started: float
    """s since the system's start (Unix time where it does not tell); with the pid it names one process for ever."""
    started: float
    """When the job began, Unix time, s."""
    beat: float
    """Last sign of life, Unix time, s."""
    progress: WriterProgress = field(default_factory=WriterProgress)

    @property
    def alive(self) -> bool:
        """Whether the writer is believed to be at work."""
        if self.machine != _machine():
            return time.time() - self.beat < STALE_S
        if self.pid == os.getpid():
            return self.token in _OURS
        try:
            process = psutil.Process(self.pid)
            started = (_started(process), process.create_time())  # leases of earlier releases hold Unix time
            same = any(abs(each - self.process_started) < 1.0 for each in started)
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


def newest_lease(store: Store) -> Lease | None:
    """The lease of who writes, or wrote when it was killed; None when no file is there."""
    keys = [entry.key for entry in store.files(f"{LEASES}/")]
    try:
        return _read(store, keys[-1]) if keys else None
    except AbsentKey:
        return None


def _read(store: Store, key: str) -> Lease:
    content = store.read(key)
    try:
        fields: dict[str, Any] = json.loads(content)
        return Lease(**{**fields, "progress": WriterProgress(**fields["progress"])})
    except (ValueError, TypeError, KeyError) as error:
        where = f"{store.location}/{key}"
        raise DataError(f"{where} is no writer's lease ({error}); expected one; remove that file") from error


class Writer:
    """The holder of a lease; tells its progress with every sign of life."""

    def __init__(self, store: Store, lease: Lease) -> None:
        """Start giving signs of life in a thread."""
        self._store, self._lease = store, lease
        self.progress = lease.progress
        self._over = threading.Event()
        self._last_sign = time.time()
        self.lost = ""
        """Who has taken over, in words; empty while the lease is held."""
        self.taken_over = threading.Event()
        """Set once `lost` says who."""
        self._thread = threading.Thread(target=self._beat, name="writer-lease", daemon=True)
        self._thread.start()

    @property
    def token(self) -> str:
        """Random name of the lease."""
        return self._lease.token

    def check(self) -> None:
        """Stop when another writer has taken over.

        Raises:
            DataError: it has.
        """
        if lost := self.successor():
            raise DataError(f"{self._store.location}: {lost}; expected one writer; leave the work to that one")

    def successor(self) -> str:
        """Who has taken over, in words; empty while the lease is held.

        Looked up now where the last sign of life is so old that this process may have been frozen.
        """
        if not self.lost and not 0 <= time.time() - self._last_sign < STALE_S / 2:
            with contextlib.suppress(DataError, OSError):  # nobody knows; the thread goes on trying
                self._look()
        return self.lost

    def end(self) -> None:
        """Give the lease back."""
        self._over.set()
        self._thread.join()
        _OURS.discard(self._lease.token)
        with contextlib.suppress(DataError, OSError):  # the lease ends with this process in any case
            if not self._look():  # else a file of that name is not ours
                self._store.remove(_key(self._lease.number))

    def _look(self) -> str:
        if not self.lost:
            self.lost = _successor(self._store, self._lease)
        if self.lost:
            self.taken_over.set()
        return self.lost

    def _beat(self) -> None:
        silent = False
        while not self._over.wait(BEAT_S):
            try:
                if self._look():
                    return
                _write(self._store, dataclasses.replace(self._lease, beat=time.time(), progress=self.progress))
                self._last_sign, silent = time.time(), False
            except (DataError, OSError) as error:
                if not silent:
                    LOG.warning("no sign of life could be given: %s", error)
                silent = True


def _successor(store: Store, lease: Lease) -> str:
    """Who has taken a lease from its holder, who may have been frozen so long that the successor has ended."""
    newest = newest_lease(store)
    if newest is None or newest.number < lease.number:  # look at the very file: a listing may be late
        try:
            newest = _read(store, _key(lease.number))
        except AbsentKey:
            return f"another writer took over after {STALE_S:.0f} s without a sign of life from here, and has ended"
    if newest.token == lease.token:
        return ""
    return f"{describe_writer(newest)} took over after {STALE_S:.0f} s without a sign of life from here"


@contextlib.contextmanager
def sole_writer(store: Store, *, patient: bool = False) -> Iterator[Writer]:
    """Hold the lease of a location.

    Args:
        store: What is written.
        patient: Wait for up to `STALE_S` whether a writer on another machine that may be dead gives a sign of life:
            a job that is moved from a lost node comes sooner than that. One that has been silent for longer is waited
            for briefly in any case: by a clock that goes wrong a living one seems so.

    Raises:
        Occupied: another writer is at work there.
    """
    before = newest_lease(store)
    if before and before.machine != _machine() and (patient or not before.alive):
        before = _watch(store, before)
    elif before and before.alive:
        raise _occupied(store, before)
    lease = _new_lease(before.number + 1 if before else 1)
    _OURS.add(lease.token)
    if not store.write_if_absent(_key(lease.number), encode_json(lease)):
        winner = newest_lease(store)
        if not winner or winner.token != lease.token:  # else our own put, whose answer was lost
            _OURS.discard(lease.token)
            raise _occupied(store, winner or lease)
    for entry in list(store.files(f"{LEASES}/")):
        if entry.key < _key(lease.number):
            store.remove(entry.key)
    writer = Writer(store, lease)
    try:
        yield writer
    finally:
        writer.end()


def _watch(store: Store, lease: Lease) -> Lease | None:
    """Waits until a lease of another machine is stale, two signs of life at least; returns what is there then.

    Raises:
        Occupied: its writer gave a sign of life, or another writer came.
    """
    began, least_s = time.monotonic(), LEAST_BEATS * BEAT_S
    most_s = STALE_S if lease.alive else least_s
    LOG.warning(
        "%s was last written by %s, %.0f s ago; waiting up to %.0f s for a sign of life before taking over",
        store.location, describe_writer(lease), max(0.0, time.time() - lease.beat), most_s,
    )  # fmt: skip
    while (spent_s := time.monotonic() - began) < most_s and (lease.alive or spent_s < least_s):
        time.sleep(min(1.0, BEAT_S))
        newest = newest_lease(store)
        if newest is None:
            return None
        if (newest.token, newest.beat) != (lease.token, lease.beat):
            raise _occupied(store, newest)
    return lease


def describe_writer(lease: Lease) -> str:
    """A writer in words."""
    return f"process {lease.pid} on {lease.host}"


def _occupied(store: Store, lease: Lease) -> Occupied:
    age = max(0.0, time.time() - lease.beat)
    return Occupied(
        f"{store.location} is being written by {describe_writer(lease)} (last sign of life {age:.0f} s ago); "
        f"expected one writer; wait for it, stop it, or wait until it has been silent for {STALE_S:.0f} s"
    )


def _new_lease(number: int) -> Lease:
    now = time.time()
    started = _started(psutil.Process())
    return Lease(number, secrets.token_hex(8), socket.gethostname(), _machine(), os.getpid(), started, now, now)


def _started(process: psutil.Process) -> float:
    """When a process began, by a clock that nobody sets: in Unix time that changes when the clock is set."""
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_bytes().rpartition(b") ")[2].split()
        return int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return process.create_time()


def _write(store: Store, lease: Lease) -> None:
    store.write(_key(lease.number), encode_json(lease))


def _key(number: int) -> str:
    return f"{LEASES}/{number:06d}.json"


def _machine() -> str:
    """Boot and process namespace; the host's name where the system does not tell them."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()
