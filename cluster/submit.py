"""The submitit adapter: jobs on Slurm, in the background of this machine, or in this terminal."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mcjepa.cluster.errors import LaunchError
from mcjepa.cluster.job import IN_TERMINAL, RECORD, SITE_RECORD, Job, Record, read_record, write_json, write_record
from mcjepa.cluster.script import NO_TIMEOUTS, python_words, slurm_parameters
from mcjepa.cluster.site import needed, wanted_gpus
from mcjepa.cluster.slurm import only_own_environment
from mcjepa.cluster.task import LocalSetting, LocalTask, RayTask, SlurmTask

MODULE = "-u -m submitit.core._submit"


def job_script(job: Job) -> str:
    """The very script that `submit` hands to sbatch; empty for another kind of site."""
    if job.site.kind != "slurm":
        return ""
    from submitit.slurm.slurm import _make_sbatch_string

    command = f"{python_words(job.site)} {MODULE} {shlex.quote(str(job.folder))}"
    parameters: dict[str, Any] = {**slurm_parameters(job, os.environ), "wckey": None}
    if len(job.elements) > 1:
        parameters["map_count"] = len(job.elements)
    text: str = _make_sbatch_string(command=command, folder=job.folder, **parameters)
    return text


def submit(job: Job) -> Record:
    """Submits a job, and writes its record before it can start.

    In a terminal (`debug`) it runs here and now; its exit code is in the record's last submission.

    Raises:
        LaunchError: there is no Slurm here, or it does not take the job.
    """
    before = read_record(job.folder) if (job.folder / RECORD).is_file() else None
    record = Record(job.stage, job.name, job.comment, job.need.nodes, list(job.elements), [])
    if before:  # what follows it stays known where it is not taken
        record.jobs, record.followers = before.jobs, before.followers
    site = job.folder / SITE_RECORD
    site_before = json.loads(site.read_text(encoding="utf-8")) if before and site.is_file() else None
    write_json(site, dataclasses.asdict(job.site))
    write_record(job.folder, record)
    submission: dict[str, Any] = {"kind": job.site.kind, "submitted": time.time(), "after": str(job.after or "")}
    try:
        started = _submit_slurm(job) if job.site.kind == "slurm" else _submit_here(job)
    except LaunchError:
        if before and before.jobs and site_before:  # it is still what was submitted last, which `resume` repeats
            write_record(job.folder, before)
            write_json(site, site_before)
        raise
    record.jobs.append({**submission, **started})
    write_record(job.folder, record)
    return record


def _submit_slurm(job: Job) -> dict[str, Any]:
    import submitit

    if not shutil.which("sbatch") or not shutil.which("srun"):
        raise LaunchError(
            "no sbatch and srun on the PATH, expected a machine that submits to Slurm; log in to one, or look at the "
            "script with --dry-run, or choose --site local"
        )
    executor = submitit.AutoExecutor(
        job.folder, cluster="slurm", slurm_max_num_timeout=NO_TIMEOUTS, slurm_python=python_words(job.site)
    )
    parameters = slurm_parameters(job, os.environ) | {"wckey": None}
    executor._executor.update_parameters(**parameters)
    tasks = [_slurm_task(job, number) for number in range(len(job.elements))]
    try:
        with only_own_environment():
            if len(tasks) == 1:
                return {"ids": [executor.submit(tasks[0]).job_id]}
            with executor.batch():
                jobs = [executor.submit(task) for task in tasks]
        return {"ids": [job.job_id for job in jobs]}
    except submitit.core.utils.FailedJobError as error:
        raise LaunchError(
            f"sbatch refused the job ({' '.join(str(error).split())}); expected it to take the options above; correct "
            "the site file (--dry-run prints the script)"
        ) from error


def _slurm_task(job: Job, number: int) -> SlurmTask:
    element, site = job.elements[number], job.site
    if job.on_ray:
        return RayTask(job.stage, element, job.folder, site.save_s, site.ray, site.interface, site.scratch)
    return SlurmTask(job.stage, element, job.folder, site.save_s, site.interface, site.scratch)


def _submit_here(job: Job) -> dict[str, Any]:
    site, debug = job.site, job.site.kind == "debug"
    if job.need.nodes > 1:
        raise LaunchError(
            f"{job.need.nodes} nodes asked of a {site.kind} site, which has one; leave --nodes out or name a slurm site"
        )
    ranks = needed(site, "train").tasks_per_node
    setting = LocalSetting(site.save_s, ranks, site.restarts.without_progress, debug, job.after, site.scratch)
    gpus = wanted_gpus(job.stage, job.need)
    elements = [dataclasses.replace(e, environment={**e.environment, **gpus}) for e in job.elements]
    tasks = [LocalTask(job.stage, element, job.folder, setting) for element in elements]
    if debug:
        codes = [task() for task in tasks]
        return {"ids": [IN_TERMINAL] * len(tasks), "code": next((code for code in codes if code), 0)}
    import submitit

    executor = submitit.AutoExecutor(job.folder, cluster="local")
    executor._executor.update_parameters(
        timeout_min=job.need.time_min, tasks_per_node=1, signal_delay_s=site.grace_s, stderr_to_stdout=True
    )
    with _output_in(job.folder / "controller.out"):
        return {"ids": [str(executor.submit(task).job_id) for task in tasks]}


@contextlib.contextmanager
def _output_in(path: Path) -> Iterator[None]:
    """Processes started inside write to a file: else they would hold our terminal or pipe open as long as they run."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(number) for number in range(3)]
    with path.open("ab") as output, open(os.devnull, "rb") as nothing:
        try:
            for number, file in enumerate((nothing, output, output)):
                os.dup2(file.fileno(), number)
            yield
        finally:
            for number, before in enumerate(saved):
                os.dup2(before, number)
                os.close(before)
