"""Image classification on the folders of classes that the settings name."""

from __future__ import annotations

from pathlib import Path

from mcjepa.evals.cards import Score
from mcjepa.evals.classification.images import read_class_folders
from mcjepa.evals.classification.score import score_classify
from mcjepa.evals.classification.settings import ClassifyConfig
from mcjepa.evals.progress import OnEvent
from mcjepa.evals.sets import set_folder
from mcjepa.evals.subject import Subject


def run_classify(subject: Subject, config: ClassifyConfig, seed: int, out: Path, on_event: OnEvent) -> Score:
    """Classifies by frozen features.

    Raises:
        DataError: the folder is missing, or has nothing that can be scored.
    """
    data = read_class_folders(set_folder(config.root, config.set), config.max_train, config.max_val)
    return score_classify(subject, data, config, seed, out / "classify" / config.set, on_event)
