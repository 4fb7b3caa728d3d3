"""What a job's script asks before its tasks start and after they have ended; runs on the job's first node.

    settings="$(python -m mcjepa.cluster.batch begin FOLDER)" || exit 1; eval "$settings"
    verdict="$(python -m mcjepa.cluster.batch end FOLDER $?)"          done | requeue | failed

Queueing again is left to the script: a container has no `scontrol`.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from mcjepa.cluster.job import Element, read_record
from mcjepa.cluster.rendezvous import free_port
from mcjepa.cluster.restarts import JobState, Outcome, judge

KEEP_S, HURRY_S = 120.0, 6.0
"""For copying logs; less where the scheduler may be about to end the job, which must be queued again before."""


def job_id(environment: Mapping[str, str]) -> str:
    """Id of the Slurm job that we are in; of an array, with the number of the task."""
    array = environment.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{environment['SLURM_ARRAY_TASK_ID']}" if array else environment["SLURM_JOB_ID"]


def element_number(environment: Mapping[str, str]) -> int:
    """Which of the record's command lines this job runs."""
    return int(environment.get("SLURM_ARRAY_TASK_ID", "0"))


def begin(folder: Path, environment: Mapping[str, str], most_idle: int) -> dict[str, str] | None:
    """Notes the start and chooses what all tasks must agree on.

    Returns:
        Variables for all tasks; None where too many starts have brought nothing.
    """
    record = read_record(folder)
    state = JobState(folder, job_id(environment))
    progress = progress_of(record.elements[element_number(environment)])
    if not state.begin(progress, environment.get("SLURM_JOB_NODELIST", ""), time.time(), most_idle):
        return None
    seed = int(environment["SLURM_JOB_ID"])
    found = {"MASTER_PORT": str(free_port(seed)), "MCJEPA_JOB": job_id(environment)}
    if record.stage == "prep" and record.nodes > 1:
        found |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    return found


def progress_of(element: Element) -> int | None:
    """Asks the element's progress command; None where there is none or it fails."""
    if not element.progress:
        return None
    answer = subprocess.run([sys.executable, *element.progress], capture_output=True, text=True)
    try:
        return int(answer.stdout)
    except ValueError:
        print(f"mcjepa.cluster.batch: no progress known: {answer.stderr.strip()[-500:]}", file=sys.stderr)
        return None


def end(folder: Path, environment: Mapping[str, str], code: int) -> str:
    """Notes the end of the tasks, and says why where one of them told; returns the verdict."""
    record = read_record(folder)
    state = JobState(folder, job_id(environment))
    outcomes = state.outcomes()
    verdict = judge(record.stage, code, outcomes)
    if verdict != "done":
        _say_why(folder, state.job, outcomes)
    state.end(code, verdict, time.time())
    keep_logs(record.elements[element_number(environment)], state.job, HURRY_S if verdict == "requeue" else KEEP_S)
    return verdict


def _say_why(folder: Path, job: str, outcomes: Sequence[Outcome]) -> None:
    """Names the first task that failed: srun kills the others as soon as one has, so rank 0 may have said nothing."""
    for outcome in [each for each in outcomes if not each.stopped][:1]:
        log = folder / f"{job}_{outcome.rank}_log.out"
        what = outcome.reason or f"rank {outcome.rank} ended with exit code {outcome.code}, see {log}"
        print(f"mcjepa: {what}", file=sys.stderr)


def keep_logs(element: Element, job: str, within_s: float) -> None:
    """Runs the element's command for logs, where it has one; a job does not fail for it."""
    if not element.keep:
        return
    try:
        answer = subprocess.run(
            [sys.executable, *element.keep, job], capture_output=True, text=True, timeout=within_s, check=False
        )
        problem = answer.stderr.strip()[-500:] if answer.returncode else ""
    except subprocess.TimeoutExpired:
        problem = f"not done within {within_s:g} s"
    if problem:
        print(f"mcjepa.cluster.batch: the logs of job {job} were not copied: {problem}", file=sys.stderr)


def main() -> int:
    """The two commands."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("moment", choices=("begin", "end"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("number", type=int, help="begin: starts that may bring nothing; end: exit code of the tasks")
    arguments = parser.parse_args()
    if arguments.moment == "end":
        print(end(arguments.folder, os.environ, arguments.number))
        return 0
    found = begin(arguments.folder, os.environ, arguments.number)
    if found is None:
        print(
            f"mcjepa: {arguments.number + 1} starts in a row brought no newer checkpoint, expected at most "
            f"{arguments.number} (restarts.without_progress of the site); look at the logs in {arguments.folder}, "
            f"mend the cause, then `mcjepa launch resume {shlex.quote(str(arguments.folder))}`",
            file=sys.stderr,
        )
        return 1
    for name, value in found.items():
        print(f"export {name}={shlex.quote(value)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
