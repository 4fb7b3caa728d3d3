"""Settings of the segmentation probe.

Every field is written into the card of the score it shapes. Tags of origin: [C]/[S] the paper as two or one
account report it, [D] the named parent's default, "ours" where neither says anything.
"""

from __future__ import annotations

from dataclasses import dataclass

from evals.checks import MAX_LEVEL, require


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
        require(good, f"probe.levels is {self.levels}", f"one or more of 1..{MAX_LEVEL}")
        require(self.steps > 0, f"probe.steps is {self.steps}", "1 or more")
        inside = 0 <= self.warmup_steps < self.steps
        require(inside, f"probe.warmup_steps is {self.warmup_steps}", f"0..{self.steps - 1} (below probe.steps)")
        require(self.lr > 0, f"probe.lr is {self.lr}", "above 0")
        require(self.weight_decay >= 0, f"probe.weight_decay is {self.weight_decay}", "0 or more")
        for name in ("batch", "loss_stride_px", "encode_batch"):
            require(getattr(self, name) >= 1, f"probe.{name} is {getattr(self, name)}", "1 or more")
        finest = 2 ** min(self.levels)
        divides = finest % self.loss_stride_px == 0
        require(
            divides,
            f"probe.loss_stride_px is {self.loss_stride_px}",
            f"a divisor of the finest stride {finest}",
        )
        for name in ("crop_px", "max_train", "max_val", "pictures"):
            require(getattr(self, name) >= 0, f"probe.{name} is {getattr(self, name)}", "0 or more")
