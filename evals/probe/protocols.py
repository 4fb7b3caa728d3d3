"""Named protocols of the segmentation probe: what each setting is, and which protocol some settings are nearest to.

`vicregl-*` are the linear probes of VICRegL (Bardes et al. 2022, github.com/facebookresearch/VICRegL, `segmentation/`)
for ConvNeXt: batch normalisation and one 1x1 convolution on the four concatenated stages, mmsegmentation's
augmentation, the test in overlapping windows. VICRegL has no ConvNeXt settings for Cityscapes: its schedule with
mmsegmentation's sizes for that set stands in [I]. `cached` and
`knn` are ours, for minutes instead of days; steps times rate is the same in `cached` as in VICRegL's.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from mcjepa.data_prep.errors import DataError
from mcjepa.evals.probe.settings import ProbeConfig

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
        near = difflib.get_close_matches(name, PROTOCOLS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "choose one of them"
        raise DataError(f"no protocol {name!r} of the probe; expected one of {', '.join(PROTOCOLS)}; {hint}")
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
