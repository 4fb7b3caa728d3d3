"""Runs the evaluations that a recipe asks for on one set of weights and writes scores.json, tables and
pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from data_prep.corpora import FLOW_SCANS, SEGMENTATION_CLASSES, SEGMENTATION_SETS, VOS_SETS
from data_prep.corpora.flow_places import find_set_folder
from data_prep.errors import DataError
from evals.cards import Score
from evals.classification.config import ClassifyConfig
from evals.classification.images import read_class_folders
from evals.classification.score import score_classify
from evals.config import EvalConfig
from evals.flow.config import FlowEvalConfig
from evals.flow.methods import Entrant
from evals.flow.score import FlowSet, score_flow
from evals.model_under_test import (
    McJepaUnderTest,
    Subject,
    Weights,
    choose_device,
    load_model,
    random_twin,
    read_weights,
)
from evals.progress import OnEvent, silent
from evals.score_file import evaluation_key, write_scores
from evals.segmentation.config import ProbeConfig
from evals.segmentation.finetune import FinetuneData, finetuned_network, score_finetune
from evals.segmentation.finetune_config import FinetuneConfig
from evals.segmentation.score import ProbeData, score_name, score_probe
from evals.vos.config import VosConfig
from evals.vos.score import score_vos_estimates, score_vos_set


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
        DataError: a set is unknown, missing or has nothing that can be scored.
        ValueError: there are no weights, or the device is not there.
    """
    known = weights if isinstance(weights, Weights) else read_weights(weights)
    model = load_model(known.folder, choose_device(config.device))
    return evaluate(subject_of(model, known, config.seed), config, Path(out), on_event)


def subject_of(model: McJepaUnderTest, weights: Weights, seed: int) -> Subject:
    """Our loaded model with its name, digest and random twin."""
    parameters = sum(parameter.numel() for parameter in model.model.parameters())
    return Subject(
        model=model,
        name=f"{type(model.model).__name__}, {parameters / 1e6:.2f} M parameters",
        digest=weights.digest,
        lineage=weights.lineage,
        random_model=random_twin(model, seed),
    )


def evaluate(subject: Subject, config: EvalConfig, out: Path, on_event: OnEvent = silent) -> list[Score]:
    """Like `run_evaluation`, for any model behind the two methods of `ModelUnderTest`."""
    scores: list[Score] = []
    with torch_threads(config.threads):
        if config.flow is not None:
            scores += score_flow_sets(Entrant.of(subject), config.flow, out, on_event)
        if config.probe is not None:
            scores.append(_score_probe(subject, config.probe, config.seed, out, on_event))
        if config.vos is not None:
            scores.append(_score_vos(subject, config.vos, out, on_event))
        if config.finetune is not None:
            scores.append(_score_finetune(subject, config.finetune, config.seed, out, on_event))
        if config.classify is not None:
            scores.append(_score_classify(subject, config.classify, config.seed, out, on_event))
    key = evaluation_key(subject.digest, subject.lineage, config) if subject.digest else ""
    write_scores(scores, out, key)
    return scores


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Torch computes with `count` CPU threads inside (0: as before), and as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def score_flow_sets(
    entrant: Entrant | None, config: FlowEvalConfig, out: Path, on_event: OnEvent = silent
) -> list[Score]:
    """Scores every flow set of the settings; all their folders are looked up before the first is scored.

    Raises:
        DataError: a set is unknown, is not where it should be, or has nothing that can be scored.
    """
    scans = {name: _reader(FLOW_SCANS, name, "flow.sets") for name in config.sets}
    roots = {name: find_set_folder(place, name) for name, place in config.sets.items()}
    alone = len(roots) == 1
    sets = [
        FlowSet(name=name, root=root, scan=scans[name](root, subset=config.subset), alone=alone)
        for name, root in roots.items()
    ]
    return [score_flow(entrant, flow_set, config, out / "flow" / flow_set.name, on_event) for flow_set in sets]


def _score_probe(subject: Subject, config: ProbeConfig, seed: int, out: Path, on_event: OnEvent) -> Score:
    read = _reader(SEGMENTATION_SETS, config.set, "probe.set")
    root = _folder(config.root, config.set)
    train, val = read(root, config.train_split), read(root, config.val_split)
    data = ProbeData(root=root, train=train, val=val, classes=SEGMENTATION_CLASSES[config.set](root))
    return score_probe(subject, data, config, seed, out / score_name(config), on_event)


def _score_vos(subject: Subject, config: VosConfig, out: Path, on_event: OnEvent) -> Score:
    root = _folder(config.root, config.set)
    videos = _reader(VOS_SETS, config.set, "vos.set")(root)
    return score_vos_set(subject, root, videos, config, out / "vos" / config.set, on_event)


def _score_finetune(subject: Subject, config: FinetuneConfig, seed: int, out: Path, on_event: OnEvent) -> Score:
    data = finetune_data(config)
    return score_finetune(subject, data, config, seed, out / "finetune" / config.set, on_event)


def _score_classify(subject: Subject, config: ClassifyConfig, seed: int, out: Path, on_event: OnEvent) -> Score:
    data = read_class_folders(_folder(config.root, config.set), config.max_train, config.max_val)
    return score_classify(subject, data, config, seed, out / "classify" / config.set, on_event)


def train_along(weights: Path, config: EvalConfig, out: Path) -> None:
    """The part of every rank but the first in a distributed fine-tuning: it trains, and scores nothing.

    Raises:
        DataError, ValueError: as `run_evaluation`.
    """
    if config.finetune is not None:
        known = read_weights(weights)
        subject = subject_of(load_model(known.folder, choose_device(config.device)), known, config.seed)
        settings, data = config.finetune, finetune_data(config.finetune)
        with torch_threads(config.threads):
            finetuned_network(subject, data, settings, config.seed, out / "finetune" / settings.set)


def finetune_data(config: FinetuneConfig) -> FinetuneData:
    """The set that the settings name.

    Raises:
        DataError: it is unknown, missing or incomplete.
    """
    read = _reader(SEGMENTATION_SETS, config.set, "finetune.set")
    root = _folder(config.root, config.set)
    train, val = read(root, config.train_split), read(root, config.val_split)
    return FinetuneData(root=root, train=train, val=val, classes=SEGMENTATION_CLASSES[config.set](root))


def score_estimates(estimates: Path, config: VosConfig, out: Path, on_event: OnEvent = silent) -> Score:
    """Scores masks that are files, ESTIMATES/SEQUENCE/FRAME.png, on the set that the settings name; no model is read.

    Raises:
        DataError: the set is unknown or missing, or no sequence could be scored.
    """
    read = _reader(VOS_SETS, config.set, "vos.set")
    root = _folder(config.root, config.set)
    return score_vos_estimates(estimates, root, read(root), config, out / "vos" / config.set, on_event)


def _reader(readers: dict[str, Callable[..., Any]], name: str, field: str) -> Callable[..., Any]:
    if name not in readers:
        raise DataError(f"{field} names the set {name!r}; expected one of {sorted(readers)}; change the recipe")
    return readers[name]


def _folder(root: str, name: str) -> Path:
    if not root or not Path(root).is_dir():
        raise DataError(
            f"no folder {root!r} for the set {name}; expected the one its archive unpacks to; pass its path as root"
        )
    return Path(root)
