"""Readers of corpora and data sets, one dict a kind; docs/corpora.md is their table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

from mcjepa.data_prep.corpora import davis, frame_sets, inputs, tars
from mcjepa.data_prep.corpora.census import Reading
from mcjepa.data_prep.corpora.flow import sets as flow_sets
from mcjepa.data_prep.corpora.flow import sets as flow_test_sets
from mcjepa.data_prep.corpora.flow.pairs import PairLister, list_pairs_as_inputs, read_pairs
from mcjepa.data_prep.corpora.flow.scans import FlowScan, scan_pairs, scan_test_pairs
from mcjepa.data_prep.corpora.items import FlowPair, Input, LabelledImage, MaskedVideo
from mcjepa.data_prep.corpora.moving_photos.sets import (
    moving_photos_classes,
    moving_photos_images,
    moving_photos_videos,
)
from mcjepa.data_prep.corpora.places import Location
from mcjepa.data_prep.corpora.segmentation import classes as segmentation_classes
from mcjepa.data_prep.corpora.segmentation import sets as segmentation_sets
from mcjepa.data_prep.corpora.segmentation.sets import CAMVID_CLASSES, camvid_images
from mcjepa.data_prep.corpora.trees import part_of

_PAIRS: dict[str, tuple[PairLister, str]] = {
    "chairs": (flow_sets.chairs, ""),
    "chairs-train": (flow_sets.chairs, "train"),
    "chairs-val": (flow_sets.chairs, "val"),
    "chairs2": (flow_sets.chairs2, "train"),
    "chairs2-val": (flow_sets.chairs2, "val"),
    "things3d-clean": (partial(flow_sets.things3d, "clean"), "TRAIN"),
    "things3d-clean-test": (partial(flow_sets.things3d, "clean"), "TEST"),
    "things3d-final": (partial(flow_sets.things3d, "final"), "TRAIN"),
    "things3d-final-test": (partial(flow_sets.things3d, "final"), "TEST"),
    "sintel-clean": (partial(flow_sets.sintel, "clean"), ""),
    "sintel-final": (partial(flow_sets.sintel, "final"), ""),
    "kitti2012": (flow_sets.kitti2012, ""),
    "kitti2015": (flow_sets.kitti2015, ""),
    "hd1k": (flow_sets.hd1k, ""),
    "middlebury": (partial(flow_sets.middlebury, "other-data"), ""),
    "middlebury-grey": (partial(flow_sets.middlebury, "other-data-gray"), ""),
}
"""Flow set to the function that lists its pairs, and its split."""

FLOW_SETS: dict[str, Callable[[Location], list[FlowPair]]] = {
    **{name: partial(read_pairs, lister, split) for name, (lister, split) in _PAIRS.items()},
    "moving-photos": partial(read_pairs, flow_sets.moving_photos, ""),
}
"""Set name to `fn(root)`: all its pairs with ground truth; one that is not whole is an error."""


class FreeReader(Protocol):
    """A reader of any files."""

    def __call__(self, root: str, split: str = "", reading: Reading | None = None) -> Iterator[Input]:
        """The inputs of a corpus; what is no input is counted."""
        ...


class FlowScanner(Protocol):
    """`scan_pairs` of one set."""

    def __call__(self, root: Location, *, subset: bool = False) -> FlowScan:
        """The set's pairs, and those that it lacks."""
        ...


FLOW_SCANS: dict[str, FlowScanner] = {
    **{name: partial(scan_pairs, name, lister, split) for name, (lister, split) in _PAIRS.items()},
    "moving-photos": partial(scan_pairs, "moving-photos", flow_sets.moving_photos, ""),
}
"""Set name to `fn(root, subset=False)`: its whole pairs and what it lacks, for scoring."""

FLOW_TEST_SETS: dict[str, Callable[[Location], list[FlowPair]]] = {
    "sintel-test": partial(scan_test_pairs, flow_test_sets.sintel_test),
    "kitti2012-test": partial(scan_test_pairs, flow_test_sets.kitti2012_test),
    "kitti2015-test": partial(scan_test_pairs, flow_test_sets.kitti2015_test),
}
"""Test part of a benchmark to `fn(root)`: its pairs, without ground truth."""

SEGMENTATION_SETS: dict[str, Callable[[Location, str], list[LabelledImage]]] = {
    "voc2012": segmentation_sets.voc2012_images,
    "cityscapes": segmentation_sets.cityscapes_images,
    "ade20k": segmentation_sets.ade20k_images,
    "coco-stuff": segmentation_sets.coco_stuff_images,
    "camvid": camvid_images,
    "moving-photos": moving_photos_images,  # type: ignore[dict-item]  # a local folder only
}
"""Set name to `fn(root, split)`, split `train` or `val`."""

SEGMENTATION_CLASSES: dict[str, Callable[[Location], tuple[str, ...]]] = {
    "voc2012": lambda root: segmentation_classes.VOC_CLASSES,
    "cityscapes": lambda root: segmentation_classes.CITYSCAPES_CLASSES,
    "ade20k": segmentation_sets.ade20k_classes,
    "coco-stuff": lambda root: segmentation_classes.COCO_STUFF_CLASSES,
    "camvid": lambda root: CAMVID_CLASSES,
    "moving-photos": moving_photos_classes,  # type: ignore[dict-item]
}
"""Set name to `fn(root)`: the names of its classes; 255 is void."""

VOS_SETS: dict[str, Callable[[Location], list[MaskedVideo]]] = {
    "davis2016": davis.davis2016_videos,
    "davis2017": davis.davis_videos,
    "davis2017-test-dev": davis.davis2017_test_videos,
    "moving-photos": moving_photos_videos,  # type: ignore[dict-item]
}
"""Set name to `fn(root)`: sequences with masks."""

FREE_READERS: dict[str, FreeReader] = {
    "videos": inputs.list_videos,
    "images": inputs.list_images,
    "imagefolder": inputs.list_image_classes,
    "imagenet": inputs.list_imagenet,
    "frame-folders": inputs.list_frame_folders,
    "tars": tars.list_tars,
    "webdataset": tars.list_webdataset,
}
"""Readers of any files: they count what they pass over, and what they take can be chosen."""

DIVISIBLE: dict[str, Callable[[str, str], str]] = {
    **dict.fromkeys(("videos", "images", "imagefolder", "tars", "webdataset"), part_of),
    "imagenet": lambda root, split: part_of(root, split or "train"),
}
"""Readers to whom each file is what it is by itself, so that stretches of a listing can be read apart, to
`fn(root, split)`: what they list. A sequence of frames may lie on both sides of what is between."""

INPUT_READERS: dict[str, Callable[[str, str], Iterator[Input]]] = {
    **FREE_READERS,
    "davis": davis.list_davis,
    "camvid": inputs.list_camvid,
    "sintel": frame_sets.list_sintel,
    "flyingthings3d": frame_sets.list_things3d,
    "kitti2012-multiview": frame_sets.list_kitti2012_multiview,
    "kitti2015-multiview": frame_sets.list_kitti2015_multiview,
    "hd1k-sequences": frame_sets.list_hd1k_sequences,
    **{name: partial(list_pairs_as_inputs, lister, split) for name, (lister, split) in _PAIRS.items()},
    **{
        name: partial(segmentation_sets.list_labelled, SEGMENTATION_SETS[name])
        for name in ("voc2012", "cityscapes", "ade20k", "coco-stuff")
    },
    "moving-photos": inputs.list_moving_photos,
    "packaged-videos": inputs.list_packaged_videos,
    "packaged-photos": inputs.list_packaged_photos,
}
"""Reader name to `fn(root, split)`: the inputs of a corpus, in a fixed order. A flow set's gives its pairs."""
