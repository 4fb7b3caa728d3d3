"""`mcjepa eval probe`: segmentation probe on frozen features."""

from __future__ import annotations

import argparse

from mcjepa.pipeline.cli.evaluate import evaluate_one

SHORT_NAMES = {"voc": "voc2012"}


def evaluate_probe(arguments: argparse.Namespace) -> int:
    """Scores one set of weights on the set that the command line names, by a named protocol and its overrides."""
    from mcjepa.data_prep.errors import DataError
    from mcjepa.evals.probe.settings import PROTOCOL_OF_SET, PROTOCOLS, ProbeConfig, protocol_settings
    from mcjepa.evals.settings import EvalConfig
    from mcjepa.pipeline.errors import UsageError
    from mcjepa.pipeline.recipe.files import apply_overrides, validate

    data_set = SHORT_NAMES.get(arguments.set, arguments.set)
    usual = "knn" if arguments.head == "knn" else PROTOCOL_OF_SET.get(data_set, "cached")
    protocol = arguments.protocol or usual
    try:
        content = protocol_settings(protocol)
    except DataError as error:
        raise UsageError(f"--protocol {protocol}: {error}") from error
    if arguments.head and arguments.head != content["head"]:
        fitting = ", ".join(name for name, settings in PROTOCOLS.items() if settings["head"] == arguments.head)
        raise UsageError(f"--head {arguments.head} with --protocol {protocol}, expected one of its own: {fitting}")
    content = apply_overrides(content, arguments.overrides)
    content |= {"set": data_set, "root": arguments.data}
    config = validate(ProbeConfig, content, "eval probe")
    return evaluate_one(arguments, EvalConfig(probe=config, device=arguments.device, threads=arguments.threads))
