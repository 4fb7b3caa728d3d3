"""What a run was made of and runs in: the state of its code, its datasets, its job, as plain data for its records."""

from __future__ import annotations

import getpass
import hashlib
import os
import socket
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

GIT_TIMEOUT_S = 20.0


def git_state(folder: Path | None = None) -> dict[str, str]:
    """Tags of the code's state: commit, and a digest of what differs from it in tracked files.

    Args:
        folder: a folder of the code; None for that of this package.

    Returns:
        `mcjepa.git_sha` and `mcjepa.git_diff` (empty where nothing differs), or `unknown` for an installed package or
        where git is absent.
    """
    place = folder or Path(__file__).resolve().parent
    sha = _git(place, "rev-parse", "HEAD")
    if sha is None:
        return {"mcjepa.git_sha": "unknown", "mcjepa.git_diff": "unknown"}
    diff = _git(place, "diff", "HEAD") or b""
    digest = hashlib.sha256(diff).hexdigest() if diff else ""
    return {"mcjepa.git_sha": sha.decode().strip(), "mcjepa.git_diff": digest}


def made_by() -> dict[str, str]:
    """Who writes a record, where and when: user, host and time (UTC), for run.json and scores.json."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container without this user
        user = f"uid {os.getuid()}"
    written = datetime.now(UTC).isoformat(timespec="seconds")
    return {"mcjepa.user": user, "mcjepa.host": socket.gethostname(), "mcjepa.written": written}


def _git(folder: Path, *words: str) -> bytes | None:
    try:
        answer = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, timeout=GIT_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout if answer.returncode == 0 else None


def dataset_records(
    locations: Mapping[str, Sequence[str]], dataset_ids: Mapping[str, Sequence[str]]
) -> list[dict[str, str]]:
    """One record a dataset of a stream: name, id, location, and the stream as its context.

    Args:
        locations: stream -> its datasets' locations.
        dataset_ids: stream -> their ids, in the same order.
    """
    return [
        {
            "name": location.rstrip("/").rsplit("/", 1)[-1],
            "dataset_id": dataset_id,
            "location": location,
            "context": f"train-{stream}",
        }
        for stream, ids in sorted(dataset_ids.items())
        for location, dataset_id in zip(locations.get(stream, ()), ids, strict=True)
    ]


PARENT_VARIABLE = "MCJEPA_PARENT_RUN"
"""Names the MLflow run that a new run is a child of."""
NAMES = {
    "MCJEPA_JOB": "mcjepa.slurm_job",
    "MCJEPA_SITE": "mcjepa.site",
    PARENT_VARIABLE: "mlflow.parentRunId",
}


def job_tags(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Tags of the job, none outside of one.

    >>> job_tags({"MCJEPA_JOB": "17", "HOME": "/root"})
    {'mcjepa.slurm_job': '17'}
    """
    found = os.environ if environment is None else environment
    return {tag: found[name] for name, tag in NAMES.items() if found.get(name)}
