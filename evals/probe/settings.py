"""Settings of the segmentation probe.

Every field is written into the card of the score it shapes. Tags of origin: [C]/[S] the paper as two or one
account report it, [D] the named parent's default, [I] inferred, "ours" where neither says anything.

`PROTOCOLS` are named sets of values. `vicregl-*` are the linear probes of VICRegL (Bardes et al. 2022,
github.com/facebookresearch/VICRegL, `segmentation/`) for ConvNeXt: batch normalisation and one 1x1 convolution on the
four concatenated stages, mmsegmentation's augmentation, the test in overlapping windows. VICRegL has no ConvNeXt
settings for Cityscapes: its schedule with mmsegmentation's sizes for that set stands in [I]. `cached` and `knn` are
ours, for minutes instead of days; steps times rate is the same in `cached` as in VICRegL's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mcjepa.data_prep.errors import DataError, nearest_name
from mcjepa.evals.progress import MAX_LEVEL, require

Sides = int | tuple[int, int]
"""One side in px for both, or (height, width)."""


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Segmentation probe on frozen features: a linear head's schedule is VICRegL's [D], its data are cached (ours)."""

    set: str = "camvid"
    """Set name, see `data_prep.corpora.SEGMENTATION_SETS`."""

    root: str = ""
    """Folder that the set's own archive unpacks to."""

    train_split: str = "train"
    """Split that the head is fitted on; VOC's augmented list is `trainaug` [D]."""

    val_split: str = "val"
    """Split that is scored [D]."""

    head: Literal["linear", "knn"] = "linear"
    """What is fitted: one 1x1 convolution [D], or nothing but the nearest training cells (ours)."""

    levels: tuple[int, ...] = (3, 4, 5, 6)
    """Pyramid levels that are concatenated; level l has stride 2**l: the four stage outputs [D]."""

    augment: Literal["none", "mmseg"] = "none"
    """Training images: none = as stored, encoded once and cached (ours); mmseg = random size, crop, flip and colours,
    which needs the encoder in every step [D]."""

    norm: Literal["statistics", "batch"] = "statistics"
    """Normalisation before the convolution: mean and deviation of all training features (ours), or batch
    normalisation with scale and shift [D: SyncBN]."""

    steps: int = 40_000
    """Optimiser steps of the head [D: 40k for VOC and Cityscapes, 160k for ADE20K]."""

    warmup_steps: int = 1_500
    """Linear warm-up, steps [D]."""

    poly_power: float = 1.0
    """Exponent of the decay (1 - step/steps)**power [D]."""

    lr: float = 1e-4
    """Peak learning rate of AdamW [D]."""

    weight_decay: float = 0.05
    """AdamW's decoupled weight decay [D]."""

    batch: int = 16
    """Images a step [D]."""

    crop_px: Sides = 512
    """Random training window, px, one side or [height, width]; from cached features it is aligned to the coarsest
    level's cells, and 0 is the whole image [D]."""

    resize_px: tuple[int, int] = (0, 0)
    """Images are resized to fit into this longest and shortest side, px, before anything else; [0, 0] = as stored
    [D: 2048 and 512]."""

    window_px: Sides = 0
    """Validation images are encoded and scored in overlapping windows, one side or [height, width]; 0 = whole images
    (ours) [D: 512]."""

    window_stride_px: Sides = 0
    """From one window to the next, px; 0 = the window's side, without overlap [D: 341]."""

    loss_stride_px: int = 1
    """Every how many-th pixel enters the training loss, a divisor of the finest level's stride; 1 = all of
    them [D]; the score always counts all."""

    knn_k: int = 30
    """Nearest training cells that vote (ours)."""

    knn_temperature: float = 0.07
    """Their votes are exp(cosine / temperature) [D: DINO]."""

    knn_cells: int = 16_384
    """Training cells kept in memory, drawn evenly from the images (ours)."""

    max_train: int = 0
    """Training images used, evenly spaced; 0 = all (ours)."""

    max_val: int = 0
    """Validation images scored, evenly spaced; 0 = all (ours)."""

    encode_batch: int = 8
    """Images of equal size encoded at once; changes the speed only (ours)."""

    workers: int = 4
    """Threads that read and augment training images while the encoder works (ours)."""

    seeds: tuple[int, ...] = ()
    """Seeds of the head, its batches and the random encoder; several give mean and standard deviation; empty =
    the evaluation's one seed (ours)."""

    cache: str = ""
    """Folder of the cached features; empty = `features` beside the folder of the results (ours)."""

    cache_gib: float = 64.0
    """Most that the folder may hold, GiB; the longest unused features make room (ours)."""

    cache_dtype: Literal["float16", "float32"] = "float16"
    """Number format of cached features (ours)."""

    keep_features: bool = True
    """Leave the features for the next run; false = remove them when the score is done (ours)."""

    checkpoint_steps: int = 1_000
    """The head in training is saved beside the features every so many steps; a run that was ended goes on from there.
    0 = never (ours)."""

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
        for name in ("lr", "knn_temperature", "cache_gib"):
            require(getattr(self, name) > 0, f"probe.{name} is {getattr(self, name)}", "above 0")
        for name in ("batch", "loss_stride_px", "encode_batch", "workers", "knn_k", "knn_cells"):
            require(getattr(self, name) >= 1, f"probe.{name} is {getattr(self, name)}", "1 or more")
        for name in ("weight_decay", "max_train", "max_val", "checkpoint_steps", "pictures"):
            require(getattr(self, name) >= 0, f"probe.{name} is {getattr(self, name)}", "0 or more")
        self._require_sides()
        finest = 2 ** min(self.levels)
        divides = finest % self.loss_stride_px == 0
        divisor = f"a divisor of the finest stride {finest}"
        require(divides, f"probe.loss_stride_px is {self.loss_stride_px}", divisor)
        batch_norm = self.augment == "none" or self.head == "knn" or self.norm == "batch"
        statistics = "probe.norm is statistics with augment mmseg"
        require(batch_norm, statistics, "batch: augmented images are not known beforehand")
        few = self.knn_k <= self.knn_cells
        require(few, f"probe.knn_k is {self.knn_k}", f"at most probe.knn_cells, {self.knn_cells}")
        once = len(set(self.seeds)) == len(self.seeds) and all(seed >= 0 for seed in self.seeds)
        require(once, f"probe.seeds is {self.seeds}", "different numbers of 0 or more")

    def _require_sides(self) -> None:
        for name in ("crop_px", "window_px", "window_stride_px", "resize_px"):
            height, width = both_sides(getattr(self, name))
            good = min(height, width) >= 0 and (height > 0) == (width > 0)
            require(good, f"probe.{name} is {getattr(self, name)}", "0, or sides above 0")
        overlaps = all(
            s <= w for s, w in zip(both_sides(self.window_stride_px), both_sides(self.window_px), strict=True)
        )
        stride = f"probe.window_stride_px is {self.window_stride_px}"
        require(overlaps, stride, f"at most probe.window_px, {self.window_px}: pixels between windows have no class")
        cropped = self.augment == "none" or both_sides(self.crop_px) != (0, 0)
        require(cropped, "probe.crop_px is 0 with augment mmseg", "a side above 0: random sizes need one window")


def both_sides(sides: Sides) -> tuple[int, int]:
    """(height, width) of a setting.

    >>> both_sides(512), both_sides((512, 1024))
    ((512, 512), (512, 1024))
    """
    return (sides, sides) if isinstance(sides, int) else sides


_VICREGL: Mapping[str, Any] = {
    "head": "linear",
    "levels": (3, 4, 5, 6),
    "augment": "mmseg",
    "norm": "batch",
    "steps": 40_000,
    "warmup_steps": 1_500,
    "poly_power": 1.0,
    "lr": 1e-4,
    "weight_decay": 0.05,
    "batch": 16,
    "crop_px": 512,
    "resize_px": (2048, 512),
    "window_px": 512,
    "window_stride_px": 341,
    "loss_stride_px": 1,
    "train_split": "train",
    "val_split": "val",
}
_WIDE = {"crop_px": (512, 1024), "resize_px": (2048, 1024), "window_px": (512, 1024), "window_stride_px": (341, 683)}
_STORED: Mapping[str, Any] = {"resize_px": (0, 0), "window_px": 0, "window_stride_px": 0, "val_split": "val"}

PROTOCOLS: Mapping[str, Mapping[str, Any]] = {
    "vicregl-voc": {**_VICREGL, "train_split": "trainaug"},
    "vicregl-ade20k": {**_VICREGL, "steps": 160_000},
    "vicregl-cityscapes": {**_VICREGL, **_WIDE},
    "cached": {
        **_STORED,
        "head": "linear",
        "augment": "none",
        "norm": "statistics",
        "steps": 2_000,
        "warmup_steps": 100,
        "lr": 2e-3,
        "batch": 16,
        "crop_px": 512,
        "loss_stride_px": 4,
    },
    "knn": {**_STORED, "head": "knn", "knn_k": 30, "knn_temperature": 0.07, "knn_cells": 16_384},
}
"""Protocol name to the settings it fixes; the others have their defaults."""

PROTOCOL_OF_SET: Mapping[str, str] = {
    "voc2012": "vicregl-voc",
    "ade20k": "vicregl-ade20k",
    "cityscapes": "vicregl-cityscapes",
}
"""The protocol in which a set's numbers are published; `cached` for all others."""

MOST_DIFFERENCES = 8


def protocol_settings(name: str) -> dict[str, Any]:
    """The settings that a protocol fixes.

    Raises:
        DataError: there is no such protocol.
    """
    if name not in PROTOCOLS:
        raise DataError(f"no protocol {name!r} of the probe: {nearest_name(name, PROTOCOLS)}")
    return dict(PROTOCOLS[name])


def describe_protocol(config: ProbeConfig) -> str:
    """The protocol nearest to the settings and every setting in which they depart from it, from the values alone.

    >>> describe_protocol(ProbeConfig(**protocol_settings("vicregl-ade20k")))
    'vicregl-ade20k'
    >>> describe_protocol(ProbeConfig(**protocol_settings("cached") | {"steps": 300}))
    'cached with steps 300'
    """
    departures = {name: _departures(config, name) for name in PROTOCOLS if PROTOCOLS[name]["head"] == config.head}
    nearest = min(departures, key=lambda name: len(departures[name]))
    found = departures[nearest]
    if len(found) > MOST_DIFFERENCES:
        return "own settings"
    return nearest + (f" with {', '.join(found)}" if found else "")


def _departures(config: ProbeConfig, protocol: str) -> list[str]:
    fields = dataclasses.asdict(config)
    capped = [f"{name} {fields[name]}" for name in ("max_train", "max_val") if fields[name]]
    return [f"{name} {fields[name]}" for name, value in PROTOCOLS[protocol].items() if fields[name] != value] + capped
