"""Turns a recipe and a site into jobs, submits them, and submits them again."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from mcjepa.cluster.errors import LaunchError
from mcjepa.cluster.job import RECORD, SITE_RECORD, After, Element, Job, Record, read_record, write_record
from mcjepa.cluster.site import STAGES, Site, Stage, needed, variables
from mcjepa.cluster.status import cancel, read_status
from mcjepa.cluster.submit import submit
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import absolute_location, atomic_write
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.exits import OK, PARTIAL
from mcjepa.pipeline.launch.preflight import launch_findings
from mcjepa.pipeline.launch.ranks import MODULE
from mcjepa.pipeline.launch.sites import jobs_folder
from mcjepa.pipeline.launch.sweeps import check_sweep_folders
from mcjepa.pipeline.recipe.files import override
from mcjepa.pipeline.recipe.recipe import Recipe, required
from mcjepa.pipeline.recipe.sweep import sweep_runs
from mcjepa.pipeline.recipe.validation import validate
from mcjepa.pipeline.run.folder import RECIPE
from mcjepa.pipeline.stream.order import check_world_size
from mcjepa.pipeline.tracking import Tracker
from mcjepa.pipeline.tracking.lineage import PARENT_VARIABLE

FOLLOW = ("--follow", "--patience-s", "86400")
"""An evaluation beside the training gives up after a day without new weights."""
SHOWN_TOPICS = ("memory", "cache", "epoch", "shards", "loading", "interruption", "checkpoint", "password")
SHOWN = {("warning", topic) for topic in SHOWN_TOPICS}
"""Findings that a launch repeats; the others are for who plans."""
WithEval = Literal["", "ok", "any", "follow"]
"""Whether an evaluation follows a training: never, where it succeeded, however it ended, or beside it."""


@dataclass(frozen=True)
class Launch:
    """Stages that are ready to be submitted, each of which waits for the one before."""

    recipe: Recipe
    plain: Mapping[str, Any]
    """The recipe as plain data."""
    jobs: tuple[tuple[Job, WithEval], ...]
    """Each job with the condition on which it follows the one before; empty for the first."""


def prepare(
    stage: Stage | Literal["all"],
    recipe: Recipe,
    plain: Mapping[str, Any],
    site: Site,
    nodes: int = 0,
    with_eval: WithEval = "",
) -> Launch:
    """The job of a stage and, behind or beside it, that of an evaluation; of `all`, those of the recipe's stages.

    Raises:
        UsageError: as `build_job`; or an evaluation is to follow several runs, or jobs of another kind of site.
    """
    stages: list[tuple[Stage, WithEval]]
    if stage == "all":
        named = [each for each in STAGES if getattr(recipe, each) is not None]
        stages = [(each, "ok" if number else "") for number, each in enumerate(named)]
    else:
        stages = [(stage, "")]
    if with_eval:
        stages.append(("eval", with_eval))
    if with_eval and recipe.sweep:
        number = len(sweep_runs(recipe.sweep, required(recipe.train, "train", recipe).run))
        raise UsageError(f"--with-eval with a sweep of {number} runs, expected one; leave one of them out")
    jobs = [build_job(each, recipe, site, nodes, follow=how == "follow") for each, how in stages]
    if len({job.site.kind for job in jobs}) > 1:
        raise UsageError(
            f"launch {stage} with ray.jobs_url on a {site.kind} site, expected stages that can wait for one another; "
            "launch prep by itself, and the others when it has ended"
        )
    return Launch(recipe, plain, tuple((job, how) for job, (_, how) in zip(jobs, stages, strict=True)))


def launch_warnings(launch: Launch, *, refuse: bool) -> list[str]:
    """What is wrong with the jobs, one line each; of datasets that a job before makes, nothing can be said.

    Raises:
        UsageError: one is launched already, or a folder of a sweep holds a run of other values.
        DataError: a preflight has errors, and `refuse` is set.
    """
    if launch.recipe.sweep and launch.recipe.train:
        check_sweep_folders(launch.recipe, launch.plain)
    found, stages = [], {job.stage for job, _ in launch.jobs}
    for job, _ in launch.jobs:
        without = {"dataset"} if "prep" in stages else set()
        found += job_warnings(job) + _preflight(job, launch.recipe, refuse=refuse, without=without)
    return found


def submit_launch(launch: Launch) -> tuple[list[tuple[Job, Record]], int]:
    """Submits the jobs, the first one first; jobs and records and, where they ran in this terminal, the exit code.

    Raises:
        LaunchError: one is not taken; those before it are cancelled.
    """
    submitted: list[tuple[Job, Record]] = []
    code = OK
    for job, how in launch.jobs:
        if submitted:
            if code not in (OK, PARTIAL) and how != "any":
                break
            job = dataclasses.replace(job, after=_after(job.site, how, submitted[-1]))
        try:
            record = _submit(job, launch.recipe, launch.plain)
        except LaunchError:
            if submitted:
                cancel(submitted[0][0].folder)
            raise
        if submitted:
            _link(submitted[-1], [str(job.folder)])
        submitted.append((job, record))
        _link(submitted[-1], [])  # not those of an earlier launch
        code = int(record.last.get("code", 0)) or code
    return submitted, code


def _after(site: Site, how: WithEval, before: tuple[Job, Record]) -> After | None:
    """What a job waits for; in a terminal, jobs run one after the other anyway."""
    if how not in ("ok", "any") or site.kind == "debug":
        return None
    return After(how, before[0].folder, before[1].ids[0])


def _link(submitted: tuple[Job, Record], followers: list[str]) -> None:
    """Notes which folders of jobs depend on a job; they are cancelled with it and submitted again with it."""
    job, record = submitted
    record.followers = followers
    write_record(job.folder, record)


def resubmit(folder: Path, before: tuple[Job, Record] | None = None) -> tuple[list[tuple[Job, Record]], int]:
    """Submits the command lines of an earlier launch again on the same site, and those of the jobs that follow it.

    Args:
        folder: of the job.
        before: the job that it is to wait for, as it was submitted again.

    Returns:
        Jobs and records, and the exit code where they ran in this terminal.

    Raises:
        UsageError: it is still active.
    """
    record = read_record(folder)
    site = validate(Site, json.loads((folder / SITE_RECORD).read_text(encoding="utf-8")), f"site of {folder}")
    need = needed(site, record.stage, record.nodes)
    job = Job(record.stage, record.name, record.comment, folder, tuple(record.elements), site, need)
    if before:
        if any(status.active for status in read_status(folder)):
            if _is_beside(record):
                return [], OK  # it goes on scoring what the run writes
            cancel(folder)
        how: WithEval = "any" if str(record.last["after"]).startswith("afterany") else "ok"
        job = dataclasses.replace(job, after=None if _is_beside(record) else _after(site, how, before))
    else:
        job_warnings(job)
    again = submit(job)
    submitted, code = [(job, again)], int(again.last.get("code", 0))
    _link(submitted[0], record.followers)
    if code in (OK, PARTIAL):
        for follower in record.followers:
            more, then = resubmit(Path(follower), submitted[0])
            submitted, code = [*submitted, *more], then or code
    return submitted, code


def _is_beside(record: Record) -> bool:
    """Whether a job runs beside another one and not behind it."""
    return FOLLOW[0] in record.elements[0].argv


def build_job(
    stage: Stage, recipe: Recipe, site: Site, nodes: int = 0, after: After | None = None, follow: bool = False
) -> Job:
    """The job of a stage: its command lines read the recipe that is written beside them.

    Args:
        stage: which.
        recipe: all stages' settings.
        site: where it runs.
        nodes: of the job; 0: the site's.
        after: a job that it waits for.
        follow: an evaluation of all weights as the training writes them, beside it.

    Raises:
        UsageError: the recipe has no such part, or the number of ranks does not fit it.
    """
    if nodes < 0:
        raise UsageError(f"--nodes {nodes}, expected 1 or more")
    if recipe.sweep and stage != "train":
        raise UsageError(
            f"launch {stage} of a recipe with a sweep, expected one run; name it with sweep=null train.run=RUN"
        )
    need, folder = needed(site, stage, nodes), jobs_folder(recipe, stage, site)
    part = required(getattr(recipe, stage), stage, recipe)
    where = {"prep": lambda: part.root, "train": lambda: part.run, "eval": lambda: recipe.out}[stage]()
    if stage == "train":
        elements = _train_elements(recipe, site, folder, need.tasks)
    else:
        words = {"prep": ("prep", "run"), "eval": ("eval", "all")}[stage]
        send = ("--submit", site.ray.jobs_url) if stage == "prep" and site.ray.jobs_url else ()
        argv = (*MODULE, *words, str(folder / RECIPE), *send, *(FOLLOW if follow else ()))
        progress = (
            (*MODULE, "launch", "progress", absolute_location(recipe.train.run)) if follow and recipe.train else ()
        )
        elements = (Element(stage, argv, progress, _variables(site)),)
    if stage == "prep" and site.ray.jobs_url:
        site = dataclasses.replace(site, kind="debug" if site.kind == "debug" else "local")
        need = dataclasses.replace(need, nodes=1)
    name = re.sub(r"[^\w.-]", "-", f"mcjepa-{stage}-{recipe.name}")
    return Job(stage, name, f"mcjepa {stage} {where}", folder, elements, site, need, after)


def _train_elements(recipe: Recipe, site: Site, folder: Path, ranks: int) -> tuple[Element, ...]:
    config = required(recipe.train, "train", recipe)
    check_world_size(ranks, config.stream.batches, config.stream.order_version)
    common = [f"train.checkpoint.grace_s={site.save_s}"]
    if site.shard_cache:
        common.append(override("train.stream.store.cache_dir", site.shard_cache))
    location = absolute_location(config.run)
    runs: list[tuple[str, str, tuple[str, ...]]] = [(recipe.name, location, (override("train.run", location),))]
    if recipe.sweep:
        runs = [(run.name, run.run, run.overrides) for run in sweep_runs(recipe.sweep, location)]
    return tuple(
        Element(
            name,
            (*MODULE, "train", str(folder / RECIPE), *overrides, *common),
            (*MODULE, "launch", "progress", run),
            _variables(site),
            (*MODULE, "launch", "keep-logs", run, str(folder)) if run.startswith("s3://") else (),
        )
        for name, run, overrides in runs
    )


def _variables(site: Site) -> dict[str, str]:
    exported = {} if site.kind == "slurm" else variables(site)  # on Slurm the script exports them
    return {"MCJEPA_SITE": site.kind, **exported}


def job_warnings(job: Job) -> list[str]:
    """What can be seen to be wrong with a job before it is queued, one line each; called before every submission.

    Raises:
        UsageError: it has already been launched.
    """
    active = [s for s in read_status(job.folder) if s.active] if (job.folder / RECORD).is_file() else []
    if active:
        raise UsageError(
            f"{job.name} has already been launched: job {active[0].id} is {active[0].state} ({job.folder}), expected "
            f"none; `mcjepa launch cancel {shlex.quote(str(job.folder))}` ends it, or choose another folder "
            "(train.run=RUN, out=OUT)"
        )
    found = []
    if job.site.kind == "slurm" and str(job.folder).startswith("/tmp/") and job.need.nodes > 1:
        found.append(f"note: {job.folder} must be a folder that all {job.need.nodes} nodes share")
    return found


def _preflight(job: Job, recipe: Recipe, *, refuse: bool, without: Collection[str]) -> list[str]:
    """Warnings of a job's preflight, one line each, and its errors where they do not refuse the job.

    A job that is resumed was judged when it was launched.

    Raises:
        DataError: there are errors, and `refuse` is set.
    """
    findings = [finding for finding in launch_findings(recipe, job) if finding.topic not in without]
    errors = [str(finding) for finding in findings if finding.severity == "error"]
    if errors and refuse:
        raise DataError(f"{job.name} is not launched: {' | '.join(errors)} (`mcjepa plan` shows all findings)")
    return [f"{f.severity}: {f}" for f in findings if f.severity == "error" or (f.severity, f.topic) in SHOWN]


def _submit(job: Job, recipe: Recipe, plain: Mapping[str, Any]) -> Record:
    """Writes the recipe beside the job, makes a sweep's parent run, and submits."""
    path = job.folder / RECIPE
    before = path.read_bytes() if path.is_file() else None
    atomic_write(path, yaml.safe_dump(dict(plain), sort_keys=False).encode())
    if recipe.sweep:
        parent = _parent_run(recipe, plain)
        elements = tuple(
            dataclasses.replace(e, environment={**e.environment, PARENT_VARIABLE: parent}) for e in job.elements
        )
        job = dataclasses.replace(job, elements=elements)
    try:
        return submit(job)
    except LaunchError:
        if before:  # of the launch that was submitted last, which `resume` repeats
            atomic_write(path, before)
        raise


def _parent_run(recipe: Recipe, plain: Mapping[str, Any]) -> str:
    """The MLflow run that a sweep's runs are children of."""
    where = recipe.tracking
    tracker = Tracker(
        where.uri, where.experiment, where.artifacts,
        run_name=f"sweep {recipe.name}", run_id=None, tags={"mcjepa.stage": "sweep"},
    )  # fmt: skip
    tracker.params({"sweep": plain["sweep"]})
    tracker.end()
    return tracker.run_id
