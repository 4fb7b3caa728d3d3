"""`mcjepa launch status|logs|cancel|progress`: what has become of what was launched."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path

from mcjepa.cluster.job import Element, read_record
from mcjepa.cluster.status import cancel, log_files, read_status
from mcjepa.data_prep.storage import open_store
from mcjepa.pipeline.launch.sites import launch_errors, launched_folders


def launch_status(arguments: argparse.Namespace) -> int:
    """`mcjepa launch status`."""
    with launch_errors():
        folders = _folders(arguments)
        found = {folder: read_status(folder) for folder in folders}
        if arguments.json:
            rows = [{"folder": str(f), **dataclasses.asdict(s)} for f, statuses in found.items() for s in statuses]
            print(json.dumps(rows))
            return 0
        for folder, statuses in found.items():
            record = read_record(folder)
            print(f"{record.stage:<6} {folder}{'  (cancelled)' if record.cancelled else ''}")
            for status in statuses:
                idle = f", {status.idle_starts} without progress" if status.idle_starts else ""
                starts = f"{status.starts} start(s){idle}"
                print(f"  {status.id:<14} {status.state:<10} {starts}  {status.detail}  {status.element}")
                for step in _progress(record.elements, status.element):
                    print(f"  {'':<14} newest checkpoint: step {step}")
        return 0


def launch_logs(arguments: argparse.Namespace) -> int:
    """`mcjepa launch logs`."""
    with launch_errors():
        for folder in _folders(arguments):
            for path in log_files(folder, arguments.rank):
                lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
                shown = lines[-arguments.lines :] if arguments.lines else lines
                if arguments.json:
                    print(json.dumps({"file": str(path), "lines": shown}))
                else:
                    print("\n".join([f"==> {path} <==", *shown]))
    return 0


def launch_cancel(arguments: argparse.Namespace) -> int:
    """`mcjepa launch cancel`."""
    with launch_errors():
        started = time.perf_counter()
        ended = [job for folder in _folders(arguments) for job in cancel(folder)]
        if arguments.json:
            print(json.dumps({"cancelled": ended}))
        else:
            seconds = time.perf_counter() - started
            print(f"cancelled {', '.join(ended)} in {seconds:.0f} s" if ended else "nothing was active")
    return 0


def launch_progress(arguments: argparse.Namespace) -> int:
    """`mcjepa launch progress`: what a job's script asks before every start."""
    print(newest_step(arguments.run))
    return 0


def newest_step(run: str) -> int:
    """Step of a run's newest checkpoint that has a manifest, -1 without one; imports no torch."""
    keys = open_store(run).list("checkpoints/step-")
    return max(
        (int(key.split("/")[1].removeprefix("step-")) for key in keys if key.endswith("/manifest.json")), default=-1
    )


def _progress(elements: Sequence[Element], name: str) -> list[int]:
    """The newest step of the element's run, where it has one."""
    return [newest_step(element.progress[-1]) for element in elements if element.name == name and element.progress]


def _folders(arguments: argparse.Namespace) -> list[Path]:
    return launched_folders(arguments.run, arguments.overrides, arguments.stage, arguments.site)
