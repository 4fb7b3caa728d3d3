"""Two frames of a clip as a training pair: ARFlow's augmentation, the same for both frames."""

from __future__ import annotations

import random

import numpy as np

from pipeline.augment.colour import apply_jitter, draw_jitter
from pipeline.augment.geometry import cut_and_resize, draw_below, draw_scaled_crop, mirror
from pipeline.stream_config import PairAugmentConfig


def choose_frames(frame_count: int, config: PairAugmentConfig, rng: random.Random) -> tuple[int, int]:
    """Which two frames of a clip make the pair, in the order of the pair.

    Args:
        frame_count: frames of the clip.
        config: distance of the frames and share of swapped pairs.
        rng: the sample's generator.

    Raises:
        ValueError: the clip is too short for the distance.
    """
    if frame_count <= config.frame_gap:
        raise ValueError(f"{frame_count} frames, expected more than frame_gap={config.frame_gap}")
    first = draw_below(rng, frame_count - config.frame_gap)
    second = first + config.frame_gap
    return (second, first) if rng.random() < config.swap else (first, second)


def make_pair(
    frame0: np.ndarray, frame1: np.ndarray, config: PairAugmentConfig, rng: random.Random
) -> tuple[np.ndarray, np.ndarray]:
    """Cut, mirror and colour two frames alike.

    Args:
        frame0, frame1: HxWx3 uint8 RGB of one size.
        config: the recipe.
        rng: the sample's generator, behind the draws of `choose_frames`.

    Returns:
        Two arrays crop_height x crop_width x 3 uint8 RGB.

    Raises:
        ValueError: the frames differ in size.
    """
    if frame0.shape != frame1.shape:
        raise ValueError(f"frames of {frame0.shape[:2]} and {frame1.shape[:2]} px, expected one size")
    box = draw_scaled_crop(frame0.shape[0], frame0.shape[1], config.crop, config.scale, rng)
    mirrored = rng.random() < config.flip
    jitter = draw_jitter(config.jitter, rng)
    pair = []
    for frame in (frame0, frame1):
        cut = cut_and_resize(frame, box, *config.crop)
        pair.append(apply_jitter(mirror(cut) if mirrored else cut, jitter))
    return pair[0], pair[1]
