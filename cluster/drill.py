"""Rehearses an interruption of a training run on this machine, with real processes, signals and failing writes.

    preempt      SIGTERM to the whole command, as a scheduler sends it; then the same command again
    node-loss    SIGKILL to one rank; then the same command again
    storage      no file of any rank may grow beyond 32 KiB (RLIMIT_FSIZE: writes fail as on a full disk) until a
                 save has failed; then writing works again and the run goes on by itself

The command is given; what it trains is not this room's matter.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from mcjepa.cluster.errors import LaunchError
from mcjepa.cluster.local import GRACE_S, INTERRUPTED, death_signal, end_processes

Kind = Literal["preempt", "node-loss", "storage"]
FAULT_FILE_BYTES = 32 << 10
POLL_S = 0.005


@dataclass(frozen=True)
class Rehearsal:
    """A run that can be started again and again."""

    argv: Sequence[str]
    """The command that trains, or continues, the run."""
    environment: Mapping[str, str]
    log: Path
    """Gets what it writes."""
    progress: Callable[[], int]
    """Steps that its log has so far."""
    grace_s: float
    """Between stop signal and kill."""
    ranks: int
    """That the command starts; one it is itself."""
    limit_s: float = 900.0
    """Of one start."""
    failure: str = "was not saved"
    """What the run writes when a save has failed."""


@dataclass(frozen=True)
class Disturbance:
    """What was done to a run, and how it went on."""

    kind: Kind
    step: int
    """Steps done when it was disturbed."""
    code: int
    """Exit code of the disturbed start."""
    seconds: float
    """From the disturbance to the end of that start; for storage, to the save that failed."""
    starts: int
    """Of the command, until the run was finished."""
    problem: str
    """Empty where it came to its end as it should."""


def train_whole(run: Rehearsal) -> None:
    """Trains without a disturbance.

    Raises:
        LaunchError: it fails.
    """
    with _started(run) as process:
        code = _wait(process, run.limit_s)
    if code:
        raise LaunchError(f"the undisturbed run ended with {code} already: {last_line(run.log)} (all of it: {run.log})")


def disturb(kind: Kind, run: Rehearsal, after: int) -> Disturbance:
    """Trains, disturbs once `after` steps are done, and starts again until the run is finished.

    Raises:
        LaunchError: the run ended before it could be disturbed.
    """
    with _started(run) as process:
        _wait_until(lambda: run.progress() >= after, process, run, f"step {after}")
        step, began = run.progress(), time.monotonic()
        problem = ACTIONS[kind](process, run)
        spent = time.monotonic() - began
        code = _wait(process, run.grace_s if kind == "preempt" else run.limit_s)
        if kind != "storage":
            spent = time.monotonic() - began
    expected = {"preempt": code == INTERRUPTED, "node-loss": code != 0, "storage": code == 0}[kind]
    if not problem and not expected:
        problem = f"it ended with {code}: {last_line(run.log)}"
    starts = 1
    if code:
        with _started(run) as process:
            again = _wait(process, run.limit_s)
        starts = 2
        if again and not problem:
            problem = f"started again, it ended with {again}: {last_line(run.log)}"
    return Disturbance(kind, step, code, spent, starts, problem)


def _preempt(process: subprocess.Popen[bytes], run: Rehearsal) -> str:
    process.send_signal(signal.SIGTERM)
    return ""


def _lose_node(process: subprocess.Popen[bytes], run: Rehearsal) -> str:
    ranks = rank_processes(process.pid)
    if len(ranks) < 2:
        return f"{len(ranks)} rank(s) were found below process {process.pid}, expected at least 2"
    ranks[max(ranks)].kill()
    return ""


def _fail_storage(process: subprocess.Popen[bytes], run: Rehearsal) -> str:
    # Not what ranks start: their loading processes hand over batches in files of memory, which have the same limit.
    several = run.ranks > 1
    writers = [rank.pid for rank in rank_processes(process.pid).values()] if several else [process.pid]
    seen = run.log.read_bytes().count(run.failure.encode())
    with _small_files(writers):
        _wait_until(lambda: run.log.read_bytes().count(run.failure.encode()) > seen, process, run, "a save that fails")
    return ""


ACTIONS: dict[Kind, Callable[[subprocess.Popen[bytes], Rehearsal], str]] = {
    "preempt": _preempt,
    "node-loss": _lose_node,
    "storage": _fail_storage,
}


@contextlib.contextmanager
def _small_files(pids: Sequence[int]) -> Iterator[None]:
    """While it is held, processes cannot make a file grow beyond `FAULT_FILE_BYTES`; Python ignores SIGXFSZ."""
    before: dict[int, tuple[int, int]] = {}
    try:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                _, hard = before[pid] = resource.prlimit(pid, resource.RLIMIT_FSIZE)
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (FAULT_FILE_BYTES, hard))
        yield
    finally:
        for pid, limits in before.items():
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


def rank_processes(pid: int) -> dict[int, psutil.Process]:
    """The ranks below a process, by the RANK of their environment."""
    found: dict[int, psutil.Process] = {}
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.Error):
            rank = child.environ().get("RANK", "")
            if rank.isdigit():
                found[int(rank)] = child
    return found


def last_line(log: Path) -> str:
    """What a run said last."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it wrote nothing"


@contextlib.contextmanager
def _started(run: Rehearsal) -> Iterator[subprocess.Popen[bytes]]:
    """The command as a process whose whole tree has ended afterwards."""
    with run.log.open("ab") as log:
        process = subprocess.Popen(
            list(run.argv), env={**os.environ, **run.environment}, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=death_signal(),
        )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            end_processes([process], GRACE_S, signal.SIGINT)


def _wait(process: subprocess.Popen[bytes], limit_s: float) -> int:
    """Its exit code; killed after the limit."""
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        end_processes([process], 0.0, signal.SIGKILL)
        return process.wait()


def _wait_until(come: Callable[[], bool], process: subprocess.Popen[bytes], run: Rehearsal, what: str) -> None:
    deadline = time.monotonic() + run.limit_s
    while not come():
        if process.poll() is not None or time.monotonic() > deadline:
            raise LaunchError(
                f"the run was over before {what} came (exit code {process.poll()}: {last_line(run.log)}); expected "
                "time to disturb it; give more --steps"
            )
        time.sleep(POLL_S)
