"""`mcjepa eval classify`: image classification on frozen features."""

from __future__ import annotations

import argparse

from mcjepa.pipeline.cli.evaluate import evaluate_one


def evaluate_classify(arguments: argparse.Namespace) -> int:
    """Scores one set of weights on the folders of classes that the command line names."""
    from mcjepa.evals.classification.settings import ClassifyConfig
    from mcjepa.evals.settings import EvalConfig
    from mcjepa.pipeline.recipe.files import apply_overrides, validate

    content = apply_overrides({}, arguments.overrides)
    content |= {"set": arguments.set, "root": arguments.data}
    config = validate(ClassifyConfig, content, "eval classify")
    return evaluate_one(arguments, EvalConfig(classify=config, seed=arguments.seed))
