"""A probe's whole score: protocols, seeds, both heads, what is written, what is missing, and real samples."""

from __future__ import annotations

import csv
import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from mcjepa.data_prep.corpora import SEGMENTATION_CLASSES, SEGMENTATION_SETS
from mcjepa.data_prep.corpora.image_files import write_id_png
from mcjepa.data_prep.corpora.items import LabelledImage
from mcjepa.data_prep.errors import DataError
from mcjepa.evals.models import EvalModel, LoadedModel, load_model, random_twin
from mcjepa.evals.probe.images import LabelledSet
from mcjepa.evals.probe.score import score_probe
from mcjepa.evals.probe.settings import PROTOCOLS, ProbeConfig, describe_protocol, protocol_settings
from mcjepa.evals.progress import EvalEvent
from tests.evals.labelled_sets import write_items
from tests.own_files import png_of_size

CONFIG = ProbeConfig(
    set="bands", steps=25, warmup_steps=5, lr=0.05, batch=4, crop_px=0, loss_stride_px=4, encode_batch=3, pictures=1
)
NAMES = ("sky/a.png", "b", "c d", "e", "f")


@pytest.fixture
def loaded(foreign_model: Callable[..., EvalModel]) -> LoadedModel:
    """Colours as features; its rival sees nothing."""

    class Blind:
        def features(self, image_B3HW: torch.Tensor) -> list[torch.Tensor]:
            return [torch.ones_like(level) for level in foreign_model().features(image_B3HW)]

    return LoadedModel(model=foreign_model(), name="m", digest="9be", random_model=Blind())  # type: ignore[arg-type]


@pytest.fixture
def data(tmp_path: Path) -> LabelledSet:
    """Bands of five classes."""
    train = write_items(tmp_path / "train", [(64, 80)] * 6)
    return LabelledSet(
        root=tmp_path, train=train, val=write_items(tmp_path / "val", [(64, 80), (70, 90)]), classes=NAMES
    )


def score_in(tmp_path: Path, loaded: LoadedModel, data: LabelledSet, **changes: object):
    """The score of `CONFIG` with changes."""
    config = dataclasses.replace(CONFIG, **changes)  # type: ignore[arg-type]
    return score_probe(loaded, data, config, 5, tmp_path / "results/probe/bands")


def rows_of(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file."""
    with path.open() as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norm": "batch"},
        {"head": "knn", "knn_cells": 200, "knn_k": 5},
        {"window_px": 64, "window_stride_px": 32, "resize_px": (120, 100)},
        {"augment": "mmseg", "norm": "batch", "crop_px": (64, 80), "steps": 25, "warmup_steps": 2},
    ],
    ids=["cached", "batch-norm", "knn", "windows", "mmseg"],
)
def test_every_protocol_beats_the_model_that_sees_nothing_and_repeats_itself(
    tmp_path: Path, loaded: LoadedModel, data: LabelledSet, changes: dict[str, object]
) -> None:
    score = score_in(tmp_path, loaded, data, **changes)
    assert score.metrics["miou"] > score.metrics["miou_random"] + 15
    assert score.card.complete and score.card.seeds == (5,) and score.card.weights_digest == "9be"
    assert score.name == ("probe-knn/bands" if "head" in changes else "probe/bands")
    assert score_in(tmp_path, loaded, data, **changes).metrics == score.metrics


def test_the_score_tells_its_protocol_and_writes_its_tables_and_pictures(
    tmp_path: Path, loaded: LoadedModel, data: LabelledSet
) -> None:
    events: list[EvalEvent] = []
    out = tmp_path / "results/probe/bands"
    score = score_probe(loaded, data, CONFIG, 5, out, events.append)
    assert {"iou_a", "iou_c_d", "iou_a_random"} <= set(score.metrics) and score.rivals == ("random",)
    assert "cached with" in score.card.head and "24 channels" in score.card.head and "float16" in score.card.head
    assert "80x64, 90x70 px" in score.card.resolution and score.card.frames == 2
    assert score.pictures[0].columns == ("image", "truth", "model", "random encoder")
    assert [picture.path.name for picture in score.pictures] == ["000.png", "confusion.png"]
    assert {"digest", "encode training", "encode validation", "head", "predict"} == {event.phase for event in events}
    confusion = np.array([[int(v) for k, v in row.items() if k != "truth"] for row in rows_of(out / "confusion.csv")])
    assert confusion.shape == (5, 5) and confusion.sum() == 64 * 80 + 70 * 90
    listed = rows_of(out / "classes.csv")
    assert [int(row["true_pixels"]) for row in listed] == confusion.sum(1).tolist()
    for row, hit, union in zip(
        listed, np.diag(confusion), confusion.sum(0) + confusion.sum(1) - np.diag(confusion), strict=True
    ):
        assert row["iou"] == "" if union == 0 else float(row["iou"]) == pytest.approx(100 * hit / union)
    assert [row["image"] for row in score.table] == ["0", "1"]


@pytest.mark.parametrize("changes", [{}, {"augment": "mmseg", "norm": "batch", "crop_px": 64}], ids=["cached", "mmseg"])
def test_a_head_that_diverges_is_an_error_and_no_low_score(
    tmp_path: Path, loaded: LoadedModel, data: LabelledSet, changes: dict[str, object]
) -> None:
    with pytest.raises(DataError, match=r"the head's loss is (nan|inf) at step \d+; .*lower probe\.lr"):
        score_in(tmp_path, loaded, data, lr=1e36, warmup_steps=0, **changes)


def test_classes_whose_names_differ_by_signs_only_keep_a_metric_each(
    tmp_path: Path, loaded: LoadedModel, data: LabelledSet
) -> None:
    """Every class of classes.csv has its IoU among the metrics, whatever letters its name has."""
    names = ("a b", "0000/IMG_1.png", "a-b", "0004/IMG_1.png", "seen at random")
    score = score_in(tmp_path, loaded, dataclasses.replace(data, classes=names))
    listed = rows_of(tmp_path / "results/probe/bands/classes.csv")
    for key, rival in (("iou", ""), ("iou_random", "_random")):
        expected = {row["class"]: float(row[key]) for row in listed if row[key]}
        found = {
            name: score.metrics[f"iou_{metric}{rival}"]
            for name, metric in zip(names, ("a_b_0", "img_1_1", "a_b_2", "img_1_3", "seen_at_random_4"), strict=True)
            if f"iou_{metric}{rival}" in score.metrics
        }
        assert found == pytest.approx(expected) and len(expected) >= 3
    assert sum(name.startswith("iou_") for name in score.metrics) == sum(
        bool(row[key]) for row in listed for key in ("iou", "iou_random")
    )


def test_several_seeds_give_mean_and_deviation_of_single_scores(
    tmp_path: Path, loaded: LoadedModel, data: LabelledSet
) -> None:
    changes = {"steps": 8, "warmup_steps": 0, "loss_stride_px": 8}
    single = [score_in(tmp_path, loaded, data, **changes, seeds=(seed,)).metrics for seed in (0, 1, 2)]
    several = score_in(tmp_path, loaded, data, **changes, seeds=(0, 1, 2))
    for name in ("miou", "pixel_accuracy", "mean_accuracy", "miou_random"):
        base, rival = (name.removesuffix("_random"), "_random") if name.endswith("_random") else (name, "")
        values = [metrics[name] for metrics in single]
        assert several.metrics[name] == pytest.approx(np.mean(values))
        assert several.metrics[f"{base}_std{rival}"] == pytest.approx(np.std(values, ddof=1))
    assert several.metrics["miou_std"] > 0 and "miou_std" not in single[0]
    assert several.card.seeds == (0, 1, 2) and "mean over the seeds" in several.card.aggregation
    table = rows_of(tmp_path / "results/probe/bands/seeds.csv")
    assert [float(row["miou"]) for row in table] == pytest.approx([metrics["miou"] for metrics in single])


def test_our_model_has_a_random_encoder_a_seed(tmp_path: Path, weights_folder: Path, data: LabelledSet) -> None:
    model = load_model(weights_folder, torch.device("cpu"))
    ours = LoadedModel(model=model, name="m", random_model=random_twin(model, 0))
    quick = {"steps": 2, "warmup_steps": 0, "loss_stride_px": 8, "pictures": 0}
    score = score_in(tmp_path, ours, data, **quick, seeds=(1, 2))
    kept = list((tmp_path / "features").glob("*/"))
    assert len(kept) == 2 * 3  # training and validation features of our encoder and of two random ones
    assert score.metrics["miou_std_random"] > 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "features").rglob("maps.bin")}
    knn = score_in(tmp_path, ours, data, **quick, head="knn", knn_cells=100, knn_k=3, seeds=(1, 2))
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "features").rglob("maps.bin")}
    assert knn.card.schedule == "none"


def harmed(data: LabelledSet, harm: str) -> Sequence[LabelledImage]:
    """The validation images with one of them harmed."""
    bad = data.val[1]
    if harm == "class":
        write_id_png(Path(bad.labels), np.full((70, 90), 77, np.uint8))
    elif harm == "size":
        write_id_png(Path(bad.labels), np.zeros((70, 91), np.uint8))
    elif harm == "large labels":
        Path(bad.labels).write_bytes(png_of_size(40_000, 40_000))
    elif harm == "large image":
        Path(bad.image).write_bytes(png_of_size(40_000, 40_000))
    else:
        Path(bad.image).write_bytes(Path(bad.image).read_bytes()[:100])
    return data.val


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        ("class", r"\[77\]; expected 0..4"),
        ("size", "one size"),
        ("torn", "not a readable image"),
        ("large labels", "no readable label map"),
        ("large image", "not a readable image"),
    ],
)
def test_an_image_that_cannot_be_scored_is_named_and_not_averaged_away(
    tmp_path: Path, loaded: LoadedModel, data: LabelledSet, harm: str, reason: str
) -> None:
    whole = score_in(tmp_path, loaded, dataclasses.replace(data, val=data.val[:1]))
    score = score_in(tmp_path, loaded, dataclasses.replace(data, val=harmed(data, harm)))
    assert not score.card.complete and score.card.frames == 1 and len(score.table) == 1
    assert score.metrics == whole.metrics
    assert len(score.card.failed) == 1 and score.card.failed[0].startswith("1: ")
    assert re.search(reason, score.card.failed[0])


@pytest.mark.parametrize("augment", ["none", "mmseg"])
def test_a_training_image_that_cannot_be_read_is_named_too(
    tmp_path: Path, loaded: LoadedModel, data: LabelledSet, augment: str
) -> None:
    Path(data.train[2].image).write_bytes(b"")
    changes = {"augment": augment, "norm": "batch", "crop_px": 64, "steps": 2, "warmup_steps": 0}
    score = score_in(tmp_path, loaded, data, **changes)
    assert [reason[:3] for reason in score.card.failed] == ["2: "]
    assert score.card.split.startswith("fitted to 5 images of train")


def test_void_labels_are_not_scored_and_nothing_but_void_is_refused(
    tmp_path: Path, loaded: LoadedModel, data: LabelledSet
) -> None:
    labels = np.full((70, 90), 255, np.uint8)
    write_id_png(Path(data.val[1].labels), labels)
    score = score_in(tmp_path, loaded, data)
    assert score.table[1]["counted_pixels"] == 0 and math.isnan(score.table[1]["miou"])  # type: ignore[arg-type]
    assert score.to_dict()["table"][1]["miou"] is None and score.card.complete
    with pytest.raises(DataError, match=r"all 1 validation images .* are void"):
        score_in(tmp_path, loaded, dataclasses.replace(data, val=data.val[1:]))


def test_probe_without_readable_images_is_refused(tmp_path: Path, loaded: LoadedModel, data: LabelledSet) -> None:
    bad = LabelledImage("bad", tmp_path / "no.png", tmp_path / "no.png")
    for changes in ({}, {"augment": "mmseg", "norm": "batch", "crop_px": 64}):
        with pytest.raises(DataError, match=r"training images.*bad"):
            score_in(tmp_path, loaded, dataclasses.replace(data, train=[bad]), **changes)
    with pytest.raises(DataError, match=r"validation images.*bad"):
        score_in(tmp_path, loaded, dataclasses.replace(data, val=[bad]))
    with pytest.raises(DataError, match=r"training images of .* has nothing to score; expected readable images"):
        score_in(tmp_path, loaded, dataclasses.replace(data, train=[]))


@pytest.mark.parametrize(
    ("name", "root", "split"),
    [
        ("voc2012", "voc/VOCdevkit/VOC2012", "val"),
        pytest.param("ade20k", "ade20k/ADEChallengeData2016", "val", marks=pytest.mark.slow),
        pytest.param("cityscapes", "cityscapes", "train", marks=pytest.mark.slow),
        ("camvid", "camvid/CamVid", "val"),
    ],
)
def test_real_samples_are_probed_in_the_sets_own_windows(
    sample_data: Path, tmp_path: Path, loaded: LoadedModel, name: str, root: str, split: str
) -> None:
    folder = sample_data / root
    items = SEGMENTATION_SETS[name](folder, split)[:2]
    data = LabelledSet(root=folder, train=items, val=items, classes=SEGMENTATION_CLASSES[name](folder))
    settings = protocol_settings({"camvid": "cached", "voc2012": "vicregl-voc"}.get(name, f"vicregl-{name}"))
    quick = {"set": name, "steps": 3, "warmup_steps": 0, "batch": 2, "loss_stride_px": 8, "lr": 0.05}
    config = ProbeConfig(**settings | quick, random_baseline=False)
    score = score_probe(loaded, data, config, 0, tmp_path / "results/probe" / name)
    assert score.card.complete and score.card.frames == len(items) and 0 < score.metrics["pixel_accuracy"] <= 100
    classes = {row["class"] for row in rows_of(tmp_path / "results/probe" / name / "classes.csv")}
    assert classes == set(data.classes)


def test_a_protocol_is_told_from_the_values_alone() -> None:
    for name in PROTOCOLS:
        assert describe_protocol(ProbeConfig(**protocol_settings(name))) == name
    changed = ProbeConfig(**protocol_settings("vicregl-cityscapes") | {"window_px": 1024, "max_val": 7})
    assert describe_protocol(changed) == "vicregl-cityscapes with window_px 1024, max_val 7"
    with pytest.raises(DataError, match="did you mean 'vicregl-voc'"):
        protocol_settings("vicregl-vocc")


@pytest.mark.parametrize(
    "wrong",
    [
        {"window_px": 64, "window_stride_px": 65},
        {"crop_px": (64, 0)},
        {"resize_px": (512, 0)},
        {"knn_k": 30, "knn_cells": 20},
        {"seeds": (1, 1)},
        {"cache_gib": 0.0},
        {"augment": "mmseg", "norm": "statistics"},
        {"augment": "mmseg", "norm": "batch", "crop_px": 0},
    ],
)
def test_settings_that_contradict_themselves_are_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"probe.({'|'.join(wrong)}) .*expected"):
        ProbeConfig(**wrong)  # type: ignore[arg-type]
