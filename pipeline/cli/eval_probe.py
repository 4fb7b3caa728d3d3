"""`mcjepa eval probe`: linear segmentation probe on frozen features."""

from __future__ import annotations

import argparse

from pipeline.cli.evaluate import evaluate_one


def evaluate_probe(arguments: argparse.Namespace) -> int:
    """Scores one set of weights on the sets that the command line names."""
    from evals.config import EvalConfig
    from evals.segmentation.config import ProbeConfig
    from pipeline.config import apply_overrides, validate

    content = apply_overrides({}, arguments.overrides)
    content |= {"set": arguments.set, "root": arguments.data}
    config = validate(ProbeConfig, content, "eval probe")
    return evaluate_one(arguments, EvalConfig(probe=config))
