"""What a job runs: callables that submitit pickles, each of which runs a command line and watches over it.

submitit 1.5.4 handles the scheduler's signals itself: it calls a method `checkpoint` on rank 0 and queues the job
again at once, which kills the other ranks while they save, and it takes every signal of a short job for a time-out.
So a task puts its own handlers in place of submitit's: every rank passes the signal on to its command, all save
together and end, and the job's script decides what follows (`cluster.batch`). `checkpoint` is there for the moment
before that.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from mcjepa.cluster.batch import KEEP_S, job_id, keep_logs, progress_of
from mcjepa.cluster.errors import LaunchError
from mcjepa.cluster.job import IN_TERMINAL, After, Element
from mcjepa.cluster.local import INTERRUPTED, STOPS, Interrupted, run_ranks, run_together, set_death_signal
from mcjepa.cluster.ray_cluster import POLL_S, RayMember, RayNode
from mcjepa.cluster.rendezvous import own_address, torch_variables
from mcjepa.cluster.restarts import PARTIAL, USAGE, JobState, Outcome, judge
from mcjepa.cluster.site import RayConfig, Stage


class SlurmTask:
    """One command line, as a rank of a world or alone.

    Args:
        stage: what it is.
        element: the command line.
        folder: of the job.
        save_s: seconds that the command has to save after a stop signal.
        interface: network interfaces that this node must have, separated by commas; empty: any.
        scratch: folder for temporary files that the site names; empty: none.
    """

    def __init__(
        self, stage: Stage, element: Element, folder: Path, save_s: float, interface: str = "", scratch: str = ""
    ) -> None:
        self.stage, self.element, self.folder, self.save_s = stage, element, folder, save_s
        self.interface, self.scratch = interface, scratch

    def checkpoint(self) -> Any:
        """Called by submitit for a signal that comes before our own handlers are in place: nothing is to be saved."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def __call__(self) -> int:
        """Runs the command; returns 0, or ends the process with its exit code."""
        self.received: list[int] = []
        for number in STOPS:
            signal.signal(number, self._note)
        state = JobState(self.folder, job_id(os.environ))
        rank = int(os.environ.get("SLURM_PROCID", "0"))
        reason = self._missing_interface() or missing_scratch(self.scratch)
        try:
            code = USAGE if reason else self.run(os.environ)
        except Interrupted:
            code = INTERRUPTED
        stopped = code == INTERRUPTED  # also where the signal came to the command alone: its ranks stop together
        if code and (rank == 0 or not stopped):
            state.tell(Outcome(rank, code, stopped, reason))
        if code == 0 or stopped or (self.stage != "train" and code == PARTIAL):
            return 0  # else srun would end the tasks that are still saving
        sys.exit(code if code > 0 else 128 - code)

    def run(self, environment: Mapping[str, str]) -> int:
        """Runs it to its end; raises Interrupted where it was stopped."""
        world = torch_variables(environment) if self.stage == "train" else {}
        argv = [sys.executable, *self.element.argv]
        return run_together([(argv, {**self.element.environment, **world})], grace_s=self.save_s)

    def _missing_interface(self) -> str:
        """What is wrong where this node lacks an interface of the site; empty where it has all."""
        try:
            for interface in filter(None, self.interface.split(",")):
                own_address(interface)
        except LaunchError as error:
            return str(error)
        return ""

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received.append(number)


class RayTask(SlurmTask):
    """One node of a Ray cluster; that of rank 0 runs the command line on it."""

    def __init__(
        self,
        stage: Stage,
        element: Element,
        folder: Path,
        save_s: float,
        ray: RayConfig,
        interface: str,
        scratch: str = "",
    ) -> None:
        super().__init__(stage, element, folder, save_s, interface, scratch)
        self.ray = ray

    def run(self, environment: Mapping[str, str]) -> int:
        """Rank 0 runs the command; the others serve until it says that it is done."""
        job = job_id(environment)
        place = RayMember(
            rank=int(environment["SLURM_PROCID"]),
            nodes=int(environment["SLURM_NNODES"]),
            head=environment["MASTER_ADDR"],
            port=int(environment["MASTER_PORT"]),
            job=job,
            seed=int(environment["SLURM_JOB_ID"]),
            interface=self.interface,
        )
        cpus = int(environment.get("SLURM_CPUS_PER_TASK") or environment.get("SLURM_CPUS_ON_NODE") or 1)
        done = self.folder / "states" / f"{job}.ray-done"
        if place.rank == 0:
            done.unlink(missing_ok=True)
        with RayNode(place, self.ray, cpus, self.folder / "states") as node:
            node.wait_joined(lambda: bool(self.received))
            if place.rank:
                self._serve(node, done)
                return 0
            self._raise_if_stopped()
            variables = {**self.element.environment, "RAY_ADDRESS": node.address}
            try:
                return run_together([([sys.executable, *self.element.argv], variables)], grace_s=self.save_s)
            finally:
                done.touch()

    def _serve(self, node: RayNode, done: Path) -> None:
        while node.alive() and not done.exists():
            self._raise_if_stopped()
            time.sleep(POLL_S)

    def _raise_if_stopped(self) -> None:
        if self.received:
            raise Interrupted(f"stopped by {signal.Signals(self.received[0]).name}")


@dataclass(frozen=True)
class LocalSetting:
    """How a stage runs on this machine."""

    save_s: float
    """Seconds that its ranks have to save after a stop signal."""
    ranks: int
    """Processes of a training."""
    most_idle: int
    """Starts in a row that may bring no progress."""
    in_terminal: bool
    """Whether output stays in the terminal and nothing is started again; else each rank has a file."""
    after: After | None = None
    """A job in the background of this machine that must have ended before."""
    scratch: str = ""
    """Folder for temporary files that the site names; empty: none."""


class LocalTask:
    """A stage on this machine: its ranks side by side, started again as often as the site allows.

    Args:
        stage: what it is.
        element: the command line.
        folder: of the job.
        setting: how it runs.
    """

    def __init__(self, stage: Stage, element: Element, folder: Path, setting: LocalSetting) -> None:
        self.stage, self.element, self.folder, self.setting = stage, element, folder, setting

    def __call__(self) -> int:
        """Runs it to its end; returns the exit code, or ends the process with it where it has one of its own."""
        job = IN_TERMINAL
        if not self.setting.in_terminal:
            job = os.environ["SUBMITIT_LOCAL_JOB_ID"]
            set_death_signal(signal.SIGTERM, os.getppid())  # what controls it may be killed
        code = self._run(job)
        if code and not self.setting.in_terminal:
            sys.exit(code if code > 0 else 128 - code)
        return code

    def _run(self, job: str) -> int:
        state, setting = JobState(self.folder, job), self.setting
        if setting.in_terminal:
            state.forget()
        if setting.after and not _wait_for(setting.after):
            print(f"mcjepa: not started: job {setting.after.job} did not succeed", file=sys.stderr)
            return 1
        code = 1
        while state.begin(progress_of(self.element), os.uname().nodename, time.time(), setting.most_idle):
            code, outcomes = self._start(job)
            verdict = judge(self.stage, code, outcomes)
            if verdict == "requeue" and (setting.in_terminal or (outcomes and outcomes[0].stopped)):
                verdict = "failed"  # stopped by a person or the time limit: nobody here would queue it again
            state.end(code, verdict, time.time())
            keep_logs(self.element, job, KEEP_S)
            if verdict != "requeue":
                break
        return code

    def _start(self, job: str) -> tuple[int, list[Outcome]]:
        argv, variables, save_s = [sys.executable, *self.element.argv], self.element.environment, self.setting.save_s
        logs = None if self.setting.in_terminal else lambda rank: self.folder / f"{job}_{rank}_log.out"
        if reason := missing_scratch(self.setting.scratch):
            print(f"mcjepa: {reason}", file=sys.stderr)
            return USAGE, [Outcome(0, USAGE, reason=reason)]
        try:
            if self.stage == "train":
                code = run_ranks(argv, self.setting.ranks, environment=variables, grace_s=save_s, logs=logs)
            else:
                code = run_together([(argv, variables)], grace_s=save_s, logs=logs)
        except Interrupted:
            return INTERRUPTED, [Outcome(0, INTERRUPTED, stopped=True)]
        return code, [Outcome(0, code)] if code else []


def missing_scratch(folder: str) -> str:
    """Makes the site's folder for temporary files; what is wrong where this node cannot write to it, else empty.

    Python would take /tmp in its place without a word.
    """
    if not folder:
        return ""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return (
            f"{folder} cannot be written on {os.uname().nodename} ({error.strerror}), expected a folder for temporary "
            "files; have it made there, or correct `scratch` in the site file"
        )
    return ""


def _wait_for(after: After) -> bool:
    """Waits for another job of this machine; whether it ended as it had to."""
    from mcjepa.cluster.local_jobs import controller

    while controller(after.job, after.folder):
        time.sleep(POLL_S)
    starts = JobState(after.folder, after.job).starts
    return after.condition == "any" or (bool(starts) and starts[-1].get("end", {}).get("verdict") == "done")
