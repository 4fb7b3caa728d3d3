"""`mcjepa eval vos`: video object segmentation by label propagation, or of masks that are files."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli.evaluate import evaluate_one
from pipeline.cli.output import StageProgress
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from evals.cards import Score
    from evals.vos.config import VosConfig

PARTIAL = 4


def evaluate_vos(arguments: argparse.Namespace) -> int:
    """Scores one set of weights, or a folder of masks, on the set that the command line names."""
    if arguments.weights and "=" in arguments.weights and not Path(arguments.weights).exists():
        arguments.overrides.insert(0, arguments.weights)  # argparse takes the first word for the weights
        arguments.weights = None
    if bool(arguments.weights) == bool(arguments.estimates):
        found = "both WEIGHTS and --estimates" if arguments.weights else "neither WEIGHTS nor --estimates"
        raise UsageError(f"{found}; expected one of them: a weights folder, or a folder of masks to score")
    config = _settings(arguments)
    if arguments.estimates:
        return _score_files(arguments, config)
    from evals.config import EvalConfig

    code = evaluate_one(arguments, EvalConfig(vos=config))
    _say_where(arguments, config)
    return code


def _settings(arguments: argparse.Namespace) -> VosConfig:
    from evals.vos.config import PRESETS, VosConfig
    from pipeline.config import apply_overrides, validate

    if arguments.preset not in PRESETS:
        raise UsageError(f"--preset is {arguments.preset!r}, expected one of {', '.join(PRESETS)}")
    content = apply_overrides(dict(PRESETS[arguments.preset]), arguments.overrides)
    content |= {"set": arguments.set, "root": arguments.data}
    content |= {name: True for name in ("masks", "overlays") if getattr(arguments, name)}
    return validate(VosConfig, content, "eval vos")


def _score_files(arguments: argparse.Namespace, config: VosConfig) -> int:
    from evals.progress import EvalEvent
    from evals.run import score_estimates, write_scores

    with StageProgress("eval") as progress:

        def show(event: EvalEvent) -> None:
            progress.update(f"{event.score} {event.phase}", event.done, event.total)

        score = score_estimates(Path(arguments.estimates), config, Path(arguments.out), show)
    write_scores([score], Path(arguments.out))
    _print(score, arguments.json)
    _say_where(arguments, config)
    return 0 if score.card.complete else PARTIAL


def _print(score: Score, as_json: bool) -> None:
    for reason in score.card.failed:
        print(f"mcjepa: not scored: {reason}", file=sys.stderr)
    if as_json:
        print(json.dumps({score.name: dict(score.metrics)}))
        return
    for name, value in score.metrics.items():
        print(f"{score.name:<24} {name:<28} {value:10.4f}")


def _say_where(arguments: argparse.Namespace, config: VosConfig) -> None:
    """Names the folders of masks and overlays, on standard error."""
    for kind in ("masks", "overlays"):
        place = Path(arguments.out) / "vos" / config.set / kind
        if place.is_dir():
            print(f"{kind} are in {place}", file=sys.stderr)
