"""`mcjepa eval finetune`: the whole encoder trained with UperNet on a labelled set."""

from __future__ import annotations

import argparse

from pipeline.cli.evaluate import evaluate_one

ALIASES = {"voc": "voc2012"}


def evaluate_finetune(arguments: argparse.Namespace) -> int:
    """Fine-tunes one set of weights on the set that the command line names, and scores it."""
    from evals.config import EvalConfig
    from evals.segmentation.finetune_config import FinetuneConfig
    from pipeline.config import apply_overrides, validate

    content = apply_overrides({}, arguments.overrides)
    content |= {"set": ALIASES.get(arguments.set, arguments.set), "root": arguments.data}
    config = validate(FinetuneConfig, content, "eval finetune")
    return evaluate_one(arguments, EvalConfig(finetune=config, seed=arguments.seed))
