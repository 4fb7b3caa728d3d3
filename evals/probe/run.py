"""Probe and fine-tuning on the set that the settings name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mcjepa.data_prep.corpora import SEGMENTATION_CLASSES, SEGMENTATION_SETS
from mcjepa.data_prep.corpora.items import LabelledImage
from mcjepa.evals.cards import Score
from mcjepa.evals.finetune.score import FinetuneData, finetuned_network, score_finetune
from mcjepa.evals.finetune.settings import FinetuneConfig
from mcjepa.evals.probe.score import ProbeData, score_name, score_probe
from mcjepa.evals.probe.settings import ProbeConfig
from mcjepa.evals.progress import OnEvent, set_folder, set_reader
from mcjepa.evals.subject import Subject


def run_probe(subject: Subject, config: ProbeConfig, seed: int, out: Path, on_event: OnEvent) -> Score:
    """Probes frozen features.

    Raises:
        DataError: the set is unknown or missing, or has nothing that can be scored.
    """
    data = ProbeData(**_labelled_set(config, "probe.set"))
    return score_probe(subject, data, config, seed, out / score_name(config), on_event)


def run_finetune(subject: Subject, config: FinetuneConfig, seed: int, out: Path, on_event: OnEvent) -> Score:
    """Trains the encoder on, and scores it; the only rank, or the first of several.

    Raises:
        DataError: as `run_probe`.
    """
    data = FinetuneData(**_labelled_set(config, "finetune.set"))
    return score_finetune(subject, data, config, seed, out / "finetune" / config.set, on_event)


def join_finetune(subject: Subject, config: FinetuneConfig, seed: int, out: Path) -> None:
    """The part of every rank but the first in a distributed fine-tuning: it trains, and scores nothing.

    Raises:
        DataError: as `run_probe`.
    """
    data = FinetuneData(**_labelled_set(config, "finetune.set"))
    finetuned_network(subject, data, config, seed, out / "finetune" / config.set)


def _labelled_set(config: ProbeConfig | FinetuneConfig, field: str) -> dict[str, Any]:
    read = set_reader(SEGMENTATION_SETS, config.set, field)
    root = set_folder(config.root, config.set)
    train: list[LabelledImage] = read(root, config.train_split)
    val: list[LabelledImage] = read(root, config.val_split)
    return {"root": root, "train": train, "val": val, "classes": SEGMENTATION_CLASSES[config.set](root)}
