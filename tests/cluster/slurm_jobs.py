"""Small programs as jobs on a real Slurm."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from mcjepa.cluster.job import Element, Job, Record
from mcjepa.cluster.restarts import JobState
from mcjepa.cluster.site import Resources, RestartConfig, Site, needed
from mcjepa.cluster.status import read_status
from mcjepa.cluster.submit import submit
from tests.cluster.stage_program import PROGRESS, write_program
from tests.servers.slurm import SlurmCluster


def make_job(folder: Path, behaviour: str, **site: object) -> Job:
    """Two nodes, a rank each."""
    write_program(folder)
    settings: dict[str, object] = {"default": Resources(nodes=2, time_min=5), "grace_s": 25, **site}
    place = Site(kind="slurm", restarts=RestartConfig(without_progress=1), **settings)  # type: ignore[arg-type]
    element = Element(
        "one", (str(folder / "program.py"), str(folder), behaviour), progress=("-c", PROGRESS, str(folder))
    )
    return Job("train", "test", "a test", folder / "jobs", (element,), place, needed(place, "train"))


def wait_started(job: Job, start: int = 0) -> list[psutil.Process]:
    """The programs of both ranks, when they run for the n-th time."""
    folder = job.folder.parent
    places = [folder / f"started-{rank}-{start}" for rank in range(job.need.tasks)]
    deadline = time.monotonic() + 60
    while not all(place.exists() and place.read_text() for place in places):
        assert time.monotonic() < deadline, read_status(job.folder)
        time.sleep(0.05)
    return [psutil.Process(int(place.read_text().split()[0])) for place in places]


@dataclass(frozen=True)
class Submitted:
    """A job that was submitted."""

    job: Job
    record: Record

    @property
    def folder(self) -> Path:
        return self.job.folder.parent

    def state(self, slurm: SlurmCluster) -> str:
        """How it ended."""
        return slurm.wait_state(self.record.ids[0], "COMPLETED", "FAILED", "TIMEOUT", "PREEMPTED")

    def verdicts(self) -> list[str]:
        """That of every start."""
        starts = JobState(self.job.folder, self.record.ids[0]).starts
        return [start["end"]["verdict"] for start in starts if "end" in start]

    def output(self) -> str:
        """What its script and its first rank wrote."""
        return (self.job.folder / f"{self.record.ids[0]}_0_log.out").read_text()


def submitted(folder: Path, behaviour: str, **site: object) -> Submitted:
    job = make_job(folder, behaviour, **site)
    return Submitted(job, submit(job))
