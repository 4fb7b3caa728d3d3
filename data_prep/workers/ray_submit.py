"""Sends a preparation job to an existing Ray cluster through its job API and follows it."""

from __future__ import annotations

import contextlib
import shlex
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from mcjepa.data_prep.errors import DataError

POLL_S = 1.0
AGENT_S = 60.0
"""How long a cluster that has just started may have no agent for jobs yet."""
RECIPE_NAME = "recipe.yaml"


def submit_prep(address: str, recipe_yaml: str, on_log: Callable[[str], None]) -> bool:
    """Run `mcjepa prep run` with a recipe on a cluster; returns whether it succeeded.

    The recipe travels with the job. mcjepa must be installed on the cluster's nodes, and corpora and root must be
    locations that they reach. An interruption here stops the job there.

    Args:
        address: Of the cluster's dashboard, e.g. http://127.0.0.1:8265.
        recipe_yaml: The resolved recipe.
        on_log: Called with the job's output as it comes.

    Raises:
        DataError: nobody answers at the address.
    """
    from ray.job_submission import JobStatus, JobSubmissionClient

    command = shlex.join(["mcjepa", "prep", "run", RECIPE_NAME])
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, RECIPE_NAME).write_text(recipe_yaml)
        try:
            client = JobSubmissionClient(address)
            job = _submit(lambda: client.submit_job(entrypoint=command, runtime_env={"working_dir": folder}))
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise DataError(
                f"no Ray job server answers at {address} ({str(error).splitlines()[0]}); expected the address of a "
                "dashboard, e.g. http://127.0.0.1:8265; correct it, or set RAY_AUTH_MODE and RAY_AUTH_TOKEN"
            ) from error
    on_log(f"submitted {job} to {address}")
    shown = 0
    try:
        while True:
            status = client.get_job_status(job)
            text = client.get_job_logs(job)
            if text[shown:].strip():
                on_log(text[shown:].rstrip())
            shown = len(text)
            if status.is_terminal():
                return bool(status == JobStatus.SUCCEEDED)
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        with contextlib.suppress(RuntimeError):
            client.stop_job(job)
        raise


def _submit(submit: Callable[[], str]) -> str:
    """The job's id; tried again while the cluster says that it is still starting."""
    deadline = time.monotonic() + AGENT_S
    while True:
        try:
            return submit()
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)
