"""Readers of segmentation sets, each in the layout of its own archive: `fn(root, split)`.

Classes are 0.., void is 255 (`LabelledImage.read`); `train` and `val` are splits of every set. A split is what its list
names or, in a set without lists, all of its folder: an image without labels is an error, and so are labels without
their image.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from mcjepa.data_prep.corpora.items import UNKNOWN, VOID, Input, LabelledImage
from mcjepa.data_prep.corpora.places import Location
from mcjepa.data_prep.corpora.segmentation.classes import CITYSCAPES_LABELS, COCO_STUFF_UNUSED, VOC_CLASSES
from mcjepa.data_prep.corpora.trees import Tree, require_partners
from mcjepa.data_prep.errors import DataError


def classes_of(known: Mapping[int, int]) -> tuple[int, ...]:
    """Class of each of the 256 label values from those that the set knows; 255 is void, others are unknown.

    >>> classes_of({0: 255, 1: 0})[:3], classes_of({})[255]
    ((255, 0, -1), 255)
    """
    return tuple({VOID: VOID, **known}.get(label, UNKNOWN) for label in range(256))


VOC_CLASSES_OF = classes_of({label: label for label in range(len(VOC_CLASSES))})
CITYSCAPES_CLASSES_OF = classes_of({label: train_id for label, (_, train_id) in CITYSCAPES_LABELS.items()})
ADE20K_CLASSES_OF = classes_of({0: VOID, **{label: label - 1 for label in range(1, 151)}})
COCO_STUFF_LABELS = 182
COCO_LABELS = re.compile(r"\d+\.png")
"""Label maps of the set; mmsegmentation leaves NUMBER_labelTrainIds.png beside them."""
LABELS_OF_AUG = "SegmentationClassAug"


def voc2012_images(root: Location, split: str) -> list[LabelledImage]:
    """Pascal VOC 2012 (Everingham et al. 2010, host.robots.ox.ac.uk/pascal/VOC): ROOT = VOCdevkit/VOC2012.

    ImageSets/Segmentation/SPLIT.txt (`train`, `val`, `trainval`, one name a line), JPEGImages/NAME.jpg,
    SegmentationClass/NAME.png: palette ids, 0 background, 1..20 objects, 255 void (borders). SPLIT `trainaug` is
    the 10,582 images with the labels of Hariharan et al. 2011 in SegmentationClassAug/NAME.png (grey ids); its
    list may also hold lines "/JPEGImages/NAME.jpg /SegmentationClassAug/NAME.png".
    """
    tree = Tree(root)
    lines = tree.read_text(f"ImageSets/Segmentation/{split}.txt").splitlines()
    names = [line.split()[0].rpartition("/")[2].removesuffix(".jpg") for line in lines if line.strip()]
    labels = LABELS_OF_AUG if split == "trainaug" else "SegmentationClass"
    tree.keep("JPEGImages", labels)
    files = ((n, f"JPEGImages/{n}.jpg", f"{labels}/{n}.png") for n in names)
    return labelled_images(tree, split, files, classes=VOC_CLASSES_OF)


def cityscapes_images(root: Location, split: str) -> list[LabelledImage]:
    """Cityscapes (Cordts et al. 2016, cityscapes-dataset.com): ROOT holds leftImg8bit and gtFine.

    leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png, gtFine/SPLIT/CITY/NAME_gtFine_labelIds.png, 2048x1024. The
    label ids 0..33 become the 19 train ids by the official table (cityscapesScripts, labels.py).
    """
    tree = Tree(root)
    images = [n for n in tree.below(f"leftImg8bit/{split}") if n.endswith("_leftImg8bit.png")]
    names = [n.removeprefix(f"leftImg8bit/{split}/").removesuffix("_leftImg8bit.png") for n in images]
    labels = [f"gtFine/{split}/{name}_gtFine_labelIds.png" for name in names]
    there = [n for n in tree.below(f"gtFine/{split}") if n.endswith("_gtFine_labelIds.png")]
    require_partners(there, set(labels), tree.base, "image")
    return labelled_images(tree, split, zip(names, images, labels, strict=True), classes=CITYSCAPES_CLASSES_OF)


def ade20k_images(root: Location, split: str) -> list[LabelledImage]:
    """ADE20K, SceneParse150 (Zhou et al. 2017, sceneparsing.csail.mit.edu): ROOT = ADEChallengeData2016.

    images/{training,validation}/NAME.jpg, annotations/{training,validation}/NAME.png: 0 is anything else and
    void here, 1..150 are classes 0..149, named by objectInfo150.txt.
    """
    tree = Tree(root)
    part = {"train": "training", "val": "validation"}.get(split, split)
    images = [n for n in tree.below(f"images/{part}") if n.endswith(".jpg")]
    names = [n.removeprefix(f"images/{part}/").removesuffix(".jpg") for n in images]
    labels = [f"annotations/{part}/{name}.png" for name in names]
    there = [n for n in tree.below(f"annotations/{part}") if n.endswith(".png")]
    require_partners(there, set(labels), tree.base, "image")
    return labelled_images(tree, split, zip(names, images, labels, strict=True), classes=ADE20K_CLASSES_OF)


def ade20k_classes(root: Location) -> tuple[str, ...]:
    """Names of the 150 classes: the last column of objectInfo150.txt (Idx, Ratio, Train, Val, Name)."""
    lines = Tree(root).read_text("objectInfo150.txt").splitlines()[1:]
    return tuple(line.split("\t")[-1].strip() for line in lines if line.strip())


def coco_stuff_images(root: Location, split: str) -> list[LabelledImage]:
    """COCO-Stuff (Caesar et al. 2018, github.com/nightrome/cocostuff): ROOT holds images and their label maps.

    images/{train,val}2017/NAME.jpg with annotations/{train,val}2017/NAME.png (`stuffthingmaps_trainval2017`, also
    under that name), or SPADE's {train,val}_img/NAME.jpg with {train,val}_label/NAME.png. Labels are COCO's ids
    less one: things 0..90, of which 11 do not occur, stuff 91..181; 255 is void. Without those 11 they become
    the 171 classes, in order.
    """
    tree = Tree(root)
    layouts = [(f"images/{split}2017", f"{a}/{split}2017") for a in ("annotations", "stuffthingmaps_trainval2017")]
    for images, labels in (*layouts, (f"{split}_img", f"{split}_label")):
        if tree.below(images) and tree.below(labels):
            break
    names = [n.removeprefix(f"{images}/").removesuffix(".jpg") for n in tree.below(images) if n.endswith(".jpg")]
    files = [(n, f"{images}/{n}.jpg", f"{labels}/{n}.png") for n in names]
    there = [n for n in tree.below(labels) if COCO_LABELS.fullmatch(n.removeprefix(f"{labels}/"))]
    require_partners(there, {file for *_, file in files}, tree.base, "image")
    return labelled_images(tree, split, files, classes=coco_stuff_classes_of())


def coco_stuff_classes_of() -> tuple[int, ...]:
    """Class of each of the 256 label values.

    >>> [coco_stuff_classes_of()[label] for label in (0, 10, 11, 12, 90, 91, 181, 182, 255)]
    [0, 10, 255, 11, 255, 80, 170, -1, 255]
    """
    used = [label for label in range(COCO_STUFF_LABELS) if label not in COCO_STUFF_UNUSED]
    return classes_of(dict.fromkeys(COCO_STUFF_UNUSED, VOID) | {label: n for n, label in enumerate(used)})


def labelled_images(
    tree: Tree,
    split: str,
    files: Iterable[tuple[str, str, str]],
    void_label: int = VOID,
    classes: tuple[int, ...] = (),
) -> list[LabelledImage]:
    """Labelled images from (name, image file, label file).

    Raises:
        DataError: there is none, or a file is absent.
    """
    items = []
    for name, image, labels in files:
        for file in (image, labels):
            if not tree.has(file):
                raise DataError(
                    f"{tree.base}{file} is not there; expected every image of split {split!r}; complete the data set"
                )
        items.append(LabelledImage(name, tree.place(image), tree.place(labels), void_label, classes))
    if not items:
        raise DataError(f"{tree.root} has no image of split {split!r}; expected at least one; correct root or split")
    return items


def list_labelled(read: Callable[[Location, str], list[LabelledImage]], root: str, split: str = "") -> Iterator[Input]:
    """The images of a segmentation set alone, as inputs; SPLIT is `train` when empty."""
    tree = Tree(root)
    for item in read(root, split or "train"):
        name = str(item.image).removeprefix(tree.base)
        tree.keep(name.rpartition("/")[0])
        yield Input(name, str(item.image), "image", bytes=tree.bytes_of(name))


CAMVID_VOID = 11
CAMVID_CLASSES = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)
CAMVID_CLASSES_OF = classes_of({**{label: label for label in range(len(CAMVID_CLASSES))}, CAMVID_VOID: VOID})


def camvid_images(root: Location, split: str) -> list[LabelledImage]:
    """Labelled images of `train`, `val` or `test`, in the order of the split's list.

    Raises:
        DataError: the list, an image or its labels is absent.
    """
    tree = Tree(root)
    lines = [line.split() for line in tree.read_text(f"{split}.txt").splitlines() if line.strip()]
    names = [line[0].rpartition("/")[2] for line in lines]
    tree.keep(split, f"{split}annot")
    files = [(name, f"{split}/{name}", f"{split}annot/{name}") for name in names]
    return labelled_images(tree, split, files, classes=CAMVID_CLASSES_OF)
