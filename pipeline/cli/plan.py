"""`mcjepa plan`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mcjepa.cluster.preflight.data import ClusterFacts
from mcjepa.cluster.preflight.findings import errors_of, table
from mcjepa.cluster.site import needed
from mcjepa.pipeline.errors import RunError, UsageError
from mcjepa.pipeline.launch import facts as plan_facts
from mcjepa.pipeline.launch.preflight import Setting, preflight, site_memory
from mcjepa.pipeline.launch.sites import load_site
from mcjepa.pipeline.recipe.recipe import load_recipe, required

REJECTED = 3


def run_plan(arguments: argparse.Namespace) -> int:
    """`mcjepa plan`: 0, or 3 where the run would be refused."""
    recipe, plain = load_recipe(arguments.recipe, arguments.overrides)
    required(recipe.train, "train", recipe)
    place = _place(arguments)
    if arguments.measure is not None:
        place = dataclasses.replace(place, step_s=_measure(plain, place, arguments.measure))
    findings = preflight(recipe, place)
    refused = errors_of(findings)
    if arguments.json:
        ranks = place.cluster.ranks
        print(json.dumps({"ranks": ranks, "ok": not refused, "findings": [dataclasses.asdict(f) for f in findings]}))
    else:
        print("\n".join(table(findings)))
        warnings = sum(finding.severity == "warning" for finding in findings)
        print(f"\n{len(refused)} errors, {warnings} warnings: " + ("refused" if refused else "can be launched"))
    return REJECTED if refused else 0


def _place(arguments: argparse.Namespace) -> Setting:
    for name in ("nodes", "ranks"):
        if getattr(arguments, name) < 0:
            raise UsageError(f"--{name} {getattr(arguments, name)}, expected 1 or more; leave it out for the site's")
    for name in ("step_s", "memory_gib"):
        value = getattr(arguments, name)
        if value is not None and value <= 0:
            raise UsageError(f"--{name.replace('_', '-')} {value:g}, expected more than 0")
    site = load_site(arguments.site) if arguments.site else None
    need = needed(site, "train", arguments.nodes) if site else None
    here = site is None or site.kind != "slurm"
    nodes = arguments.nodes or (need.nodes if need else 1)
    gpus = arguments.gpus_per_node
    if gpus is None:
        gpus = plan_facts.gpus_here() if here else need.gpus_per_node if need else 0
    tasks = need.tasks_per_node if need else max(gpus, 1)
    ranks = arguments.ranks or nodes * tasks
    if arguments.memory_gib is not None:
        memory: int | None = int(arguments.memory_gib * 2**30)
    elif here:
        memory = plan_facts.device_memory(gpus > 0)
    else:
        memory = site_memory(need)
    return Setting(ClusterFacts(nodes, ranks, gpus), memory, arguments.step_s, site, need)


def _measure(plain: Mapping[str, Any], place: Setting, steps: int) -> float:
    """Seconds a step, from some real steps of the recipe on this machine.

    Raises:
        UsageError: the run is not to be on one machine such as this.
        RunError: the steps failed.
    """
    from mcjepa.cluster.local import run_ranks
    from mcjepa.pipeline.monitor.meters import read_records
    from mcjepa.pipeline.recipe.short import write_short_recipe
    from mcjepa.pipeline.tracking import quiet_environment

    if place.cluster.nodes > 1 or (place.site and place.site.kind == "slurm"):
        raise UsageError("--measure takes steps on this machine, and the run is for another; give --step-s S instead")
    if steps < 2:
        raise UsageError(f"--measure {steps}, expected at least 2 steps: the first one is slower than the others")
    with tempfile.TemporaryDirectory(prefix="mcjepa-measure-") as folder:
        recipe = write_short_recipe(plain, Path(folder), steps, steps)
        words = [sys.executable, "-m", "mcjepa.pipeline.cli", "train", str(recipe), "--json"]
        log = Path(folder) / "train.log"
        code = run_ranks(words, place.cluster.ranks, environment=quiet_environment(), logs=lambda rank: log)
        if code:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise RunError(f"--measure: training {steps} steps here ended with {code}: {(lines or [''])[-1]}")
        records = read_records(Path(folder) / "run" / "logs" / "metrics.jsonl")
    return statistics.median(record["seconds_per_step"] for record in records[1:])
