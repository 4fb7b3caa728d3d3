"""Two views of one image by VICReg's recipe (Bardes, Ponce, LeCun 2022; its code's `augmentations.py`).

Random resized crop, mirroring, colour jitter, grey, blur, solarization, in this order. The mean and deviation
of ImageNet are left to the model, so a view stays an image. All is drawn before the image is decoded: the crops say
at which scale.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from pipeline.augment.colour import JitterSteps, apply_jitter, blur, draw_jitter, solarize, to_grey
from pipeline.augment.frames import Frame, choose_reduction, reduce_box
from pipeline.augment.geometry import CropBox, cut_and_resize, draw_between, draw_resized_crop, mirror
from pipeline.stream_config import ViewAugmentConfig


@dataclass(frozen=True)
class ViewDraws:
    """What was drawn for one view."""

    box: CropBox
    """At full scale."""
    mirrored: bool
    jitter: JitterSteps
    grey: bool
    blur_sigma_px: float
    """0: no blur."""
    solarized: bool


def make_views(frame: Frame, config: ViewAugmentConfig, rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
    """Two independent views of an image.

    Args:
        frame: the image, of any size; a crop smaller than the view is enlarged.
        config: the recipe.
        rng: the sample's generator; every draw comes from it.

    Returns:
        Two arrays size x size x 3 uint8 RGB.

    Raises:
        ValueError: the image is damaged.
    """
    first, second = (_draw_view(frame.size, config, which, rng) for which in (0, 1))
    reduction = choose_reduction(frame, (first.box, second.box), (config.size, config.size))
    image = frame.decode(reduction)
    return _make_view(image, reduction, first, config.size), _make_view(image, reduction, second, config.size)


def _draw_view(size: tuple[int, int], config: ViewAugmentConfig, which: int, rng: random.Random) -> ViewDraws:
    return ViewDraws(
        box=draw_resized_crop(*size, config.area, config.aspect, rng),
        mirrored=rng.random() < config.flip,
        jitter=draw_jitter(config.jitter, rng),
        grey=rng.random() < config.grey,
        blur_sigma_px=draw_between(rng, *config.blur_sigma_px) if rng.random() < config.blur[which] else 0.0,
        solarized=rng.random() < config.solarize[which],
    )


def _make_view(image: np.ndarray, reduction: int, draws: ViewDraws, size: int) -> np.ndarray:
    view = cut_and_resize(image, reduce_box(draws.box, reduction, image), size, size)
    if draws.mirrored:
        view = mirror(view)
    view = apply_jitter(view, draws.jitter)
    if draws.grey:
        view = to_grey(view)
    if draws.blur_sigma_px:
        view = blur(view, draws.blur_sigma_px)
    return solarize(view) if draws.solarized else view
