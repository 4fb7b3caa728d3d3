"""Turns a recipe and a site into jobs, submits them, and submits them again."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from mcjepa.cluster.job import RECORD, After, Element, Job, Record, read_record, write_record
from mcjepa.cluster.site import Site, Stage, needed, variables
from mcjepa.cluster.status import read_status
from mcjepa.cluster.submit import submit
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import absolute_location, atomic_write
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.launch.preflight import launch_findings
from mcjepa.pipeline.launch.ranks import MODULE
from mcjepa.pipeline.launch.sites import SITE_RECORD, jobs_folder
from mcjepa.pipeline.recipe.files import validate
from mcjepa.pipeline.recipe.recipe import Recipe, required
from mcjepa.pipeline.recipe.sweep import sweep_runs
from mcjepa.pipeline.run.folder import RECIPE
from mcjepa.pipeline.stream.order import check_world_size
from mcjepa.pipeline.tracking import Tracker
from mcjepa.pipeline.tracking.lineage import PARENT_VARIABLE

FOLLOW = ("--follow", "--patience-s", "86400")
"""An evaluation beside the training gives up after a day without new weights."""
SHOWN = {("warning", topic) for topic in ("memory", "cache", "epoch", "shards", "interruption", "checkpoint")}
"""Findings that a launch repeats; the others are for who plans."""
WithEval = Literal["", "ok", "any", "follow"]
"""Whether an evaluation follows a training: never, where it succeeded, however it ended, or beside it."""


@dataclass(frozen=True)
class Launch:
    """A stage that is ready to be submitted."""

    recipe: Recipe
    plain: Mapping[str, Any]
    """The recipe as plain data."""
    site: Site
    job: Job
    with_eval: WithEval = ""


def prepare(
    stage: Stage, recipe: Recipe, plain: Mapping[str, Any], site: Site, nodes: int = 0, with_eval: WithEval = ""
) -> Launch:
    """The job of a stage and, behind or beside it, that of an evaluation.

    Raises:
        UsageError: as `build_job`; or an evaluation is to follow several runs.
    """
    job = build_job(stage, recipe, site, nodes)
    if with_eval and len(job.elements) > 1:
        raise UsageError(f"--with-eval with a sweep of {len(job.elements)} runs, expected one; leave one of them out")
    return Launch(recipe, plain, site, job, with_eval)


def launch_warnings(launch: Launch, *, refuse: bool) -> list[str]:
    """What is wrong with a job, one line each.

    Raises:
        UsageError: it is launched already.
        DataError: its preflight has errors, and `refuse` is set.
    """
    return job_warnings(launch.job) + _preflight(launch.job, launch.recipe, refuse=refuse)


def submit_launch(launch: Launch) -> tuple[Record, int]:
    """Submits the job and its evaluation; the job's record and, where they ran in this terminal, their exit code."""
    job, condition = launch.job, launch.with_eval
    record = _submit(job, launch.recipe, launch.plain)
    code = int(record.last.get("code", 0))
    if condition and (code == 0 or condition == "any"):
        code = _submit_eval(launch, condition) or code
    return record, code


def resubmit(folder: Path) -> tuple[Job, Record, int]:
    """Submits the command lines of an earlier launch again on the same site; job, record and exit code.

    Raises:
        UsageError: it is still active.
    """
    record = read_record(folder)
    site = validate(Site, json.loads((folder / SITE_RECORD).read_text(encoding="utf-8")), f"site of {folder}")
    need = needed(site, record.stage, record.nodes)
    job = Job(record.stage, record.name, record.comment, folder, tuple(record.elements), site, need)
    job_warnings(job)
    again = submit(job)
    return job, again, int(again.last.get("code", 0))


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
    check_world_size(ranks, [batch for batch in (config.stream.pair_batch, config.stream.view_batch) if batch])
    common = [f"train.checkpoint.grace_s={site.save_s}"]
    if site.shard_cache:
        common.append(f"train.stream.store.cache_dir={json.dumps(site.shard_cache)}")
    location = absolute_location(config.run)
    runs: list[tuple[str, str, tuple[str, ...]]] = [(recipe.name, location, (f"train.run={location}",))]
    if recipe.sweep:
        runs = [(run.name, run.run, run.overrides) for run in sweep_runs(recipe.sweep, location)]
    return tuple(
        Element(
            name,
            (*MODULE, "train", str(folder / RECIPE), *overrides, *common),
            (*MODULE, "launch", "progress", run),
            _variables(site),
        )
        for name, run, overrides in runs
    )


def _variables(site: Site) -> dict[str, str]:
    exported = {} if site.kind == "slurm" else variables(site)  # on Slurm the script exports them
    return {"MCJEPA_SITE": site.kind, **exported}


def job_warnings(job: Job) -> list[str]:
    """What can be seen to be wrong with a job before it is queued, one line each; called before every submission.

    Raises:
        UsageError: it is launched already.
    """
    active = [s for s in read_status(job.folder) if s.active] if (job.folder / RECORD).is_file() else []
    if active:
        raise UsageError(
            f"{job.name} is launched already: job {active[0].id} is {active[0].state} ({job.folder}), expected none; "
            "`mcjepa launch cancel` ends it, or choose another folder (train.run=RUN, out=OUT)"
        )
    found = []
    if job.site.kind == "slurm" and str(job.folder).startswith("/tmp/") and job.need.nodes > 1:
        found.append(f"note: {job.folder} must be a folder that all {job.need.nodes} nodes share")
    return found


def _preflight(job: Job, recipe: Recipe, *, refuse: bool) -> list[str]:
    """Warnings of a training job's preflight, one line each, and its errors where they do not refuse the job.

    A job that is resumed was judged when it was launched.

    Raises:
        DataError: there are errors, and `refuse` is set.
    """
    if job.stage != "train":
        return []
    findings = launch_findings(recipe, job.site, job.need)
    errors = [str(finding) for finding in findings if finding.severity == "error"]
    if errors and refuse:
        raise DataError(f"{job.name} is not launched: {' | '.join(errors)} (`mcjepa plan` shows all findings)")
    return [f"{f.severity}: {f}" for f in findings if f.severity == "error" or (f.severity, f.topic) in SHOWN]


def _submit(job: Job, recipe: Recipe, plain: Mapping[str, Any]) -> Record:
    """Writes the recipe beside the job, makes a sweep's parent run, and submits."""
    atomic_write(job.folder / RECIPE, yaml.safe_dump(dict(plain), sort_keys=False).encode())
    if recipe.sweep:
        parent = _parent_run(recipe, plain)
        elements = tuple(
            dataclasses.replace(e, environment={**e.environment, PARENT_VARIABLE: parent}) for e in job.elements
        )
        job = dataclasses.replace(job, elements=elements)
    return submit(job)


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


def _submit_eval(launch: Launch, condition: WithEval) -> int:
    """The evaluation behind a training or, with `follow`, beside it; it is cancelled with it."""
    site, train = launch.site, launch.job.folder
    record = read_record(train)
    after = None
    if condition in ("ok", "any") and site.kind != "debug":
        after = After(condition, train, record.ids[0])
    job = build_job("eval", launch.recipe, site, after=after, follow=condition == "follow")
    followed = _submit(job, launch.recipe, launch.plain)
    record.followers = [str(job.folder)]
    write_record(train, record)
    return int(followed.last.get("code", 0))
