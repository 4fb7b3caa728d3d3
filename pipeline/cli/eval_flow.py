"""`mcjepa eval flow`: optical flow against ground truth."""

from __future__ import annotations

import argparse

from pipeline.cli.evaluate import evaluate_one


def evaluate_flow(arguments: argparse.Namespace) -> int:
    """Scores one set of weights on the sets that the command line names."""
    from evals.config import EvalConfig
    from evals.flow.config import FlowEvalConfig
    from pipeline.config import apply_overrides, validate

    content = apply_overrides({}, arguments.overrides)
    content["sets"] = {arguments.set: arguments.data}
    config = validate(FlowEvalConfig, content, "eval flow")
    return evaluate_one(arguments, EvalConfig(flow=config))
