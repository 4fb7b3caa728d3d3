"""`mcjepa quickstart`: the three stages one after the other, each as the command line that a user would give.

    mcjepa prep run RECIPE …    mcjepa train RECIPE …    mcjepa eval all RECIPE …

No stage has a second code path for it. Each runs as a process of its own, so its memory is free for the next, and
an interruption ends its whole process tree.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mcjepa.cluster.local import run_command
from mcjepa.data_prep.errors import DataError
from mcjepa.evals.report.chain import tracking_command
from mcjepa.pipeline.cli.evaluate import write_json
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.recipe.recipe import Recipe, load_recipe
from mcjepa.pipeline.tracking import quiet_environment

PARTIAL = 4
NEEDED_BYTES = 300 << 20


def quickstart(arguments: argparse.Namespace) -> int:
    """Runs the chain and says where its results are."""
    started = time.perf_counter()
    overrides = _overrides(arguments)
    recipe, _ = load_recipe(arguments.recipe, overrides)
    out = Path(recipe.out)
    _check_place(out)
    print(
        f"mcjepa quickstart: real videos and photos -> shards -> training -> scores, all in {out}",
        file=sys.stderr,
    )
    partial = False
    for number, stage in enumerate((("prep", "run"), ("train", "--ranks", "0"), ("eval", "all")), 1):
        print(
            f"\n[{number}/3] mcjepa {' '.join((*stage, arguments.recipe, *overrides))}",
            file=sys.stderr,
            flush=True,
        )
        code = run_command(
            [sys.executable, "-m", "mcjepa.pipeline.cli", *stage, arguments.recipe, *overrides],
            environment=quiet_environment(),
        )
        partial = partial or code == PARTIAL
        if code not in (0, PARTIAL):
            print(
                f"mcjepa: stage {stage[0]} ended with exit code {code}; a rerun continues from there",
                file=sys.stderr,
            )
            return code
    summary = _finish(out, round(time.perf_counter() - started, 1))
    _print_end(recipe, summary, as_json=arguments.json)
    return PARTIAL if partial else 0


def _overrides(arguments: argparse.Namespace) -> list[str]:
    """The command line's options as overrides of the recipe, the user's own ones last."""
    overrides = [f"out={json.dumps(arguments.out)}"]
    for option, key in ((arguments.videos, "videos"), (arguments.images, "images")):
        if option is None:
            continue
        folder = Path(option)
        if not folder.is_dir():
            raise UsageError(f"--{key} {folder}: no such folder, expected one with {key}; check the path")
        if not any(folder.iterdir()):
            raise DataError(
                f"--{key} {folder}: the folder is empty, expected {key} in it; put some there or leave it out"
            )
        if key == "videos":
            corpora = [
                {"reader": "videos", "path": "${out}/corpus/moving-photos/train/videos"},
                {"reader": "videos", "path": str(folder.resolve())},
            ]
            overrides.append(f"prep.datasets.clips.corpora={json.dumps(corpora)}")
        else:
            overrides.append(f"prep.moving_photos.photos={json.dumps([str(folder.resolve())])}")
    return [*overrides, *arguments.overrides]


def _check_place(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file, expected a folder; choose another")
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(f"--out {out} cannot be written ({error.strerror}); choose another folder") from error
    free = shutil.disk_usage(out).free
    if free < NEEDED_BYTES:
        raise DataError(
            f"{free >> 20} MiB are free at {out}, expected at least {NEEDED_BYTES >> 20}; free some or choose --out DIR"
        )


def _finish(out: Path, seconds: float) -> dict[str, Any]:
    """Writes the chain's own time into the summary."""
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    summary["seconds"] = seconds
    write_json(out / "summary.json", summary)
    return summary


def _print_end(recipe: Recipe, summary: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(summary))
    out = Path(recipe.out)
    rows: Sequence[tuple[str, str]] = (
        (
            "flow, EPE in px",
            f"{summary['epe']:.2f}  (zero flow {summary['epe_zero']:.2f}, DIS {summary['epe_dis']:.2f})",
        ),
        ("probe, mIoU", f"{summary['probe_miou']:.3f}  (random encoder {summary['probe_miou_random']:.3f})"),
        ("masks, J&F", f"{summary['jf']:.3f}  (first mask copied {summary['jf_copy_first']:.3f})"),
        ("dataset id", summary["dataset_id"]),
        ("left out", f"{len(summary['quarantined'])} inputs" + _names(summary["quarantined"])),
        ("time", f"{summary['seconds']:.0f} s"),
        ("report", str(out / "report.html")),
        ("numbers", str(out / "summary.json")),
    )
    print(file=sys.stderr)
    for name, text in rows:
        print(f"  {name:<16} {text}", file=sys.stderr)
    print(
        f"\nto open the three MLflow runs (http://127.0.0.1:5000):\n  {tracking_command(recipe)}",
        file=sys.stderr,
    )


def _names(quarantined: Sequence[dict[str, Any]]) -> str:
    if not quarantined:
        return ""
    shown = ", ".join(Path(record["uri"]).name for record in quarantined[:3])
    return f": {shown}" + (", … (all in the report)" if len(quarantined) > 3 else "")
