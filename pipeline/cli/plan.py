"""`mcjepa plan` and `mcjepa drill`: what a run needs and what is wrong with it, and rehearsed interruptions."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.exits import INTERRUPTED, OK, REJECTED
from mcjepa.pipeline.recipe.recipe import load_recipe


def plan(arguments: argparse.Namespace) -> int:
    """`mcjepa plan`: 3 where the run would be refused."""
    from mcjepa.cluster.preflight.findings import errors_of, findings_table
    from mcjepa.pipeline.launch.preflight import AskedSetting, measured, preflight, setting_of
    from mcjepa.pipeline.launch.sites import launch_errors, load_site

    recipe, plain = load_recipe(arguments.recipe, arguments.overrides)
    site = load_site(arguments.site) if arguments.site else None
    names = [field.name for field in dataclasses.fields(AskedSetting)]
    with launch_errors():
        setting = setting_of(site, AskedSetting(**{name: getattr(arguments, name) for name in names}))
    if arguments.measure is not None:
        setting = measured(setting, plain, arguments.measure)
    findings = preflight(recipe, setting)
    refused = errors_of(findings)
    if arguments.json:
        ranks = setting.cluster.ranks
        print(json.dumps({"ranks": ranks, "ok": not refused, "findings": [dataclasses.asdict(f) for f in findings]}))
    else:
        print("\n".join(findings_table(findings)))
        warnings = sum(finding.severity == "warning" for finding in findings)
        print(f"\n{len(refused)} errors, {warnings} warnings: " + ("refused" if refused else "can be launched"))
    return REJECTED if refused else OK


def drill(arguments: argparse.Namespace) -> int:
    """`mcjepa drill`: 3 where something was not kept."""
    from mcjepa.pipeline.stages.drill import rehearse

    recipe, plain = load_recipe(arguments.recipe, arguments.overrides)
    out = Path(arguments.out).expanduser().absolute() if arguments.out else None
    if out and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out} exists already, expected a new or empty folder; name another")
    try:
        record = rehearse(arguments.verb, recipe, plain, out, arguments.steps, _say)
    except KeyboardInterrupt:
        _say("\nmcjepa: the drill was interrupted; its processes have ended, start it again")
        return INTERRUPTED
    if arguments.json:
        print(json.dumps(record))
    else:
        _print_drill(record, out)
    return OK if record["kept"] else REJECTED


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _print_drill(record: Mapping[str, Any], out: Path | None) -> None:
    done = record["disturbance"]
    seconds, ending = f"{done['seconds']:.1f} s", f"(exit code {done['code']})"
    what = {
        "preempt": f"SIGTERM after step {done['step']}: saved and ended within {seconds} of "
        f"{record['grace_s']:.0f} s grace {ending}",
        "node-loss": f"kill -9 of a rank after step {done['step']}: all had ended after {seconds} {ending}",
        "storage": f"writing failed from step {done['step']} on, for {seconds}, until a save had failed",
    }[done["kind"]]
    rows = [("disturbance", what), ("starts", f"{done['starts']} of the same command")]
    if record["kept"]:
        rows += [
            ("losses", f"{record['steps']} of {record['steps']} steps bit for bit as undisturbed"),
            ("samples", "the same order"),
            ("weights", f"the same, sha256 {record['weights_sha256'][:12]}"),
        ]
    rows += [("DIFFERENT", text) for text in record["differences"]]
    for name, text in rows:
        print(f"{name:<14}{text}")
    print(f"{'kept' if record['kept'] else 'NOT kept'}" + (f"; runs and logs are in {out}" if out else ""))
