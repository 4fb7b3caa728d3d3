"""Readers of optical flow data sets: every pair with ground truth, in the layout of the set's own archive.

All ground truth is flow from the first frame to the second in pixels, u right, v down.
"""

from __future__ import annotations

from pathlib import Path

from data_prep.corpora.items import FlowPair
from data_prep.corpora.trees import existing_folder
from data_prep.errors import DataError

VALIDATION_MARK = "2"


def chairs_pairs(root: Path) -> list[FlowPair]:
    """FlyingChairs (Dosovitskiy et al. 2015): ROOT = FlyingChairs_release.

    data/00001_img1.ppm, data/00001_img2.ppm, data/00001_flow.flo; dense, no occlusion masks.
    """
    folder = existing_folder(existing_folder(root) / "data")
    flows = sorted(folder.glob("*_flow.flo"))
    return _complete([_chairs_pair(folder, path.name.split("_")[0]) for path in flows], folder)


def chairs_validation_pairs(root: Path) -> list[FlowPair]:
    """The official validation part: samples marked 2 in FlyingChairs_train_val.txt (line n is sample n)."""
    listing = existing_folder(root) / "FlyingChairs_train_val.txt"
    if not listing.is_file():
        raise DataError(f"{listing} is not there; expected the official split; put it into the folder")
    marks = listing.read_text().split()
    names = [f"{number:05d}" for number, mark in enumerate(marks, 1) if mark == VALIDATION_MARK]
    return _complete([_chairs_pair(root / "data", name) for name in names], root / "data")


def sintel_clean_pairs(root: Path) -> list[FlowPair]:
    """MPI-Sintel, clean pass (see `_sintel_pairs`)."""
    return _sintel_pairs(root, "clean")


def sintel_final_pairs(root: Path) -> list[FlowPair]:
    """MPI-Sintel, final pass (see `_sintel_pairs`)."""
    return _sintel_pairs(root, "final")


def kitti2012_pairs(root: Path) -> list[FlowPair]:
    """KITTI 2012 stereo/flow (Geiger et al. 2012): ROOT = data_stereo_flow.

    training/{colored_0|image_0}/000000_10.png and _11.png; flow_occ holds all known pixels, flow_noc those
    visible in both frames; both are sparse, with validity inside. The values of the two differ by up to
    2.5 px at object edges: score the non-occluded part with `read_truth(noc=True)`.
    """
    training = existing_folder(existing_folder(root) / "training")
    images = next((training / n for n in ("colored_0", "image_0") if (training / n).is_dir()), None)
    if images is None:
        raise DataError(f"{training} has no colored_0 or image_0; expected KITTI 2012's images; complete it")
    pairs = []
    for flow in sorted((training / "flow_occ").glob("*_10.png")):
        number = flow.name.split("_")[0]
        noc = training / "flow_noc" / flow.name
        pairs.append(
            FlowPair(
                number,
                images / flow.name,
                images / f"{number}_11.png",
                flow,
                "kitti-png",
                flow_noc=noc if noc.is_file() else None,
            )
        )
    return _complete(pairs, training / "flow_occ")


def middlebury_pairs(root: Path) -> list[FlowPair]:
    """Middlebury (Baker et al. 2011): ROOT holds other-data/SEQ/frame10.png, frame11.png, other-gt-flow.

    Ground truth other-gt-flow/SEQ/flow10.flo, unknown where > 1e9; sequences without it are left out.
    """
    folder = existing_folder(existing_folder(root) / "other-gt-flow")
    pairs = []
    for flow in sorted(folder.glob("*/flow10.flo")):
        frames = root / "other-data" / flow.parent.name
        pairs.append(FlowPair(flow.parent.name, frames / "frame10.png", frames / "frame11.png", flow))
    return _complete(pairs, folder)


def moving_photos_pairs(root: Path) -> list[FlowPair]:
    """Held-out part of a generated moving-photos folder: every pair of neighbouring frames, exact flow."""
    folder = existing_folder(existing_folder(root) / "heldout")
    pairs = []
    for flow in sorted(folder.glob("*/flow_*.flo")):
        number, place = int(flow.stem.split("_")[1]), flow.parent
        pairs.append(
            FlowPair(
                f"{place.name}/{number:04d}",
                place / f"frame_{number:04d}.png",
                place / f"frame_{number + 1:04d}.png",
                flow,
                occluded=place / f"occluded_{number:04d}.png",
            )
        )
    return _complete(pairs, folder)


def _chairs_pair(folder: Path, name: str) -> FlowPair:
    image0, image1 = (folder / f"{name}_img{k}.ppm" for k in (1, 2))
    return FlowPair(name, image0, image1, folder / f"{name}_flow.flo")


def _sintel_pairs(root: Path, rendering: str) -> list[FlowPair]:
    """MPI-Sintel (Butler et al. 2012): ROOT = MPI-Sintel-complete.

    training/{clean,final}/SCENE/frame_0001.png, training/flow/SCENE/frame_0001.flo (frame 1 to 2), masks
    occlusions and invalid (255: occluded; the pixel leaves the frame or its flow is unknown). Pairs without
    ground truth, or of which one frame is absent in this pass, are left out.
    """
    training = existing_folder(existing_folder(root) / "training")
    pairs = []
    for flow in sorted((training / "flow").glob("*/frame_*.flo")):
        scene, number = flow.parent.name, int(flow.stem.split("_")[1])
        frames = [training / rendering / scene / f"frame_{n:04d}.png" for n in (number, number + 1)]
        if not all(f.is_file() for f in frames):
            continue
        invalid, occluded = (training / m / scene / f"{flow.stem}.png" for m in ("invalid", "occlusions"))
        pairs.append(
            FlowPair(
                f"{scene}/{flow.stem}",
                frames[0],
                frames[1],
                flow,
                invalid=invalid if invalid.is_file() else None,
                occluded=occluded if occluded.is_file() else None,
            )
        )
    return _complete(pairs, training)


def _complete(pairs: list[FlowPair], folder: Path) -> list[FlowPair]:
    """The pairs themselves; no pair at all, or an absent file, is an error."""
    if not pairs:
        raise DataError(f"{folder} has no pair with ground truth; expected at least one; correct the root")
    for pair in pairs:
        for path in (pair.frame0, pair.frame1, pair.flow):
            if path is not None and not path.is_file():
                raise DataError(f"{path} is not there; expected the pair {pair.name} whole; complete the set")
    return pairs
