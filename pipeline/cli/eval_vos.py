"""`mcjepa eval vos`: video object segmentation by label propagation."""

from __future__ import annotations

import argparse

from pipeline.cli.evaluate import evaluate_one


def evaluate_vos(arguments: argparse.Namespace) -> int:
    """Scores one set of weights on the sets that the command line names."""
    from evals.config import EvalConfig
    from evals.vos.config import VosConfig
    from pipeline.config import apply_overrides, validate

    content = apply_overrides({}, arguments.overrides)
    content |= {"set": arguments.set, "root": arguments.data}
    config = validate(VosConfig, content, "eval vos")
    return evaluate_one(arguments, EvalConfig(vos=config))
