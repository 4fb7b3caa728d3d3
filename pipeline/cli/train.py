"""`mcjepa quickstart`, `mcjepa train` and `mcjepa export`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcjepa.data_prep.process import interruption_kept
from mcjepa.pipeline.cli.output import StageProgress, print_next
from mcjepa.pipeline.exits import INTERRUPTED, OK
from mcjepa.pipeline.recipe.files import write_plain
from mcjepa.pipeline.recipe.recipe import Recipe, load_recipe
from mcjepa.pipeline.run.folder import RESOLVED_RECIPE

if TYPE_CHECKING:
    from mcjepa.pipeline.train import TrainProgress


def quickstart(arguments: argparse.Namespace) -> int:
    """`mcjepa quickstart`: runs the chain of stages and says where its results are."""
    from mcjepa.pipeline.stages.following import brief_path
    from mcjepa.pipeline.stages.quickstart import (
        check_place,
        check_samples,
        finish_summary,
        quickstart_overrides,
        run_stages,
    )

    started = time.perf_counter()
    overrides = quickstart_overrides(arguments.out, arguments.videos, arguments.images, arguments.overrides)
    recipe, plain = load_recipe(arguments.recipe, overrides)
    out = Path(recipe.out)
    check_samples(recipe)
    check_place(out)
    _say(f"mcjepa quickstart: real videos and photos -> shards -> training -> scores, all in {out}")
    resolved = write_plain(plain, out / RESOLVED_RECIPE)
    grace_s = recipe.train.checkpoint.grace_s if recipe.train else 0.0
    code, failed = run_stages(brief_path(resolved), grace_s, lambda number, words: _say(f"\n[{number}/3] {words}"))
    if failed:
        _say(f"mcjepa: stage {failed} ended with exit code {code}; running it again continues from there")
        return code
    summary = finish_summary(out, started)
    if arguments.json:
        print(json.dumps(summary))
    _print_summary(recipe, summary)
    return code


def train(arguments: argparse.Namespace) -> int:
    """`mcjepa train`: 130 where the run was stopped before its end."""
    with interruption_kept():
        from mcjepa.pipeline.launch.ranks import start_ranks
        from mcjepa.pipeline.stages.training import ranks_to_start, run_training, single_run

    recipe, plain = load_recipe(arguments.recipe, arguments.overrides)
    config = single_run(recipe)
    ranks = ranks_to_start(config, arguments.ranks)
    if ranks > 1:
        return start_ranks(arguments.argv, ranks, config.checkpoint.grace_s)
    if config.replay:
        from mcjepa.pipeline.replay import explain_replay, replay

        report = replay(config, recipe.model)
        print(json.dumps(report) if arguments.json else "\n".join(explain_replay(report)))
        return OK
    with StageProgress("train") as progress:

        def show(event: TrainProgress) -> None:
            progress.update("steps", event.step, event.steps, columns=_columns(event.values))

        trained = run_training(recipe, plain, show)
    record = trained.record
    if record and arguments.json:
        print(json.dumps(record))
    elif record and trained.finished:
        from mcjepa.pipeline.stages.following import after_training

        weights = Path(record["weights"]) if record["weights"] else None
        print(f"trained {record['steps']} steps; weights: {record['weights']}; MLflow run {record['run_id']}")
        print_next(after_training(recipe, weights), sys.stdout)
    return OK if trained.finished else INTERRUPTED


def export(arguments: argparse.Namespace) -> int:
    """`mcjepa export`: a checkpoint's weights as a folder that needs nothing of the run."""
    from mcjepa.model.pretrained import weights_folder
    from mcjepa.pipeline.export import export_weights

    out = Path(arguments.out)
    licence = arguments.license if arguments.layout == "hub" else None
    record = export_weights(weights_folder(arguments.checkpoint), out, arguments.only == "encoder", licence)
    if arguments.json:
        print(json.dumps(record))
    else:
        what = f"{record['tensors']} tensors of {record['from']} ({record['source']})"
        print(f"exported {what} to {out}; sha256 {record['sha256']}")
    return OK


def _columns(values: Mapping[str, float]) -> dict[str, str]:
    """What a line of the training shows; nothing before the first record."""
    if not values:
        return {}
    found = {name: f"{values[name]:.3f}" for name in ("loss", "reconstruction", "content") if name in values}
    return found | {"s/step": f"{values['seconds_per_step']:.2f}", "waiting": f"{values['data_wait_share']:.0%}"}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _print_summary(recipe: Recipe, summary: dict[str, Any]) -> None:
    from mcjepa.evals.report.chain import REPORT, SUMMARY
    from mcjepa.pipeline.stages.following import after_quickstart

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
        ("report", str(out / REPORT)),
        ("numbers", str(out / SUMMARY)),
    )
    _say("")
    for name, text in rows:
        _say(f"  {name:<16} {text}")
    print_next(after_quickstart(recipe, Path(summary["weights"])), sys.stderr)


def _names(quarantined: Sequence[dict[str, Any]]) -> str:
    if not quarantined:
        return ""
    shown = ", ".join(Path(record["uri"]).name for record in quarantined[:3])
    return f": {shown}" + (", … (all in the report)" if len(quarantined) > 3 else "")
