"""`mcjepa launch`: stages as jobs of a site, and what has become of them."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.exits import OK, PARTIAL
from mcjepa.pipeline.launch.sites import launch_errors, launched_folders, load_site
from mcjepa.pipeline.recipe.recipe import load_recipe

if TYPE_CHECKING:
    from mcjepa.cluster.job import Job, Record


def stage(arguments: argparse.Namespace) -> int:
    """`mcjepa launch prep|train|eval|all`."""
    from mcjepa.evals.report.chain import REPORT
    from mcjepa.pipeline.launch.jobs import launch_warnings, prepare, submit_launch

    with launch_errors():
        recipe, plain = load_recipe(arguments.recipe, arguments.overrides)
        nodes: int = getattr(arguments, "nodes", 0)
        with_eval: Any = getattr(arguments, "with_eval", "")
        launch = prepare(arguments.verb, recipe, plain, load_site(arguments.site), nodes, with_eval)
        for warning in launch_warnings(launch, refuse=not arguments.dry_run):
            print(f"mcjepa: {warning}", file=sys.stderr)
        if arguments.dry_run:
            _print_dry([job for job, _ in launch.jobs], arguments.json)
            return OK
        submitted, code = submit_launch(launch)
        _print_submitted(submitted, arguments.json)
        if submitted[-1][0].stage == "eval" and code in (OK, PARTIAL) and not arguments.json:
            ended = submitted[-1][0].site.kind == "debug"
            print(f"the report {'is' if ended else 'will be'} {recipe.out}/{REPORT}")
        return code


def resume(arguments: argparse.Namespace) -> int:
    """`mcjepa launch resume`: the same command lines on the same site, as new jobs."""
    from mcjepa.pipeline.launch.jobs import resubmit

    with launch_errors():
        (folder,) = _one_folder(arguments)
        submitted, code = resubmit(folder)
        _print_submitted(submitted, arguments.json)
        return code


def status(arguments: argparse.Namespace) -> int:
    """`mcjepa launch status`."""
    from mcjepa.cluster.job import read_record
    from mcjepa.cluster.status import read_status
    from mcjepa.pipeline.run.folder import newest_checkpoint_step

    with launch_errors():
        found = {folder: read_status(folder) for folder in _folders(arguments)}
        if arguments.json:
            rows = [{"folder": str(f), **dataclasses.asdict(s)} for f, statuses in found.items() for s in statuses]
            print(json.dumps(rows))
            return OK
        for folder, statuses in found.items():
            record = read_record(folder)
            print(f"{record.stage:<6} {folder}{'  (cancelled)' if record.cancelled else ''}")
            for each in statuses:
                idle = f", {each.idle_starts} without progress" if each.idle_starts else ""
                starts = f"{each.starts} start(s){idle}"
                print(f"  {each.id:<14} {each.state:<10} {starts}  {each.detail}  {each.element}")
                for element in record.elements:
                    if element.name == each.element and element.progress:
                        step = newest_checkpoint_step(element.progress[-1])
                        print(f"  {'':<14} newest checkpoint: step {step}")
        return OK


def logs(arguments: argparse.Namespace) -> int:
    """`mcjepa launch logs`."""
    from mcjepa.cluster.status import follow_logs, log_files

    with launch_errors():
        if arguments.follow:
            (folder,) = _one_folder(arguments)
            try:
                for path, text in follow_logs(folder, arguments.rank, arguments.lines):
                    print(f"==> {path.name} <==\n{text}", flush=True)
            except KeyboardInterrupt:
                return OK  # the job goes on
            return OK
        for folder in _folders(arguments):
            for path in log_files(folder, arguments.rank):
                lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
                shown = lines[-arguments.lines :] if arguments.lines else lines
                if arguments.json:
                    print(json.dumps({"file": str(path), "lines": shown}))
                else:
                    print("\n".join([f"==> {path} <==", *shown]))
    return OK


def cancel(arguments: argparse.Namespace) -> int:
    """`mcjepa launch cancel`."""
    from mcjepa.cluster.status import cancel as cancel_jobs

    with launch_errors():
        started = time.perf_counter()
        ended = [job for folder in _folders(arguments) for job in cancel_jobs(folder)]
        if arguments.json:
            print(json.dumps({"cancelled": ended}))
        else:
            seconds = time.perf_counter() - started
            print(f"cancelled {', '.join(ended)} in {seconds:.0f} s" if ended else "nothing was active")
    return OK


def progress(arguments: argparse.Namespace) -> int:
    """`mcjepa launch progress`: what a job's script asks before every start."""
    from mcjepa.pipeline.run.folder import newest_checkpoint_step

    print(newest_checkpoint_step(arguments.run))
    return OK


def _folders(arguments: argparse.Namespace) -> list[Path]:
    return launched_folders(arguments.run, arguments.overrides, arguments.stage, arguments.site)


def _one_folder(arguments: argparse.Namespace) -> list[Path]:
    folders = _folders(arguments)
    if len(folders) > 1:
        raise UsageError(f"{len(folders)} stages of {arguments.run} were launched; choose one with --stage")
    return folders


def keep_logs(arguments: argparse.Namespace) -> int:
    """`mcjepa launch keep-logs`: what a job's script calls when its tasks have ended."""
    from mcjepa.data_prep.storage import open_store
    from mcjepa.pipeline.run.folder import JOBS

    store = open_store(arguments.run)
    for path in sorted(Path(arguments.folder).glob(f"{arguments.job}_*_log.out")):
        store.write(f"{JOBS}/{path.name}", path.read_bytes())
    return OK


def _print_dry(jobs: Sequence[Job], as_json: bool) -> None:
    from mcjepa.cluster.submit import job_script

    shown = [
        {
            "folder": str(job.folder),
            "commands": [["python", *element.argv] for element in job.elements],
            "script": job_script(job),
        }
        for job in jobs
    ]
    if as_json:
        print(json.dumps({**shown[0], "then": shown[1:]}))
        return
    for job, found in zip(jobs, shown, strict=True):
        if found["script"]:
            print(found["script"])
            continue
        print(f"# {job.need.tasks} process(es) on this machine ({job.site.kind}), files in {job.folder}")
        for element in job.elements:
            print(" ".join(["python", *element.argv]))


def _print_submitted(submitted: Sequence[tuple[Job, Record]], as_json: bool) -> None:
    if as_json:
        shown = [
            {"stage": job.stage, "ids": record.ids, "folder": str(job.folder), "site": job.site.kind}
            for job, record in submitted
        ]
        print(json.dumps({**shown[0], "then": shown[1:]}))
        return
    for job, record in submitted:
        if job.site.kind == "debug":
            continue
        ids = record.ids
        several = f"{ids[0]} and {len(ids) - 1} more" if len(ids) > 1 else ids[0]
        after = f" after job {job.after.job}" if job.after else ""
        print(
            f"submitted {job.name}: job {several}{after}, {job.need.nodes} node(s); "
            f"`mcjepa launch status {shlex.quote(str(job.folder))}`"
        )
