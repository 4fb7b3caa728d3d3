"""`mcjepa launch prep|train|eval|resume`: turns a recipe and a site into a job."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mcjepa.cluster.job import After, Element, Job, Record, read_record, write_record
from mcjepa.cluster.site import Site, Stage, needed, variables
from mcjepa.cluster.status import read_status
from mcjepa.cluster.submit import job_script, submit
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import absolute_location, atomic_write
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.launch.sites import jobs_folder, launch_errors, launched_folders, load_site
from mcjepa.pipeline.recipe.files import validate
from mcjepa.pipeline.recipe.recipe import Recipe, load_recipe, required
from mcjepa.pipeline.recipe.sweep import sweep_runs

MODULE = ("-m", "mcjepa.pipeline.cli")
RECIPE_NAME = "recipe.yaml"
FOLLOW = ("--follow", "--patience-s", "86400")
"""An evaluation beside the training gives up after a day without new weights."""
SHOWN = {("warning", topic) for topic in ("memory", "cache", "epoch", "shards", "interruption", "checkpoint")}
"""Findings that a launch repeats; the others are for who plans."""


def launch_stage(arguments: argparse.Namespace) -> int:
    """`mcjepa launch prep|train|eval`."""
    with launch_errors():
        recipe, plain = load_recipe(arguments.recipe, arguments.overrides)
        site = load_site(arguments.site)
        job = build_job(arguments.verb, recipe, site, getattr(arguments, "nodes", 0))
        then = getattr(arguments, "with_eval", "")
        if then and len(job.elements) > 1:
            raise UsageError(
                f"--with-eval with a sweep of {len(job.elements)} runs, expected one; leave one of them out"
            )
        for finding in findings_before(job, recipe) + _preflight(job, recipe, refuse=not arguments.dry_run):
            print(f"mcjepa: {finding}", file=sys.stderr)
        if arguments.dry_run:
            _print_dry(job, arguments.json)
            return 0
        record = _submit(job, recipe, plain)
        code = int(record.last.get("code", 0))
        if then and (code == 0 or then == "any"):
            code = _submit_eval(recipe, plain, site, job, then) or code
        _print_submitted(job, record, arguments.json)
        return code


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
        argv = (*MODULE, *words, str(folder / RECIPE_NAME), *send, *(FOLLOW if follow else ()))
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
    from mcjepa.pipeline.stream.order import check_world_size

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
            (*MODULE, "train", str(folder / RECIPE_NAME), *overrides, *common),
            (*MODULE, "launch", "progress", run),
            _variables(site),
        )
        for name, run, overrides in runs
    )


def _variables(site: Site) -> dict[str, str]:
    exported = {} if site.kind == "slurm" else variables(site)  # on Slurm the script exports them
    return {"MCJEPA_SITE": site.kind, **exported}


def findings_before(job: Job, recipe: Recipe) -> list[str]:
    """What is wrong with a job that can be seen before it is queued, one line each; called before every submission.

    Raises:
        UsageError: it is launched already.
    """
    active = [s for s in read_status(job.folder) if s.active] if (job.folder / "launch.json").is_file() else []
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
    from mcjepa.pipeline.launch.preflight import launch_findings

    findings = launch_findings(recipe, job.site, job.need)
    errors = [str(finding) for finding in findings if finding.severity == "error"]
    if errors and refuse:
        raise DataError(f"{job.name} is not launched: {' | '.join(errors)} (`mcjepa plan` shows all findings)")
    return [f"{f.severity}: {f}" for f in findings if f.severity == "error" or (f.severity, f.topic) in SHOWN]


def _submit(job: Job, recipe: Recipe, plain: Mapping[str, Any]) -> Record:
    """Writes the recipe beside the job, makes a sweep's parent run, and submits."""
    atomic_write(job.folder / RECIPE_NAME, yaml.safe_dump(dict(plain), sort_keys=False).encode())
    if recipe.sweep:
        parent = _parent_run(recipe, plain)
        elements = tuple(
            dataclasses.replace(e, environment={**e.environment, "MCJEPA_PARENT_RUN": parent}) for e in job.elements
        )
        job = dataclasses.replace(job, elements=elements)
    return submit(job)


def _parent_run(recipe: Recipe, plain: Mapping[str, Any]) -> str:
    """The MLflow run that a sweep's runs are children of."""
    from mcjepa.pipeline.tracking import Tracker

    where = recipe.tracking
    tracker = Tracker(
        where.uri, where.experiment, where.artifacts,
        run_name=f"sweep {recipe.name}", run_id=None, tags={"mcjepa.stage": "sweep"},
    )  # fmt: skip
    tracker.params({"sweep": plain["sweep"]})
    tracker.end()
    return tracker.run_id


def _submit_eval(recipe: Recipe, plain: Mapping[str, Any], site: Site, train: Job, condition: Any) -> int:
    """The evaluation behind a training or, with `follow`, beside it; it is cancelled with it."""
    record = read_record(train.folder)
    follow = condition == "follow"
    after = None if follow or site.kind == "debug" else After(condition, train.folder, record.ids[0])
    job = build_job("eval", recipe, site, after=after, follow=follow)
    followed = _submit(job, recipe, plain)
    record.followers = [str(job.folder)]
    write_record(train.folder, record)
    return int(followed.last.get("code", 0))


def launch_resume(arguments: argparse.Namespace) -> int:
    """`mcjepa launch resume`: the same command lines on the same site, as new jobs."""
    with launch_errors():
        folders = launched_folders(arguments.run, arguments.overrides, arguments.stage, arguments.site)
        if len(folders) > 1:
            raise UsageError(f"{len(folders)} stages of {arguments.run} were launched; choose one with --stage")
        folder = folders[0]
        record = read_record(folder)
        site = validate(Site, json.loads((folder / "site.json").read_text(encoding="utf-8")), f"site of {folder}")
        need = needed(site, record.stage, record.nodes)
        job = Job(record.stage, record.name, record.comment, folder, tuple(record.elements), site, need)
        recipe, _ = load_recipe(str(folder / RECIPE_NAME), [])
        findings_before(job, recipe)
        again = submit(job)
        _print_submitted(job, again, arguments.json)
        return int(again.last.get("code", 0))


def _print_dry(job: Job, as_json: bool) -> None:
    commands = [["python", *e.argv] for e in job.elements]
    script = job_script(job)
    if as_json:
        print(json.dumps({"folder": str(job.folder), "commands": commands, "script": script}))
    elif script:
        print(script)
    else:
        print(f"# {job.need.tasks} process(es) on this machine ({job.site.kind}), files in {job.folder}")
        for words in commands:
            print(" ".join(words))


def _print_submitted(job: Job, record: Record, as_json: bool) -> None:
    ids = record.ids
    if as_json:
        print(json.dumps({"stage": job.stage, "ids": ids, "folder": str(job.folder), "site": job.site.kind}))
    elif job.site.kind != "debug":
        several = f"{ids[0]} and {len(ids) - 1} more" if len(ids) > 1 else ids[0]
        print(f"submitted {job.name}: job {several}, {job.need.nodes} node(s); `mcjepa launch status {job.folder}`")
