"""Two frames of a clip as a training pair: ARFlow's augmentation, the same for both frames."""

from __future__ import annotations

import random

import numpy as np

from pipeline.augment.colour import apply_jitter, draw_jitter
from pipeline.augment.frames import Frame, choose_reduction, reduce_box
from pipeline.augment.geometry import cut_and_resize, draw_below, draw_scaled_crop, mirror
from pipeline.stream_config import PairAugmentConfig


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
    frame0: Frame, frame1: Frame, config: PairAugmentConfig, rng: random.Random
) -> tuple[np.ndarray, np.ndarray]:
    """Cut, mirror and colour two frames alike; both are decoded at the same scale.

    Args:
        frame0, frame1: frames of one size.
        config: the recipe.
        rng: the sample's generator, behind the draws of `choose_frames`.

    Returns:
        Two arrays crop_height x crop_width x 3 uint8 RGB.

    Raises:
        ValueError: the frames differ in size or are damaged.
    """
    if frame0.size != frame1.size:
        raise ValueError(f"frames of {frame0.size} and {frame1.size} px, expected one size")
    box = draw_scaled_crop(*frame0.size, config.crop, config.scale, rng)
    mirrored = rng.random() < config.flip
    jitter = draw_jitter(config.jitter, rng)
    reduction = min(choose_reduction(frame, (box,), config.crop) for frame in (frame0, frame1))
    pair = []
    for frame in (frame0, frame1):
        image = frame.decode(reduction)
        cut = cut_and_resize(image, reduce_box(box, reduction, image), *config.crop)
        pair.append(apply_jitter(mirror(cut) if mirrored else cut, jitter))
    return pair[0], pair[1]
