"""Settings of corpora and of the filters that look at every sample (`data_prep.filters`).

Every filter is `off`, `score` (its scores are stored, nothing is dropped) or `drop`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

FilterMode = Literal["off", "score", "drop"]


def require(condition: bool, found: str, expected: str) -> None:
    """Raise ValueError with the two parts of a range error unless `condition` holds."""
    if not condition:
        raise ValueError(f"{found}; expected {expected}")


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """One corpus of a dataset: a reader's name and where its files lie."""

    reader: str
    """Key of `data_prep.corpora.INPUT_READERS`, e.g. `videos`, `images`, `davis`, `camvid`."""
    path: str = ""
    """Root of the corpus, a folder or an s3 prefix; unused by the `packaged-*` readers. Ours."""
    split: str = ""
    """Part of the corpus (`train`, `val`, a list's name); empty: everything the reader knows. Ours."""
    repeat: int = 1
    """How many times its inputs are listed in the dataset (paper: sets are repeated to balance them)."""

    labels: bool = False
    """Store the name of an input's first folder as its class in KEY.json (ImageFolder). Ours."""

    def __post_init__(self) -> None:
        """Refuse a repetition below one."""
        require(self.repeat >= 1, f"corpus repeat={self.repeat}", "at least 1")


@dataclass(frozen=True, kw_only=True)
class CutFilter:
    """Scene cuts between the frames of a clip, by PySceneDetect's content score."""

    mode: FilterMode = "off"
    """`off`, `score` or `drop`."""
    max_score: float = 27.0
    """Greatest mean change of hue, saturation and value, 0 to 255, between neighbours. Parent: PySceneDetect."""


@dataclass(frozen=True, kw_only=True)
class MotionFilter:
    """Static and too fast pairs, by the optical flow of OpenCV's DIS between neighbouring frames of a clip."""

    mode: FilterMode = "off"
    """`off`, `score` or `drop`."""
    min_px: float = 0.05
    """Least mean length of the flow, px of the stored frame. Ours."""
    max_px: float = 64.0
    """Greatest mean length of the flow, px of the stored frame. Ours."""


@dataclass(frozen=True, kw_only=True)
class BorderFilter:
    """Letterboxes and pillarboxes: uniform dark rows and columns at the edges."""

    mode: FilterMode = "off"
    """`off`, `score` or `drop`."""
    max_fraction: float = 0.05
    """Greatest part of the frame's area that bars may cover, 0 to 1. Ours."""


@dataclass(frozen=True, kw_only=True)
class DarkFilter:
    """Near-black frames."""

    mode: FilterMode = "off"
    """`off`, `score` or `drop`."""
    min_luma: float = 12.0
    """Least mean luma of a frame, 0 to 255. Ours."""


@dataclass(frozen=True, kw_only=True)
class DuplicateFilter:
    """Inputs that repeat an earlier input of the dataset: equal bytes, or frames that look alike."""

    mode: FilterMode = "off"
    """`off`, `score` or `drop`."""
    max_bits: int = 4
    """Greatest Hamming distance of 64-bit perceptual hashes that counts as alike; -1: equal bytes only. Ours."""

    def __post_init__(self) -> None:
        """Refuse distances that would match anything."""
        require(-1 <= self.max_bits <= 15, f"duplicates.max_bits={self.max_bits}", "-1 to 15")


@dataclass(frozen=True, kw_only=True)
class LeakageFilter:
    """Frames that match a frame of the evaluation sets: they are refused and listed."""

    mode: FilterMode = "off"
    """`off`, `score` or `drop`."""
    sets: tuple[CorpusConfig, ...] = ()
    """Evaluation sets, named as corpora are: reader, path, split."""
    max_bits: int = 4
    """Greatest Hamming distance of 64-bit perceptual hashes that counts as a match. Ours."""

    def __post_init__(self) -> None:
        """Refuse a filter without sets and distances that would match anything."""
        require(self.mode == "off" or bool(self.sets), "filters.leakage without sets", "the evaluation sets to guard")
        require(0 <= self.max_bits <= 15, f"leakage.max_bits={self.max_bits}", "0 to 15")


@dataclass(frozen=True, kw_only=True)
class FiltersConfig:
    """All filters of a dataset; a dropped sample is counted, with its reason, in its input's record."""

    cut: CutFilter = field(default_factory=CutFilter)
    """Scene cuts within a clip."""
    motion: MotionFilter = field(default_factory=MotionFilter)
    """Static and too fast clips."""
    border: BorderFilter = field(default_factory=BorderFilter)
    """Letterboxes."""
    dark: DarkFilter = field(default_factory=DarkFilter)
    """Near-black frames."""
    duplicates: DuplicateFilter = field(default_factory=DuplicateFilter)
    """Repeated inputs."""
    leakage: LeakageFilter = field(default_factory=LeakageFilter)
    """Frames of evaluation sets."""
