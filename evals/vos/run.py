"""Mask propagation on the set that the settings name, of a model or of masks that are files."""

from __future__ import annotations

from pathlib import Path

from mcjepa.data_prep.corpora import VOS_SETS
from mcjepa.evals.cards import Score
from mcjepa.evals.progress import OnEvent, silent
from mcjepa.evals.sets import set_folder, set_reader
from mcjepa.evals.subject import Subject
from mcjepa.evals.vos.score import score_vos_estimates, score_vos_set
from mcjepa.evals.vos.settings import VosConfig


def run_vos(subject: Subject, config: VosConfig, out: Path, on_event: OnEvent) -> Score:
    """Scores a model.

    Raises:
        DataError: the set is unknown or missing, or no sequence could be scored.
    """
    root = set_folder(config.root, config.set)
    videos = set_reader(VOS_SETS, config.set, "vos.set")(root)
    return score_vos_set(subject, root, videos, config, out / "vos" / config.set, on_event)


def score_estimates(estimates: Path, config: VosConfig, out: Path, on_event: OnEvent = silent) -> Score:
    """Scores masks that are files, ESTIMATES/SEQUENCE/FRAME.png, on the set that the settings name; no model is read.

    Raises:
        DataError: the set is unknown or missing, or no sequence could be scored.
    """
    read = set_reader(VOS_SETS, config.set, "vos.set")
    root = set_folder(config.root, config.set)
    return score_vos_estimates(estimates, root, read(root), config, out / "vos" / config.set, on_event)
