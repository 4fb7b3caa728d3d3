"""Flow sets and test parts of benchmarks in their official layouts, with tiny frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mcjepa.data_prep.corpora.flow.files import write_flo
from mcjepa.data_prep.corpora.flow.scans import SINTEL_TEST_SCENES
from mcjepa.data_prep.corpora.image_files import write_png
from tests.data_prep import layouts


def write_all(root: Path) -> Path:
    """All sets beside each other, each in the folder that its archive has."""
    layouts.things3d(root / "FlyingThings3D")
    layouts.hd1k(root / "HD1K")
    layouts.kitti2015(root / "KITTI/data_scene_flow")
    layouts.sintel(root / "MPI-Sintel-complete")
    layouts.chairs(root / "FlyingChairs_release")
    for number in ("0000000", "0000001"):
        for k in "01":
            layouts.picture(root / f"FlyingChairs2/val/{number}-img_{k}.png")
        for way, u_px in (("01", 2), ("10", -2)):
            layouts.flow(root / f"FlyingChairs2/val/{number}-flow_{way}.flo", u_px)
            write_png(root / f"FlyingChairs2/val/{number}-occ_{way}.png", np.zeros(layouts.SIZE, np.uint8))
    for frame in (10, 11):
        layouts.picture(root / f"middlebury/other-data/Venus/frame{frame}.png")
    unknown = np.full((*layouts.SIZE, 2), 1.67e9, np.float32)
    unknown[2, 3] = (3.0, 4.0)
    (root / "middlebury/other-gt-flow/Venus").mkdir(parents=True)
    write_flo(root / "middlebury/other-gt-flow/Venus/flow10.flo", unknown)
    return root


def kitti_test(root: Path, folder: str, count: int) -> Path:
    """KITTI's test part: `count` pairs of frames."""
    for number in range(count):
        for frame in (10, 11):
            layouts.picture(root / f"testing/{folder}/{number:06d}_{frame}.png")
    return root


def sintel_test(root: Path) -> Path:
    """The twelve scenes with 552 pairs in all in each pass."""
    for scene in SINTEL_TEST_SCENES:
        for name in ("clean", "final"):
            for number in range(1, 48):
                layouts.picture(root / f"test/{name}/{scene}/frame_{number:04d}.png")
    return root
