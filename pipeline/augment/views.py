"""Two views of one image by VICReg's recipe (Bardes, Ponce, LeCun 2022; its code's `augmentations.py`).

Random resized crop, mirroring, colour jitter, grey, blur, solarization, in this order. The mean and deviation
of ImageNet are left to the model, so a view stays an image.
"""

from __future__ import annotations

import random

import numpy as np

from pipeline.augment.colour import apply_jitter, blur, draw_jitter, solarize, to_grey
from pipeline.augment.geometry import cut_and_resize, draw_between, draw_resized_crop, mirror
from pipeline.stream_config import ViewAugmentConfig


def make_views(image: np.ndarray, config: ViewAugmentConfig, rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
    """Two independent views of an image.

    Args:
        image: HxWx3 uint8 RGB, of any size; a crop smaller than the view is enlarged.
        config: the recipe.
        rng: the sample's generator; every draw comes from it.

    Returns:
        Two arrays size x size x 3 uint8 RGB.
    """
    return _make_view(image, config, 0, rng), _make_view(image, config, 1, rng)


def _make_view(image: np.ndarray, config: ViewAugmentConfig, which: int, rng: random.Random) -> np.ndarray:
    height, width = image.shape[:2]
    box = draw_resized_crop(height, width, config.area, config.aspect, rng)
    view = cut_and_resize(image, box, config.size, config.size)
    if rng.random() < config.flip:
        view = mirror(view)
    view = apply_jitter(view, draw_jitter(config.jitter, rng))
    if rng.random() < config.grey:
        view = to_grey(view)
    if rng.random() < config.blur[which]:
        view = blur(view, draw_between(rng, *config.blur_sigma_px))
    if rng.random() < config.solarize[which]:
        view = solarize(view)
    return view
