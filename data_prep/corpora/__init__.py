"""Readers of corpora and data sets, one dict a kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from data_prep.corpora import flow_sets, inputs
from data_prep.corpora.camvid import CAMVID_CLASSES, camvid_images
from data_prep.corpora.davis import davis_videos
from data_prep.corpora.items import FlowPair, Input, LabelledImage, MaskedVideo
from data_prep.corpora.moving_photos_sets import (
    moving_photos_classes,
    moving_photos_images,
    moving_photos_videos,
)

INPUT_READERS: dict[str, Callable[[str, str], Iterator[Input]]] = {
    "videos": inputs.list_videos,
    "images": inputs.list_images,
    "frame-folders": inputs.list_frame_folders,
    "davis": inputs.list_davis,
    "camvid": inputs.list_camvid,
    "moving-photos": inputs.list_moving_photos,
    "packaged-videos": inputs.list_packaged_videos,
    "packaged-photos": inputs.list_packaged_photos,
}
"""Reader name to `fn(root, split)`: the inputs of a corpus, in a fixed order."""

FLOW_SETS: dict[str, Callable[[Path], list[FlowPair]]] = {
    "chairs": flow_sets.chairs_pairs,
    "chairs-val": flow_sets.chairs_validation_pairs,
    "sintel-clean": flow_sets.sintel_clean_pairs,
    "sintel-final": flow_sets.sintel_final_pairs,
    "kitti2012": flow_sets.kitti2012_pairs,
    "middlebury": flow_sets.middlebury_pairs,
    "moving-photos": flow_sets.moving_photos_pairs,
}
"""Set name to `fn(root)`: all its pairs with ground truth."""

SEGMENTATION_SETS: dict[str, Callable[[Path, str], list[LabelledImage]]] = {
    "camvid": camvid_images,
    "moving-photos": moving_photos_images,
}
"""Set name to `fn(root, split)`, split `train` or `val`."""

SEGMENTATION_CLASSES: dict[str, Callable[[Path], tuple[str, ...]]] = {
    "camvid": lambda root: CAMVID_CLASSES,
    "moving-photos": moving_photos_classes,
}
"""Set name to `fn(root)`: the names of its classes; 255 is void."""

VOS_SETS: dict[str, Callable[[Path], list[MaskedVideo]]] = {
    "davis": davis_videos,
    "moving-photos": moving_photos_videos,
}
"""Set name to `fn(root)`: sequences with masks."""
