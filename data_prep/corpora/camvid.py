"""CamVid road scenes (Brostow et al. 2009) in the 11-class layout of the SegNet tutorial, 480x360.

    ROOT/train/NAME.png  ROOT/trainannot/NAME.png   (val, test alike)     ROOT is the folder `CamVid`
    ROOT/train.txt                                  lines "CamVid/train/NAME.png CamVid/trainannot/NAME.png"

Labels 0..10 are classes, 11 is void.
"""

from __future__ import annotations

from pathlib import Path

from data_prep.corpora.items import LabelledImage
from data_prep.corpora.trees import existing_folder
from data_prep.errors import DataError

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


def camvid_images(root: Path, split: str) -> list[LabelledImage]:
    """Labelled images of `train`, `val` or `test`, in the order of the split's list.

    Raises:
        DataError: the list, an image or its labels is absent.
    """
    path = existing_folder(root) / f"{split}.txt"
    if not path.is_file():
        raise DataError(f"{path} is not there; expected the list of a CamVid split; correct root or split")
    names = [Path(line.split()[0]).name for line in path.read_text().splitlines() if line.strip()]
    items = [LabelledImage(n, root / split / n, root / f"{split}annot" / n, CAMVID_VOID) for n in names]
    missing = [p for item in items for p in (item.image, item.labels) if not p.is_file()]
    if missing or not items:
        found = f"{missing[0]} is not there" if missing else f"{path} is empty"
        raise DataError(f"{found}; expected every image of {path.name}; complete the data set")
    return items
