"""What has become of jobs: states from Slurm or this machine, logs of ranks, and cancelling."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mcjepa.cluster import local_jobs
from mcjepa.cluster.errors import LaunchError
from mcjepa.cluster.job import IN_TERMINAL, read_record, write_record
from mcjepa.cluster.local import INTERRUPTED
from mcjepa.cluster.restarts import JobState
from mcjepa.cluster.slurm import GONE, is_active, job_states, run

VERDICTS = {"done": "COMPLETED", "failed": "FAILED", "requeue": "FAILED"}
CANCEL_S = 150.0
LOGS_S, STATUS_S = 0.5, 5.0
"""Between two looks at the logs, and at the state of a job whose logs are followed."""


@dataclass(frozen=True)
class JobStatus:
    """One job."""

    id: str
    element: str
    state: str
    """Slurm's word for it."""
    detail: str
    """Nodes, or why it waits."""
    starts: int
    idle_starts: int
    """The last starts in a row that brought nothing newer."""

    @property
    def active(self) -> bool:
        """Whether it runs or will run."""
        return is_active(self.state)


def read_status(folder: Path) -> list[JobStatus]:
    """State of every element of the last submission.

    Raises:
        LaunchError: nothing was launched in the folder, or Slurm does not answer.
    """
    record = read_record(folder)
    if not record.jobs:
        return []
    states = job_states(record.ids) if record.last["kind"] == "slurm" else {}
    found = []
    names = [element.name for element in record.elements]
    for name, job in itertools.zip_longest(names[: len(record.ids)], record.ids, fillvalue=""):  # a launch was cut off
        state = JobState(folder, job)
        word, detail = states[job] if states else _local_state(folder, job, state)
        if word == GONE and record.last["kind"] == "slurm":
            word, detail = _noted_state(state, record.cancelled) or (word, detail)
        found.append(JobStatus(job, name, word, detail, len(state.starts), state.content["idle"]))
    return found


def cancel(folder: Path) -> list[str]:
    """Cancels what was launched in a folder and what waits for it; returns the ids of what was active.

    Raises:
        LaunchError: nothing was launched there, or a job does not end.
    """
    record = read_record(folder)
    ended = [job for follower in record.followers for job in cancel(Path(follower))]
    active = [status.id for status in read_status(folder) if status.active]
    for job in active:
        if record.last["kind"] == "slurm":
            run("scancel", job)
        elif not local_jobs.stop(job, folder, CANCEL_S):
            raise LaunchError(f"job {job} still runs {CANCEL_S:g} s after SIGTERM, expected it to end; kill it")
    record.cancelled = True
    write_record(folder, record)
    if active and record.last["kind"] == "slurm":
        _wait_ended(folder)
    return [*ended, *active]


def log_files(folder: Path, rank: int | None = None) -> list[Path]:
    """Files with the output of the last submission's ranks, of one rank or of all, in order.

    Raises:
        LaunchError: there are none.
    """
    record = read_record(folder)
    if record.ids == [IN_TERMINAL] * len(record.elements):
        raise LaunchError("the output went to the terminal, expected a job of a local or slurm site; nothing to print")
    found = [p for job in record.ids for p in folder.glob(f"{job}_*_log.out") if _rank_of(p, job) is not None]
    found = [p for p in found if rank is None or any(_rank_of(p, job) == rank for job in record.ids)]
    if not found:
        what = "its ranks" if rank is None else f"rank {rank}"
        raise LaunchError(f"no output of {what} in {folder} yet; `mcjepa launch status` says whether it has started")
    return sorted(found, key=lambda p: [int(n) for n in re.findall(r"\d+", p.name)])


def follow_logs(folder: Path, rank: int | None = None, lines: int = 0) -> Iterator[tuple[Path, str]]:
    """What ranks write, as they write it, until the last submission has ended; whole lines, by file.

    Args:
        folder: of the job.
        rank: this one alone; None: all.
        lines: of what is there already, the last so many of each file; 0: all.

    Raises:
        LaunchError: as `read_status`.
    """
    read: dict[Path, int] = {}
    asked, active, last = 0.0, True, False
    while True:
        if time.monotonic() - asked >= STATUS_S:  # the scheduler is asked less often than files are read
            asked, active = time.monotonic(), any(status.active for status in read_status(folder))
            last = not active
        try:
            files = log_files(folder, rank)
        except LaunchError:
            files = []  # it has not started
        for path in files:
            with path.open("rb") as file:
                file.seek(read.get(path, 0))
                new = file.read()
            whole = new if last else new[: new.rfind(b"\n") + 1]
            shown = whole.decode(errors="replace").splitlines()
            if path not in read and lines:
                shown = shown[-lines:]
            read[path] = read.get(path, 0) + len(whole)
            if shown:
                yield path, "\n".join(shown)
        if last:
            return
        time.sleep(LOGS_S)


def _rank_of(path: Path, job: str) -> int | None:
    match = re.fullmatch(rf"{re.escape(job)}_(\d+)_log\.out", path.name)
    return int(match.group(1)) if match else None


def _local_state(folder: Path, job: str, state: JobState) -> tuple[str, str]:
    if local_jobs.controller(job, folder):
        return ("RUNNING" if state.starts else "PENDING"), f"process {job}"
    end = state.starts[-1].get("end") if state.starts else None
    if not end:
        return GONE, "ended without a word"
    return ("CANCELLED" if end["code"] == INTERRUPTED else VERDICTS[end["verdict"]]), f"exit code {end['code']}"


def _noted_state(state: JobState, cancelled: bool) -> tuple[str, str] | None:
    """What the job itself noted at its end, where Slurm has forgotten it; None where it was to come back."""
    end = state.starts[-1].get("end", {}) if state.starts else {}
    if end.get("verdict") in ("done", "failed"):
        return VERDICTS[end["verdict"]], f"exit code {end['code']}; the scheduler knows it no more"
    return ("CANCELLED", "the scheduler knows it no more") if cancelled else None


def _wait_ended(folder: Path) -> None:
    """Waits until Slurm has ended the processes too."""
    deadline = time.monotonic() + CANCEL_S
    while any(status.active for status in read_status(folder)):
        if time.monotonic() > deadline:
            raise LaunchError(f"jobs of {folder} are still ending after {CANCEL_S:g} s; look at `squeue`")
        time.sleep(0.5)
