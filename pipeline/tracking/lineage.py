"""What a run was made of and runs in: the state of its code, its datasets, its job, as plain data for its records."""

from __future__ import annotations

import getpass
import hashlib
import os
import re
import socket
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

GIT_TIMEOUT_S = 20.0


def git_state(folder: Path | None = None) -> dict[str, str]:
    """Tags of the code's state: commit, and a digest of what differs from it in tracked files.

    Args:
        folder: a folder of the code; None for that of this package.

    Returns:
        `mcjepa.git_sha` and `mcjepa.git_diff` (empty where nothing differs), or `unknown` for an installed package or
        where git is absent. An environment inside somebody's repository is none of its commits.
    """
    place = folder or Path(__file__).resolve().parent
    tracked = _git(place, "ls-files", "--error-unmatch", ".") is not None
    sha = _git(place, "rev-parse", "HEAD") if tracked else None
    if sha is None:
        return {"mcjepa.git_sha": "unknown", "mcjepa.git_diff": "unknown"}
    diff = _git(place, "diff", "HEAD") or b""
    digest = hashlib.sha256(diff).hexdigest() if diff else ""
    return {"mcjepa.git_sha": sha.decode().strip(), "mcjepa.git_diff": digest}


def made_by() -> dict[str, str]:
    """Who writes a record, where and when: user, host and time (UTC), for run.json and scores.json."""
    written = datetime.now(UTC).isoformat(timespec="seconds")
    return {"mcjepa.user": _user(), "mcjepa.host": socket.gethostname(), "mcjepa.written": written}


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


def run_label(recipe: Mapping[str, Any], run: str = "") -> str:
    """What a run is called: its recipe, and the folder of its results or of itself where that says more.

    >>> run_label({"name": "quickstart", "out": "/r/outputs/quickstart"}, "/r/outputs/quickstart/run")
    'quickstart'
    >>> run_label({"name": "quickstart", "out": "/r/outputs/quickstart"}, "/r/outputs/second")
    'quickstart second'
    >>> run_label({"name": "main", "out": "/r/outputs/study"}, "s3://b/study/runs/no-vc/seed-1")
    'main study no-vc/seed-1'

    Args:
        recipe: resolved, as plain data.
        run: the location of a training run; empty for other stages.
    """
    name = str(recipe.get("name", ""))
    words = [name]
    place = PurePosixPath(str(recipe.get("out", "")))
    below = run.rstrip("/").removesuffix("/run").removeprefix(f"{place}/") if run else ""
    below = below if below != str(place) else ""
    if place.name not in ("", name) and not below.startswith("/"):
        words.append(place.name)
    if below:
        _, found, arm = f"/{below}".rpartition("/runs/")
        words.append(arm if found else below.rsplit("/", 1)[-1])
    return " ".join(dict.fromkeys(filter(None, words)))


def origin_tags(stage: str, recipe: Mapping[str, Any]) -> dict[str, str]:
    """Tags of any run of a recipe: its stage and name, and user, source and commit as MLflow's interface shows them."""
    name, state = str(recipe.get("name", "")), git_state()
    sha = state["mcjepa.git_sha"]
    tags = {
        "mcjepa.stage": stage,
        "mcjepa.recipe": name,
        "mlflow.source.name": f"mcjepa {stage} {name}".strip(),
        "mlflow.source.type": "JOB" if os.environ.get("MCJEPA_JOB") else "LOCAL",
        "mlflow.user": _user(),
    }
    return tags | ({"mlflow.source.git.commit": sha} if sha != "unknown" else {})


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())


GROUPS = (
    ("loss", r"loss|regression|reconstruction|smoothness|cycle|vc|self_supervision|content|(in|co)?variance"),
    ("features", r"vc_\w+|embedding_\w+|stride\d+_\w+|visible_share|flow_px|\w+_rank(_share)?"),
    ("gradient", r"(\w+_)?gradient_\w+"),
    ("weight", r"weight_\w+"),
    ("rate", r"lr_\w+"),
    ("speed", r"seconds_\w+|\w+_per_s|data_wait_share|mfu"),
    ("health", r"bad_steps|spikes|alerts|corrupt_samples|scale_skips"),
    ("memory", r"\w+_gib"),
)
"""Folders of MLflow's charts, and the meters in each by their names; the first that fits holds."""


def grouped(values: Mapping[str, float]) -> dict[str, float]:
    """Meters of a training under names that MLflow folds: `GROUP/NAME`.

    >>> grouped({"loss": 1.0, "lr_encoder": 0.1, "system/h/disk_usage_percentage": 3.0})
    {'loss/loss': 1.0, 'rate/lr_encoder': 0.1, 'system/h/disk_usage_percentage': 3.0}
    """
    return {group_of(name): value for name, value in values.items()}


def group_of(name: str) -> str:
    """The name of a meter in MLflow; a name with a slash has its group already."""
    if "/" in name:
        return name
    plain = name.removesuffix("_worst_rank")
    return f"{next((group for group, names in GROUPS if re.fullmatch(names, plain)), 'other')}/{name}"
