"""Segmentation sets: layouts, and how stored labels become classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mcjepa.data_prep.corpora import INPUT_READERS, SEGMENTATION_CLASSES, SEGMENTATION_SETS
from mcjepa.data_prep.corpora.image_files import read_ids
from mcjepa.data_prep.corpora.items import LabelledImage
from mcjepa.data_prep.corpora.segmentation.sets import (
    ADE20K_CLASSES_OF,
    CAMVID_CLASSES_OF,
    CITYSCAPES_CLASSES_OF,
    VOC_CLASSES_OF,
    coco_stuff_classes_of,
)
from mcjepa.data_prep.errors import DataError
from tests.data_prep import layouts

ROOTS = {
    "voc2012": ("voc/VOCdevkit/VOC2012", "val", 2, 21),
    "cityscapes": ("cityscapes", "train", 1, 19),
    "ade20k": ("ade20k/ADEChallengeData2016", "val", 2, 150),
    "coco-stuff": ("coco_stuff", "train", 13, 171),
}


@pytest.mark.parametrize("name", ROOTS)
def test_real_labels_are_classes_of_the_set_or_void(sample_data: Path, name: str) -> None:
    root, split, images, classes = ROOTS[name]
    items = SEGMENTATION_SETS[name](sample_data / root, split)
    names = SEGMENTATION_CLASSES[name](sample_data / root)
    assert (len(items), len(names), len(set(names))) == (images, classes, classes)
    for item in items:
        image, labels = item.read()
        assert image.shape == (*labels.shape, 3) and labels.dtype == np.int64
        assert set(np.unique(labels)) <= {*range(classes), 255} and (labels != 255).mean() > 0.5
    inputs = list(INPUT_READERS[name](str(sample_data / root), split))
    assert [i.uri for i in inputs] == [str(i.image) for i in items]
    assert all(i.kind == "image" and i.bytes == Path(i.uri).stat().st_size for i in inputs)


def stored_and_read(item: LabelledImage) -> dict[int, set[int]]:
    """Class or classes that each stored label became."""
    stored, read = read_ids(item.labels), item.read()[1]
    return {int(label): set(read[stored == label].tolist()) for label in np.unique(stored)}


def test_real_cityscapes_label_ids_become_train_ids(sample_data: Path) -> None:
    became = stored_and_read(SEGMENTATION_SETS["cityscapes"](sample_data / "cityscapes", "train")[0])
    names = SEGMENTATION_CLASSES["cityscapes"](sample_data / "cityscapes")
    assert became[7] == {names.index("road")} and became[26] == {names.index("car")} and became[33] == {18}
    assert became[0] == became[1] == became[3] == became[4] == {255} and became[11] == {names.index("building")}
    assert (
        sorted(c for c in CITYSCAPES_CLASSES_OF if 0 <= c < 255) == list(range(19))
        and len(CITYSCAPES_CLASSES_OF) == 256
    )


def test_real_ade20k_other_is_void_and_classes_start_at_zero(sample_data: Path) -> None:
    root = sample_data / "ade20k/ADEChallengeData2016"
    for item in SEGMENTATION_SETS["ade20k"](root, "val"):
        for label, classes in stored_and_read(item).items():
            assert classes == {255 if label == 0 else label - 1}
    assert SEGMENTATION_CLASSES["ade20k"](root)[:3] == ("wall", "building, edifice", "sky")
    assert len(ADE20K_CLASSES_OF) == 256 and ADE20K_CLASSES_OF[150] == 149


def test_coco_stuff_labels_skip_the_things_that_do_not_occur(sample_data: Path, tmp_path: Path) -> None:
    names = SEGMENTATION_CLASSES["coco-stuff"](tmp_path)
    classes = coco_stuff_classes_of()
    known = {
        0: "person",
        12: "stop sign",
        61: "chair",
        80: "sink",
        89: "toothbrush",
        91: "banner",
        156: "sky-other",
        181: "wood",
    }
    assert {label: names[classes[label]] for label in known} == known
    assert [label for label in range(182) if classes[label] == 255] == [11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90]
    item = SEGMENTATION_SETS["coco-stuff"](sample_data / "coco_stuff", "train")[0]
    assert all(len(c) == 1 and c != {label} for label, c in stored_and_read(item).items() if 11 < label < 255)


def test_coco_stuff_is_read_in_its_official_folders(tmp_path: Path) -> None:
    for folder in ("annotations", "stuffthingmaps_trainval2017"):
        root = tmp_path / folder
        layouts.picture(root / "images/val2017/000000000139.jpg")
        (root / folder / "val2017").mkdir(parents=True)
        layouts.write_png(root / folder / "val2017/000000000139.png", np.full(layouts.SIZE, 91, np.uint8))
        (item,) = SEGMENTATION_SETS["coco-stuff"](root, "val")
        assert set(np.unique(item.read()[1])) == {80}
        with pytest.raises(DataError, match="no image of split 'train'"):
            SEGMENTATION_SETS["coco-stuff"](root, "train")


@pytest.mark.parametrize(
    ("name", "image", "labels"),
    [
        ("cityscapes", "leftImg8bit/val/a/{}_leftImg8bit.png", "gtFine/val/a/{}_gtFine_labelIds.png"),
        ("ade20k", "images/validation/{}.jpg", "annotations/validation/{}.png"),
        ("coco-stuff", "images/val2017/{}.jpg", "annotations/val2017/{}.png"),
        ("coco-stuff", "val_img/{}.jpg", "val_label/{}.png"),
    ],
)
def test_labels_whose_image_is_lost_are_an_error_and_no_smaller_set(
    tmp_path: Path, name: str, image: str, labels: str
) -> None:
    for number in ("000001", "000002"):
        layouts.picture(tmp_path / image.format(number))
        layouts.picture(tmp_path / labels.format(number))
        layouts.picture(tmp_path / labels.format(number).replace("labelIds.", "color.").replace(".png", "_other.png"))
    if name == "ade20k":
        for path in tmp_path.rglob("*_other.png"):
            path.unlink()
    assert len(SEGMENTATION_SETS[name](tmp_path, "val")) == 2
    (tmp_path / image.format("000001")).unlink()
    with pytest.raises(DataError, match=r"000001.*\.png is there without its image; expected both or neither"):
        SEGMENTATION_SETS[name](tmp_path, "val")


def test_labels_outside_of_vocs_list_are_no_part_of_the_split(tmp_path: Path) -> None:
    layouts.voc2012(tmp_path)
    (tmp_path / "JPEGImages/2008_000002.jpg").unlink()
    assert [item.name for item in SEGMENTATION_SETS["voc2012"](tmp_path, "train")] == ["2007_000001"]


def test_the_augmented_list_of_voc_has_labels_of_its_own(tmp_path: Path) -> None:
    layouts.voc2012(tmp_path)
    (plain,) = SEGMENTATION_SETS["voc2012"](tmp_path, "train")
    augmented = SEGMENTATION_SETS["voc2012"](tmp_path, "trainaug")
    assert [i.name for i in augmented] == ["2007_000001", "2008_000002"]
    assert set(np.unique(plain.read()[1])) == {255} and set(np.unique(augmented[0].read()[1])) == {20}
    (tmp_path / "SegmentationClassAug/2008_000002.png").unlink()
    with pytest.raises(DataError, match=r"2008_000002\.png is not there"):
        SEGMENTATION_SETS["voc2012"](tmp_path, "trainaug")
    with pytest.raises(DataError, match=r"val\.txt is not there"):
        SEGMENTATION_SETS["voc2012"](tmp_path, "val")


@pytest.mark.parametrize(
    ("name", "classes_of", "unknown", "expected"),
    [
        ("voc2012", VOC_CLASSES_OF, 21, "0..20"),
        ("cityscapes", CITYSCAPES_CLASSES_OF, 34, "0..33"),
        ("ade20k", ADE20K_CLASSES_OF, 151, "0..150"),
        ("camvid", CAMVID_CLASSES_OF, 12, "0..11"),
        ("coco-stuff", coco_stuff_classes_of(), 182, "0..181"),
    ],
)
def test_a_label_that_the_set_does_not_have_is_an_error_and_not_void(
    tmp_path: Path, name: str, classes_of: tuple[int, ...], unknown: int, expected: str
) -> None:
    layouts.picture(tmp_path / "a.png")
    item = LabelledImage("a", tmp_path / "a.png", tmp_path / "ids.png", classes=classes_of)
    layouts.write_png(item.labels, np.full(layouts.SIZE, unknown - 1, np.uint8))
    assert item.read()[1].max() <= 255
    layouts.write_png(item.labels, np.full(layouts.SIZE, 255, np.uint8))
    assert set(np.unique(item.read()[1])) == {255}
    layouts.write_png(item.labels, np.full(layouts.SIZE, unknown, np.uint8))
    with pytest.raises(DataError, match=rf"ids\.png has the label ids \[{unknown}\]; expected {expected}"):
        item.read()


def test_camvid_in_its_layout_has_eleven_classes_and_void(tmp_path: Path) -> None:
    for split, label in (("train", 10), ("val", 11)):
        layouts.picture(tmp_path / split / "a.png")
        (tmp_path / f"{split}annot").mkdir()
        layouts.write_png(tmp_path / f"{split}annot/a.png", np.full(layouts.SIZE, label, np.uint8))
        (tmp_path / f"{split}.txt").write_text(f"/SegNet/CamVid/{split}/a.png /SegNet/CamVid/{split}annot/a.png\n")
    assert set(np.unique(SEGMENTATION_SETS["camvid"](tmp_path, "train")[0].read()[1])) == {10}
    assert set(np.unique(SEGMENTATION_SETS["camvid"](tmp_path, "val")[0].read()[1])) == {255}
    (tmp_path / "val.txt").write_text("")
    with pytest.raises(DataError, match="no image of split 'val'"):
        SEGMENTATION_SETS["camvid"](tmp_path, "val")
