"""What all heads of a probe's score share: images, protocol, cache; and the features that come of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mcjepa.data_prep.corpora.items import LabelledImage
from mcjepa.data_prep.errors import DataError
from mcjepa.evals.probe.cache import FeatureCache
from mcjepa.evals.probe.feature_file import FeatureFile
from mcjepa.evals.probe.features import EncodingPlan
from mcjepa.evals.probe.settings import ProbeConfig, both_sides
from mcjepa.evals.progress import OnEvent
from mcjepa.evals.subject import ModelUnderTest

Tell = Callable[[str, int, int], None]
"""Told of a phase, how much of it is done, and how much there is."""


@dataclass(frozen=True, kw_only=True)
class ProbeData:
    """The two parts of a labelled set."""

    root: Path
    train: Sequence[LabelledImage]
    val: Sequence[LabelledImage]
    classes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ProbeRun:
    """What all heads of a score share."""

    data: ProbeData
    """Images, as many as are used."""
    config: ProbeConfig
    """Protocol."""
    cache: FeatureCache
    """Where features are kept."""
    digests: tuple[str, str]
    """Of the training and of the validation images."""
    shown: tuple[str, ...]
    """Validation images of which predictions are kept for pictures."""
    on_event: OnEvent
    """Progress."""

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the levels, finest first."""
        return tuple(2**level for level in sorted(self.config.levels))

    def plan(self, training: bool) -> EncodingPlan:
        """How images are encoded: training images whole, validation images in the test's windows."""
        window, stride = both_sides(self.config.window_px), both_sides(self.config.window_stride_px)
        return EncodingPlan(
            strides=self.strides,
            classes=len(self.data.classes),
            resize=self.config.resize_px,
            window=(0, 0) if training else window,
            window_stride=(0, 0) if training else stride,
            resize_labels=training,
        )


def features_of(model: ModelUnderTest, run: ProbeRun, *, training: bool, tell: Tell) -> FeatureFile:
    """Features of the training or of the validation images.

    Raises:
        DataError: none could be read, or they have no room.
    """
    items = run.data.train if training else run.data.val
    part = "training" if training else "validation"
    plan, digest = run.plan(training), run.digests[0 if training else 1]
    features = run.cache.features(model, items, digest, plan, lambda done: tell(f"encode {part}", done, len(items)))
    require_some(features, features.failed, part, run)
    return features


def require_some(images: Sequence[object], failed: Sequence[str], part: str, run: ProbeRun) -> None:
    """Raises a DataError if no image of a part could be read."""
    if not images:
        reason = failed[0] if failed else "the list is empty"
        raise DataError(f"{part} images of {run.data.root}: {reason}; expected readable images; check the folder")


def device_of(model: ModelUnderTest) -> torch.device:
    """Where heads are fitted: beside the encoder."""
    found = getattr(model, "device", None)
    return found if isinstance(found, torch.device) else torch.device("cpu")
