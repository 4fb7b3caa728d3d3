"""`mcjepa eval classify`: image classification on frozen features."""

from __future__ import annotations

import argparse

from mcjepa.pipeline.cli.evaluate import evaluate_one


def evaluate_classify(arguments: argparse.Namespace) -> int:
    """Scores one set of weights on the folders of classes that the command line names."""
    from mcjepa.evals.classification.config import ClassifyConfig
    from mcjepa.evals.config import EvalConfig
    from mcjepa.pipeline.config import apply_overrides, validate

    content = apply_overrides({}, arguments.overrides)
    content |= {"set": arguments.set, "root": arguments.data}
    config = validate(ClassifyConfig, content, "eval classify")
    return evaluate_one(arguments, EvalConfig(classify=config, seed=arguments.seed))
