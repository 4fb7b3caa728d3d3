"""Slurm's own commands as we use them: what they see of the environment, and what its words for states mean."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence

from mcjepa.cluster.errors import LaunchError

CALLERS = re.compile(r"(SLURM|SBATCH|SRUN|SALLOC|SCANCEL|SCONTROL|SQUEUE|SINFO|SACCT|SACCTMGR)_|NIL$")
"""Variables by which a shell changes what Slurm's commands do: those of an allocation that we are called from, and
defaults of a user. Before Slurm 23.02 `--export=NIL` would hand on a variable of that name."""
CONNECTION = frozenset({"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT"})
"""Which cluster is asked, and as whom."""
GONE = "GONE"
"""The scheduler knows the job no more, or the process has ended without a word."""
WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"})
"""The job is in the queue, for the first time or again; the held ones come back when they are released."""
RUNNING = frozenset(
    {"RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT"}
)
"""It has its nodes."""
ENDED = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
     "TIMEOUT", GONE}
)  # fmt: skip
"""It does not come back by itself. A job that was pre-empted and queued again is PENDING, not PREEMPTED."""
MOST_S = 60


def is_active(state: str) -> bool:
    """Whether a job in this state runs or will run; of a state that we do not know, it may.

    >>> is_active("SPECIAL_EXIT"), is_active("PREEMPTED"), is_active("CANCELLED")
    (True, False, False)
    """
    return state not in ENDED


def own_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of Slurm's commands: ours without what changes their behaviour.

    >>> own_environment({"SBATCH_EXPORT": "ALL", "SLURM_JOB_ID": "1", "SLURM_CONF": "/c", "HOME": "/h"})
    {'SLURM_CONF': '/c', 'HOME': '/h'}
    """
    return {n: value for n, value in environment.items() if n in CONNECTION or not CALLERS.match(n)}


@contextlib.contextmanager
def only_own_environment() -> Iterator[None]:
    """While it is held, processes that we start have that environment: submitit calls sbatch with ours."""
    before = dict(os.environ)
    for name in before.keys() - own_environment(before).keys():
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(before)


def run(*words: str, quiet: bool = False) -> str:
    """Output of one of Slurm's commands; what there is of it where it fails and `quiet` is set, or a job is not known.

    Raises:
        LaunchError: it cannot be run here, or fails.
    """
    try:
        answer = subprocess.run(
            words, capture_output=True, text=True, timeout=MOST_S, env=own_environment(os.environ), check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        if quiet:
            return ""
        raise LaunchError(f"{words[0]} cannot be run here ({error}); ask on a machine of the Slurm cluster") from error
    if answer.returncode and not quiet and "Invalid job id" not in answer.stderr:
        said = " ".join(answer.stderr.split())
        raise LaunchError(
            f"{' '.join(words[:3])} failed ({said}), expected Slurm to do it; mend that, or try again later"
        )
    return answer.stdout


def job_states(ids: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Slurm's state and detail of each job: of the queue, else of the accounting, else `GONE`.

    Raises:
        LaunchError: there is no Slurm here, or it does not answer.
    """
    bases = ",".join(sorted({job.split("_")[0] for job in ids}))
    found = _states(run("squeue", "-h", "-r", "--states=all", "-j", bases, "-o", "%i|%T|%R"))
    if any(job not in found for job in ids):
        accounted = run("sacct", "-n", "-X", "-P", "-j", bases, "-o", "JobID,State,NodeList", quiet=True)
        found = {**_states(accounted), **found}
    return {job: found.get(job, (GONE, "the scheduler knows it no more")) for job in ids}


def _states(table: str) -> dict[str, tuple[str, str]]:
    """Lines `job|state|detail`; sacct says who cancelled a job after the word."""
    rows = [line.split("|", 2) for line in table.splitlines() if line.count("|") >= 2]
    return {job: (state.split(" ")[0], detail) for jobs, state, detail in rows for job in expand_ids(jobs)}


def expand_ids(jobs: str) -> list[str]:
    """Ids of a line, which has several elements of an array where they all wait.

    >>> expand_ids("17_[0-2,5%4]"), expand_ids("17_3"), expand_ids("17")
    (['17_0', '17_1', '17_2', '17_5'], ['17_3'], ['17'])
    """
    match = re.fullmatch(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", jobs)
    if not match:
        return [jobs]
    ranges = [part.partition("-") for part in match.group(2).split(",")]
    numbers = [n for first, _, last in ranges for n in range(int(first), int(last or first) + 1)]
    return [f"{match.group(1)}_{number}" for number in numbers]
