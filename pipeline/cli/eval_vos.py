"""`mcjepa eval vos`: video object segmentation by label propagation, or of masks that are files."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mcjepa.evals.record import publish
from mcjepa.pipeline.cli.evaluate import evaluate_one, exit_code, print_scores, shown_events, take_optional_weights
from mcjepa.pipeline.errors import UsageError

if TYPE_CHECKING:
    from mcjepa.evals.vos.settings import VosConfig


def evaluate_vos(arguments: argparse.Namespace) -> int:
    """Scores one set of weights, or a folder of masks, on the set that the command line names."""
    take_optional_weights(arguments)
    if bool(arguments.weights) == bool(arguments.estimates):
        found = "both WEIGHTS and --estimates" if arguments.weights else "neither WEIGHTS nor --estimates"
        raise UsageError(f"{found}; expected one of them: a weights folder, or a folder of masks to score")
    config = _settings(arguments)
    if arguments.estimates:
        return _score_files(arguments, config)
    from mcjepa.evals.settings import EvalConfig

    code = evaluate_one(arguments, EvalConfig(vos=config))
    _say_where(arguments, config)
    return code


def _settings(arguments: argparse.Namespace) -> VosConfig:
    from mcjepa.evals.vos.settings import PRESETS, VosConfig
    from mcjepa.pipeline.recipe.files import apply_overrides, validate

    if arguments.preset not in PRESETS:
        raise UsageError(f"--preset is {arguments.preset!r}, expected one of {', '.join(PRESETS)}")
    content = apply_overrides(dict(PRESETS[arguments.preset]), arguments.overrides)
    content |= {"set": arguments.set, "root": arguments.data}
    content |= {name: True for name in ("masks", "overlays") if getattr(arguments, name)}
    return validate(VosConfig, content, "eval vos")


def _score_files(arguments: argparse.Namespace, config: VosConfig) -> int:
    from mcjepa.evals.cards import write_scores
    from mcjepa.evals.vos.score import score_estimates

    with shown_events() as show:
        score = score_estimates(Path(arguments.estimates), config, Path(arguments.out), show)
    write_scores([score], Path(arguments.out))
    publish(arguments, [score])
    print_scores([score], arguments.json, {score.name: dict(score.metrics)})
    _say_where(arguments, config)
    return exit_code([score])


def _say_where(arguments: argparse.Namespace, config: VosConfig) -> None:
    """Names the folders of masks and overlays, on standard error."""
    for kind in ("masks", "overlays"):
        place = Path(arguments.out) / "vos" / config.set / kind
        if place.is_dir():
            print(f"{kind} are in {place}", file=sys.stderr)
