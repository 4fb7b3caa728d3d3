"""Masks of a whole sequence from its first one, by a model's features: a frame at a time, in and out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mcjepa.data_prep.corpora.items import MaskedVideo
from mcjepa.evals.subject import ModelUnderTest, features_by_stride, image_tensor, map_of_stride
from mcjepa.evals.vos.label_grid import encoded_size, first_labels, labels_to_mask
from mcjepa.evals.vos.propagation import propagate_labels
from mcjepa.evals.vos.sequence import Ids
from mcjepa.evals.vos.settings import VosConfig

OnFeatures = Callable[[int, Tensor], None]
"""Called with every frame's number and features (C, h, w)."""


def track_masks(
    model: ModelUnderTest, video: MaskedVideo, first_HW: Ids, config: VosConfig, on_features: OnFeatures | None = None
) -> Iterator[tuple[int, Ids]]:
    """Predicted masks of every frame after the first, as they are made.

    Args:
        model: gives the features.
        video: its frames; masks are not read.
        first_HW: object ids of the first frame; the masks have its size.
        config: protocol.
        on_features: sees the features too.

    Yields:
        The frame's number and its object ids (H, W).

    Raises:
        DataError: a frame cannot be read.
    """
    size = encoded_size(first_HW.shape, config)

    def features() -> Iterator[Tensor]:
        for index in range(len(video.frames)):
            map_Chw = encode_frame(model, video.read_frame(index), size, config.stride)
            if on_features:
                on_features(index, map_Chw)
            yield map_Chw

    grid = (-(-size[0] // config.stride), -(-size[1] // config.stride))
    first = first_labels(first_HW, int(first_HW.max()), grid, bilinear=config.first_labels == "bilinear")
    for index, (_, labels) in enumerate(propagate_labels(features(), first, config), start=1):
        yield index, labels_to_mask(labels, config.stride, size, first_HW.shape, config.stretch)


def encode_frame(model: ModelUnderTest, frame: NDArray[np.uint8], size: tuple[int, int], stride: int) -> Tensor:
    """Features (C, h, w) of one RGB frame at that size (H, W); cells beyond the frame are cut off."""
    if frame.shape[:2] != size:
        resized = cv2.resize(frame, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
        frame = np.asarray(resized, np.uint8)
    map_Chw = map_of_stride(features_by_stride(model, image_tensor(frame)), stride)[0]
    return map_Chw[:, : -(-size[0] // stride), : -(-size[1] // stride)]
