"""Settings of the evaluations: flow, linear segmentation probe, video object segmentation.

Every field is written into the card of the score it shapes. Tags of origin: [C]/[S] the paper as two or one
account report it, [D] the named parent's default, "ours" where neither says anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

BASELINES = ("zero", "dis-ultrafast", "dis-fast", "dis-medium", "farneback")
"""Classical flow methods that need no weights."""

MAX_LEVEL = 6
"""Coarsest pyramid level; level l has stride 2**l."""


def _require(condition: bool, found: str, expected: str) -> None:
    if not condition:
        raise ValueError(f"{found}; expected {expected}; change it in the recipe or on the command line")


@dataclass(frozen=True, kw_only=True)
class FlowEvalConfig:
    """Which flow sets are scored, and against what."""

    sets: dict[str, str] = field(default_factory=dict)
    """Set name (see `data_prep.corpora.FLOW_SETS`) to the folder that its own archive unpacks to."""

    baselines: tuple[str, ...] = ("zero", "dis-medium")
    """Classical methods scored on the same pairs: zero, dis-ultrafast, dis-fast, dis-medium, farneback
    (ours)."""

    max_pairs: int = 0
    """Pairs scored of each set, evenly spaced over it; 0 = all of them (ours)."""

    pictures: int = 4
    """Evenly spaced pairs shown as pictures, and as many of the worst ones (ours)."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.baselines if name not in BASELINES]
        _require(not unknown, f"flow.baselines has {unknown}", f"names of {list(BASELINES)}")
        _require(self.max_pairs >= 0, f"flow.max_pairs is {self.max_pairs}", "0 (all) or more")
        _require(self.pictures >= 0, f"flow.pictures is {self.pictures}", "0 or more")


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Linear segmentation probe on frozen features; the defaults are VICRegL's VOC protocol [D]."""

    set: str = "camvid"
    """Set name, see `data_prep.corpora.SEGMENTATION_SETS`."""

    root: str = ""
    """Folder that the set's own archive unpacks to."""

    levels: tuple[int, ...] = (3, 4, 5, 6)
    """Pyramid levels that are concatenated; level l has stride 2**l: the four stage outputs [D]."""

    steps: int = 40_000
    """Optimiser steps of the head [D: 40k for VOC and Cityscapes, 160k for ADE20K]."""

    warmup_steps: int = 1_500
    """Linear warm-up, steps [D]."""

    poly_power: float = 1.0
    """Exponent of the decay (1 - step/steps)**power after the warm-up [D]."""

    lr: float = 1e-4
    """Peak learning rate of AdamW [D]."""

    weight_decay: float = 0.05
    """AdamW's decoupled weight decay [D]."""

    batch: int = 16
    """Images a step [D]."""

    crop_px: int = 512
    """Side of the random training window, px, aligned to the coarsest level's cells; 0 = the whole image
    [D]."""

    loss_stride_px: int = 1
    """Every how many-th pixel enters the training loss, a divisor of the finest level's stride; 1 = all of
    them [D]; the score always counts all."""

    max_train: int = 0
    """Training images used, evenly spaced; 0 = all (ours)."""

    max_val: int = 0
    """Validation images scored, evenly spaced; 0 = all (ours)."""

    encode_batch: int = 8
    """Images of equal size encoded at once; changes the speed only (ours)."""

    random_baseline: bool = True
    """Also probe a randomly initialised encoder of the same configuration with the same seed (ours)."""

    pictures: int = 4
    """Validation images shown with truth and prediction (ours)."""

    def __post_init__(self) -> None:
        good = bool(self.levels) and all(1 <= level <= MAX_LEVEL for level in self.levels)
        _require(good, f"probe.levels is {self.levels}", f"one or more of 1..{MAX_LEVEL}")
        _require(self.steps > 0, f"probe.steps is {self.steps}", "1 or more")
        inside = 0 <= self.warmup_steps < self.steps
        _require(inside, f"probe.warmup_steps is {self.warmup_steps}", f"0..{self.steps - 1} (below probe.steps)")
        _require(self.lr > 0, f"probe.lr is {self.lr}", "above 0")
        _require(self.weight_decay >= 0, f"probe.weight_decay is {self.weight_decay}", "0 or more")
        for name in ("batch", "loss_stride_px", "encode_batch"):
            _require(getattr(self, name) >= 1, f"probe.{name} is {getattr(self, name)}", "1 or more")
        finest = 2 ** min(self.levels)
        divides = finest % self.loss_stride_px == 0
        _require(
            divides,
            f"probe.loss_stride_px is {self.loss_stride_px}",
            f"a divisor of the finest stride {finest}",
        )
        for name in ("crop_px", "max_train", "max_val", "pictures"):
            _require(getattr(self, name) >= 0, f"probe.{name} is {getattr(self, name)}", "0 or more")


@dataclass(frozen=True, kw_only=True)
class VosConfig:
    """Label propagation over a video; the defaults are DINO's DAVIS-2017 protocol [D]."""

    set: str = "davis"
    """Set name, see `data_prep.corpora.VOS_SETS`."""

    root: str = ""
    """Folder that the set's own archive unpacks to."""

    context_frames: int = 7
    """Last frames that serve as context, beside the first one [D: DINO 7; CRW and VFS 20]."""

    top_k: int = 5
    """Best matches over all context frames together that vote for a cell [D: DINO 5; CRW and VFS 10]."""

    radius_cells: int = 12
    """Matches are sought within this many cells along each axis; 0 = everywhere [D: DINO 12]."""

    temperature: float = 0.1
    """Softmax temperature over the cosine similarities [D: DINO 0.1, CRW 0.05, VFS 0.07]."""

    stride: int = 8
    """Stride of the features, px; a power of two [D: 8 or 16]."""

    short_side: int = 480
    """Frames are resized to this short side, px, before encoding; 0 = as they are [D: 480]."""

    tile_cells: int = 12
    """Side of the query tile that is matched at once; bounds the memory, does not change the result
    (ours)."""

    max_sequences: int = 0
    """Sequences scored, evenly spaced; 0 = all (ours)."""

    pictures: int = 4
    """Sequences shown as pictures (ours)."""

    def __post_init__(self) -> None:
        strides = [2**level for level in range(1, MAX_LEVEL + 1)]
        _require(self.stride in strides, f"vos.stride is {self.stride}", f"one of {strides}")
        _require(self.temperature > 0, f"vos.temperature is {self.temperature}", "above 0")
        for name in ("top_k", "tile_cells"):
            _require(getattr(self, name) >= 1, f"vos.{name} is {getattr(self, name)}", "1 or more")
        for name in ("context_frames", "radius_cells", "short_side", "max_sequences", "pictures"):
            _require(getattr(self, name) >= 0, f"vos.{name} is {getattr(self, name)}", "0 or more")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """All evaluations of one set of weights; a part that is None is not run."""

    flow: FlowEvalConfig | None = None
    """Optical flow against ground truth and classical baselines."""

    probe: ProbeConfig | None = None
    """Linear segmentation probe."""

    vos: VosConfig | None = None
    """Video object segmentation by label propagation."""

    seed: int = 0
    """Seeds the head's initial values, its batches and the random encoder (ours)."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; auto = the GPU if there is one. Scores are bitwise repeatable on the CPU
    (ours)."""

    threads: int = 0
    """CPU threads of torch while scoring; 0 = as many as torch takes. Small models on busy machines are
    several times faster with 1 (ours)."""

    def __post_init__(self) -> None:
        _require(self.threads >= 0, f"eval.threads is {self.threads}", "0 (torch's choice) or more")
