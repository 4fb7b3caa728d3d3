"""What metrics and settings mean, as data: which end of a metric is better, its unit, which rows it is a mean of, and
which settings of an evaluation decide whether two of its numbers may be compared, and which names are of one set.
It imports nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Better = Literal["lower", "higher", "neither"]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A family of metrics."""

    pattern: str
    """Regular expression of their names, without the suffix of a baseline."""

    better: Better
    """Which end is better; `neither` for a spread and a count."""

    unit: str = ""
    """px, %, or nothing for parts of 1."""


MEASURES = (
    Measure(pattern=r"(miou|pixel_accuracy|mean_accuracy)_std", better="neither", unit="%"),
    Measure(pattern=r"epe(_.*)?", better="lower", unit="px"),
    Measure(pattern=r"(fl|over)_.*", better="lower", unit="%"),
    Measure(pattern=r"[jf]_decay", better="lower"),
    Measure(pattern=r"jf|[jf]_(mean|recall)", better="higher"),
    Measure(pattern=r"miou|pixel_accuracy|mean_accuracy|iou_.*", better="higher", unit="%"),
    Measure(pattern=r"(knn\d+|linear)_top[15]", better="higher", unit="%"),
)
"""The first that fits holds."""

UNKNOWN = Measure(pattern="", better="neither")


def measure_of(metric: str) -> Measure:
    """What is known of a metric; nothing is better or worse of one that is in no family.

    >>> measure_of("epe_matched").better, measure_of("miou_std").better, measure_of("fl_all").unit
    ('lower', 'neither', '%')
    """
    return next((measure for measure in MEASURES if re.fullmatch(measure.pattern, metric)), UNKNOWN)


@dataclass(frozen=True, kw_only=True)
class ItemMean:
    """How a metric, or the nearest number to it, is a mean over the rows of a score's table."""

    metric: str
    """Name of the metric."""

    columns: tuple[str, ...]
    """Columns whose mean is taken, equally."""

    weight: str = ""
    """Column that weighs the rows; all alike if it is empty."""

    unit: str
    """Column that names what is drawn together when items are drawn again: pairs, images, sequences."""

    exact: bool = True
    """False where the metric is no mean over items (mIoU of one confusion matrix): the items' own mean stands in."""


ITEM_MEANS = {
    "flow": (
        ItemMean(metric="epe", columns=("epe",), weight="valid_pixels", unit="pair"),
        ItemMean(metric="fl_all", columns=("fl_all",), weight="valid_pixels", unit="pair"),
        ItemMean(metric="over_3px", columns=("over_3px",), weight="valid_pixels", unit="pair"),
    ),
    "probe": (
        ItemMean(metric="miou", columns=("miou",), unit="image", exact=False),
        ItemMean(metric="pixel_accuracy", columns=("pixel_accuracy",), weight="counted_pixels", unit="image"),
    ),
    "vos": (
        ItemMean(metric="jf", columns=("j_mean", "f_mean"), unit="sequence"),
        ItemMean(metric="j_mean", columns=("j_mean",), unit="sequence"),
        ItemMean(metric="f_mean", columns=("f_mean",), unit="sequence"),
    ),
    "classify": (
        ItemMean(metric="linear_top1", columns=("linear_top1",), weight="val_images", unit="class"),
        ItemMean(metric="knn20_top1", columns=("knn20_top1",), weight="val_images", unit="class"),
    ),
}
ITEM_MEANS |= {"probe-knn": ITEM_MEANS["probe"], "finetune": ITEM_MEANS["probe"]}
"""Kind of a score to the metrics that its rows tell the uncertainty of."""

ITEM_NAMES = {
    "flow": ("pair", "height_px", "width_px", "valid_pixels"),
    "probe": ("image", "counted_pixels"),
    "probe-knn": ("image", "counted_pixels"),
    "finetune": ("image", "counted_pixels"),
    "vos": ("sequence", "object", "frames"),
    "classify": ("class", "train_images", "val_images"),
}
"""Kind of a score to the columns of its rows that say what was scored: the same rows, the same task."""

SET_NAMES = {"davis": "davis2017"}
"""Names that a set also has, or had in older scores, to the one that its scores bear."""

IMMATERIAL = frozenset(
    {"root", "sets", "pictures", "masks", "overlays", "baselines", "random_baseline", "encode_batch", "tile_cells"}
    | {"workers", "cache", "cache_gib", "keep_features", "checkpoint_steps", "checkpoint_every"}
    | {"subset", "max_pairs", "max_sequences", "max_val", "seeds"}
)
"""Settings that change no number of the model's on the same items (fine-tuning's `micro_batch` does, as batch
normalisation sees it). Which items were scored their rows say; the number of seeds is told beside the numbers. All
other settings say how a model is run or a head is trained: they must be equal between models, and estimates that are
files have none."""


def present_name(score_name: str) -> str:
    """The name that a score bears today.

    >>> present_name("vos/davis"), present_name("vos/davis2016")
    ('vos/davis2017', 'vos/davis2016')
    """
    kind, slash, data_set = score_name.partition("/")
    return f"{kind}{slash}{SET_NAMES.get(data_set, data_set)}"


def kind_of(score_name: str) -> str:
    """The kind of a score by its name.

    >>> kind_of("flow/sintel-clean")
    'flow'
    """
    return score_name.partition("/")[0]
