"""Two frames of a clip as a training pair: ARFlow's augmentation, the same for both frames."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial

import numpy as np

from mcjepa.pipeline.settings.stream import PairAugmentConfig
from mcjepa.pipeline.stream.augment.colour import Filter, apply_filters, draw_jitter, jitter_filters
from mcjepa.pipeline.stream.augment.geometry import (
    FrameSource,
    choose_reduction,
    cut_and_resize,
    draw_below,
    draw_scaled_crop,
    mirror,
    reduce_box,
)


def choose_frames(frame_count: int, rng: random.Random, config: PairAugmentConfig) -> tuple[int, int]:
    """Which two frames of a clip make the pair, in the order of the pair.

    Args:
        frame_count: frames of the clip.
        rng: the sample's generator.
        config: distance of the frames and share of swapped pairs.

    Raises:
        ValueError: the clip is too short for the distance.
    """
    if frame_count <= config.frame_gap:
        raise ValueError(f"{frame_count} frames, expected more than frame_gap={config.frame_gap}")
    first = draw_below(rng, frame_count - config.frame_gap)
    second = first + config.frame_gap
    return (second, first) if rng.random() < config.swap else (first, second)


def make_pair(
    frame0: FrameSource,
    frame1: FrameSource,
    config: PairAugmentConfig,
    rng: random.Random,
    out: Sequence[np.ndarray | None] = (None, None),
) -> tuple[np.ndarray, np.ndarray]:
    """Cut, mirror and colour two frames alike; both are decoded at the same scale.

    Args:
        frame0, frame1: frames of one size.
        config: the recipe.
        rng: the sample's generator, behind the draws of `choose_frames`.
        out: where the frames are written, crop_height x crop_width x 3 uint8 each; None for arrays of their own.

    Returns:
        Two arrays crop_height x crop_width x 3 uint8 RGB.

    Raises:
        ValueError: the frames differ in size or are damaged.
    """
    size, other_size = frame0.size, frame1.size
    if size != other_size:
        raise ValueError(f"frames of {size} and {other_size} px, expected one size")
    box = draw_scaled_crop(*size, config.crop, config.scale, rng)
    mirrored = rng.random() < config.flip
    jitter = draw_jitter(config.jitter, rng)
    reduction = min(choose_reduction(frame, (box,), config.crop) for frame in (frame0, frame1))
    height, width = config.crop
    behind: list[Filter] = [mirror] * mirrored + jitter_filters(jitter)
    pair = []
    for frame, place in zip((frame0, frame1), out, strict=True):
        image = frame.decode(reduction)
        cut = partial(cut_and_resize, box=reduce_box(box, reduction, image), height=height, width=width)
        pair.append(apply_filters(image, [cut, *behind], place))
    return pair[0], pair[1]
