"""Writes the report: one HTML file that holds its style, charts and pictures, and loads nothing from
anywhere."""

from __future__ import annotations

from pathlib import Path

from mcjepa.data_prep.storage import atomic_write
from mcjepa.evals.pictures import png_bytes, wheel_picture
from mcjepa.evals.report.comparison import comparison_section, paper_section
from mcjepa.evals.report.content import DatasetSummary, QuarantinedInput, ReportContent, Tile, headline_tiles
from mcjepa.evals.report.frame import page
from mcjepa.evals.report.sections import (
    commands_section,
    curves_section,
    data_section,
    lineage_section,
    pictures_section,
    scores_section,
    tiles_section,
)

__all__ = ["DatasetSummary", "QuarantinedInput", "ReportContent", "Tile", "headline_tiles", "write_report"]

_FLOW_NOTE = (
    "Hue is the direction of motion, saturation its length (Middlebury colours); every row has the scale of "
    "its ground truth. Black: no ground truth."
)
_FEATURE_NOTE = (
    "The three main directions of the features of a whole video as red, green and blue: what keeps its "
    "colour keeps its features."
)
_SEGMENTATION_NOTE = "Classes as tints over the image, by the linear head on frozen features; void is not tinted."
_VOS_NOTE = "The first frame's mask is given; the model's features carry it through the video."
_FINETUNE_NOTE = "Classes as tints over the image, by the whole encoder trained with UperNet; void is not tinted."
_CLASSES_NOTE = "Validation images as the frozen model sees them, with their class."


def render_report(content: ReportContent) -> str:
    """The page as text; the scores' picture files are read and embedded."""
    scores = content.scores
    sections = [
        ("headline", "Headline", tiles_section(content.tiles)),
        ("paper", "Beside the paper", paper_section(content.evaluations)),
        ("comparison", "Side by side", comparison_section(content.evaluations)),
        ("curves", "Training curves", curves_section(content.curves)),
        ("flow", "Optical flow", pictures_section(scores, "flow", _FLOW_NOTE, png_bytes(wheel_picture()))),
        ("features", "Features", pictures_section(scores, "features", _FEATURE_NOTE)),
        ("segmentation", "Segmentation probe", pictures_section(scores, "segmentation", _SEGMENTATION_NOTE)),
        ("masks", "Mask propagation", pictures_section(scores, "vos", _VOS_NOTE)),
        ("finetune", "Fine-tuned segmentation", pictures_section(scores, "finetune", _FINETUNE_NOTE)),
        ("classes", "Image classification", pictures_section(scores, "classification", _CLASSES_NOTE)),
        ("scores", "Scores and cards", scores_section(scores)),
        ("data", "Data", data_section(content.datasets, content.quarantined)),
        ("lineage", "Lineage and versions", lineage_section(content)),
        ("commands", "To reproduce", commands_section(content.commands)),
    ]
    return page(content.title, content.summary, sections)


def write_report(path: Path, content: ReportContent) -> None:
    """Writes the page to `path` in one step: a reader sees the old file or the whole new one.

    Raises:
        OSError: a picture file is missing, or the page cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, render_report(content).encode())
