"""Writes small data sets in the official layouts of sets of which no real sample is at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mcjepa.data_prep.corpora.flow.files import write_flo, write_kitti_png
from mcjepa.data_prep.corpora.image_files import write_id_png, write_png

SIZE = (6, 8)


def picture(path: Path, value: int = 0) -> None:
    """A small picture in the format of its suffix, `value` in its first pixel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.zeros((*SIZE, 3), np.uint8)
    image[0, 0] = value
    write_png(path, image)  # by content: readers do not look at the suffix


def flow(path: Path, u_px: float) -> None:
    """A flow file with u = `u_px` and v = row + 1, in the format of its suffix; KITTI's invalid in the first row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    field = np.zeros((*SIZE, 2), np.float32)
    field[..., 0] = u_px
    field[..., 1] = np.arange(1, SIZE[0] + 1)[:, None]
    if path.suffix == ".flo":
        write_flo(path, field)
    elif path.suffix == ".png":
        write_kitti_png(path, field, np.arange(SIZE[0])[:, None].repeat(SIZE[1], 1) > 0)
    else:
        planes = np.concatenate([field, np.zeros((*SIZE, 1), np.float32)], axis=2)
        header = f"PF\n{SIZE[1]} {SIZE[0]}\n-1.0\n".encode()
        path.write_bytes(header + planes[::-1].astype("<f4").tobytes())


def things3d(root: Path) -> Path:
    """FlyingThings3D: two frames of one scene, both cameras and directions, one scene of TEST."""
    for scene in ("TRAIN/A/0000", "TEST/B/0007"):
        for camera, letter in (("left", "L"), ("right", "R")):
            for number in (6, 7):
                picture(root / f"frames_cleanpass/{scene}/{camera}/{number:04d}.png", number)
                picture(root / f"frames_finalpass/{scene}/{camera}/{number:04d}.png", 100 + number)
                for way, sign in (("Future", 1), ("Past", -1)):
                    name = f"into_{way.lower()}/{camera}/OpticalFlowInto{way}_{number:04d}_{letter}.pfm"
                    flow(root / "optical_flow" / scene / name, sign * number)
    return root


def hd1k(root: Path) -> Path:
    """HD1K: sequences of three and two frames."""
    for sequence, frames in ((0, (10, 11, 12)), (3, (5, 6))):
        for number in frames:
            picture(root / f"hd1k_input/image_2/{sequence:06d}_{number:04d}.png", number)
            flow(root / f"hd1k_flow_gt/flow_occ/{sequence:06d}_{number:04d}.png", number)
    return root


def kitti2015(root: Path) -> Path:
    """KITTI 2015: two pairs with object maps, the frames between them of the multi-view extension."""
    for number in (0, 4):
        for frame in (9, 10, 11):
            picture(root / f"training/image_2/{number:06d}_{frame:02d}.png", frame)
            picture(root / f"testing/image_2/{number:06d}_{frame:02d}.png", frame)
        for part in ("flow_occ", "flow_noc"):
            flow(root / f"training/{part}/{number:06d}_10.png", 2 + number)
        (root / "training/obj_map").mkdir(exist_ok=True)
        write_png(root / f"training/obj_map/{number:06d}_10.png", np.full(SIZE, number, np.uint8))
    return root


def sintel(root: Path) -> Path:
    """MPI-Sintel: three frames of a scene with two flows, all masks, and a test scene."""
    for number in (1, 2, 3):
        for part in ("clean", "final"):
            picture(root / f"training/{part}/alley_1/frame_{number:04d}.png", number)
            picture(root / f"test/{part}/wall/frame_{number:04d}.png", number)
    for number in (1, 2):
        flow(root / f"training/flow/alley_1/frame_{number:04d}.flo", number)
        for part in ("occlusions", "invalid"):
            (root / f"training/{part}/alley_1").mkdir(parents=True, exist_ok=True)
            write_png(root / f"training/{part}/alley_1/frame_{number:04d}.png", np.zeros(SIZE, np.uint8))
    return root


def chairs(root: Path) -> Path:
    """FlyingChairs: three pairs, the second one of the validation part."""
    for number in (1, 2, 3):
        flow(root / f"data/{number:05d}_flow.flo", number)
        for k in (1, 2):
            picture(root / f"data/{number:05d}_img{k}.ppm", number)
    (root / "FlyingChairs_train_val.txt").write_text("1\n2\n1\n")
    return root


def davis(root: Path) -> Path:
    """DAVIS with the lists of both years: two sequences of two objects, one of them for validation."""
    for sequence in ("bear", "dog"):
        for number in range(3):
            picture(root / f"JPEGImages/480p/{sequence}/{number:05d}.jpg", number)
            mask = root / f"Annotations/480p/{sequence}/{number:05d}.png"
            mask.parent.mkdir(parents=True, exist_ok=True)
            ids = np.zeros(SIZE, np.uint8)
            ids[0, :2] = 1, 2
            write_id_png(mask, ids)
    for name, text in (("2017/val", "dog\n"), ("2016/train", "bear\n")):
        path = root / f"ImageSets/{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    lines = [f"/JPEGImages/480p/dog/{n:05d}.jpg /Annotations/480p/dog/{n:05d}.png \n" for n in range(3)]
    (root / "ImageSets/480p").mkdir()
    (root / "ImageSets/480p/val.txt").write_text("".join(lines))
    return root


def voc2012(root: Path) -> Path:
    """Pascal VOC 2012: one image with its own labels, and one of the augmented list in both forms of lines."""
    for name in ("2007_000001", "2008_000002"):
        picture(root / f"JPEGImages/{name}.jpg")
        for folder in ("SegmentationClass", "SegmentationClassAug"):
            (root / folder).mkdir(exist_ok=True)
            write_id_png(root / folder / f"{name}.png", np.full(SIZE, 20 if folder.endswith("Aug") else 255, np.uint8))
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/train.txt").write_text("2007_000001\n")
    lines = "2007_000001\n/JPEGImages/2008_000002.jpg /SegmentationClassAug/2008_000002.png\n"
    (root / "ImageSets/Segmentation/trainaug.txt").write_text(lines)
    return root
