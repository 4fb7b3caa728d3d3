"""Runs the evaluations that a recipe asks for on one set of weights and writes scores.json, tables and pictures.

Each kind is imported when it is asked for: one score loads the code of one kind.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

from mcjepa.evals.cards import Score, write_scores
from mcjepa.evals.data_state import data_state
from mcjepa.evals.models import LoadedModel, Weights, load_for_scoring
from mcjepa.evals.progress import OnEvent, silent, torch_threads
from mcjepa.evals.settings import EvalConfig


def run_evaluation(
    weights: Weights | Path | str, config: EvalConfig, out: Path | str, on_event: OnEvent = silent
) -> list[Score]:
    """Scores our weights on everything that the settings name.

    Args:
        weights: a folder that `model.pretrained.save` wrote, or what `read_weights` says of it.
        config: which evaluations, with their protocols.
        out: folder for scores.json, SCORE/items.csv and SCORE/*.png; files of an earlier run are replaced.
        on_event: progress.

    Returns:
        One score a flow set, one for the probe, mask propagation, fine-tuning and classification each, in that order.

    Raises:
        DataError: there are no weights or no such device, or a set is unknown, missing or has nothing to score.
    """
    return evaluate(load_for_scoring(weights, config.device, config.seed), config, Path(out), on_event)


def evaluate(loaded: LoadedModel, config: EvalConfig, out: Path, on_event: OnEvent = silent) -> list[Score]:
    """Like `run_evaluation`, for any model behind the two methods of `EvalModel`."""
    scores: list[Score] = []
    data = data_state(config)
    with torch_threads(config.threads):
        if config.flow is not None:
            from mcjepa.evals.flow.methods import Method
            from mcjepa.evals.flow.score import score_flow_sets

            scores += score_flow_sets(Method.of(loaded), config.flow, out, on_event)
        if config.probe is not None:
            from mcjepa.evals.probe.score import run_probe

            scores.append(run_probe(loaded, config.probe, config.seed, out, on_event))
        if config.vos is not None:
            from mcjepa.evals.vos.score import run_vos

            scores.append(run_vos(loaded, config.vos, out, on_event))
        if config.finetune is not None:
            from mcjepa.evals.finetune.score import run_finetune

            scores.append(run_finetune(loaded, config.finetune, config.seed, out, on_event))
        if config.classify is not None:
            from mcjepa.evals.classification.score import run_classify

            scores.append(run_classify(loaded, config.classify, config.seed, out, on_event))
    key = evaluation_key(loaded.identity, config) if loaded.identity else ""
    write_scores(scores, out, key, data)
    return scores


def evaluation_key(identity: str, config: EvalConfig) -> str:
    """sha256 over the weights with their config, and every setting of the evaluation but device and threads."""
    asked = dataclasses.asdict(config)
    for name in ("device", "threads"):
        del asked[name]
    return hashlib.sha256(json.dumps([identity, asked], sort_keys=True).encode()).hexdigest()


def finetune_together(weights: Path, config: EvalConfig, out: Path, on_event: OnEvent = silent) -> None:
    """Fine-tunes as one of several ranks, all of which call this; the network is then in `out`, not scored yet.

    Raises:
        DataError: as `run_evaluation`.
    """
    if config.finetune is not None:
        from mcjepa.evals.finetune.score import train_finetune

        with torch_threads(config.threads):
            loaded = load_for_scoring(weights, config.device, config.seed)
            train_finetune(loaded, config.finetune, config.seed, out, on_event)
