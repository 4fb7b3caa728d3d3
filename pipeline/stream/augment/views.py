"""Two views of one image by VICReg's recipe (Bardes, Ponce, LeCun 2022; its code's `augmentations.py`).

Random resized crop, mirroring, colour jitter, grey, blur, solarization, in this order. The mean and deviation
of ImageNet are left to the model, so a view stays an image. All is drawn before the image is decoded: the crops say
at which scale.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from mcjepa.pipeline.settings.stream import ViewAugmentConfig
from mcjepa.pipeline.stream.augment.colour import (
    Filter,
    JitterSteps,
    apply_filters,
    blur,
    draw_jitter,
    jitter_filters,
    solarize,
    to_grey,
)
from mcjepa.pipeline.stream.augment.geometry import (
    CropBox,
    FrameSource,
    choose_reduction,
    cut_and_resize,
    draw_between,
    draw_resized_crop,
    mirror,
    reduce_box,
)


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


def make_views(
    frame: FrameSource,
    config: ViewAugmentConfig,
    rng: random.Random,
    out: Sequence[np.ndarray | None] = (None, None),
) -> tuple[np.ndarray, np.ndarray]:
    """Two independent views of an image.

    Args:
        frame: the image, of any size; a crop smaller than the view is enlarged.
        config: the recipe.
        rng: the sample's generator; every draw comes from it.
        out: where the views are written, size x size x 3 uint8 each; None for arrays of their own.

    Returns:
        Two arrays size x size x 3 uint8 RGB.

    Raises:
        ValueError: the image is damaged.
    """
    size = frame.size
    first, second = (_draw_view(size, config, which, rng) for which in (0, 1))
    reduction = choose_reduction(frame, (first.box, second.box), (config.size, config.size))
    image = frame.decode(reduction)
    return (
        apply_filters(image, _view_filters(image, reduction, first, config.size), out[0]),
        apply_filters(image, _view_filters(image, reduction, second, config.size), out[1]),
    )


def _draw_view(size: tuple[int, int], config: ViewAugmentConfig, which: int, rng: random.Random) -> ViewDraws:
    return ViewDraws(
        box=draw_resized_crop(*size, config.area, config.aspect, rng),
        mirrored=rng.random() < config.flip,
        jitter=draw_jitter(config.jitter, rng),
        grey=rng.random() < config.grey,
        blur_sigma_px=draw_between(rng, *config.blur_sigma_px) if rng.random() < config.blur[which] else 0.0,
        solarized=rng.random() < config.solarize[which],
    )


def _view_filters(image: np.ndarray, reduction: int, draws: ViewDraws, size: int) -> list[Filter]:
    box = reduce_box(draws.box, reduction, image)
    filters: list[Filter] = [partial(cut_and_resize, box=box, height=size, width=size)]
    if draws.mirrored:
        filters.append(mirror)
    filters += jitter_filters(draws.jitter)
    if draws.grey:
        filters.append(to_grey)
    if draws.blur_sigma_px:
        filters.append(partial(blur, sigma_px=draws.blur_sigma_px))
    if draws.solarized:
        filters.append(solarize)
    return filters
