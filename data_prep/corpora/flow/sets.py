"""Readers of optical flow sets: every pair with ground truth, in the layout of the set's own archive.

All ground truth is flow from the first frame to the second in pixels, u right, v down. Each function lists a
set's pairs by the names of their files: `fn(tree, split)`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

from mcjepa.data_prep.corpora.flow.pairs import PairFiles, pair_files, refuse_split
from mcjepa.data_prep.corpora.trees import Tree
from mcjepa.data_prep.errors import DataError

CHAIRS_MARKS = {"train": "1", "val": "2"}
CHAIRS_LIST = "FlyingChairs_train_val.txt"
CHAIRS2_SAMPLE = re.compile(r"[^/]+/(?P<number>[^/]+)-(?:flow_01\.flo|img_0\.png)")
THINGS3D_FLOW = re.compile(
    r"optical_flow/(?P<scene>.+)/(?P<direction>into_future|into_past)/(?P<camera>[^/]+)/"
    r"OpticalFlowInto(?:Future|Past)_(?P<number>\d+)_[LR]\.pfm"
)
SINTEL_FLOW = re.compile(r"training/flow/(?P<scene>[^/]+)/(?P<stem>frame_(?P<number>\d+))\.flo")
KITTI_FLOW = re.compile(r"training/flow_occ/(?P<file>(?P<number>\d+)_10\.png)")
MIDDLEBURY_FLOW = re.compile(r"other-gt-flow/(?P<sequence>[^/]+)/flow10\.flo")
MOVING_PHOTOS_FILE = re.compile(
    r"(?P<place>heldout/(?P<sequence>[^/]+))/(?P<kind>flow|frame)_(?P<number>\d+)\.(?:flo|png)"
)


def chairs(tree: Tree, split: str) -> Iterator[PairFiles]:
    """FlyingChairs (Dosovitskiy et al. 2015, lmb.informatik.uni-freiburg.de): ROOT = FlyingChairs_release.

    data/00001_img1.ppm, data/00001_img2.ppm, data/00001_flow.flo; dense, no occlusion masks. Line n of
    FlyingChairs_train_val.txt is 1 where pair n is of `train`, 2 where it is of `val`; empty split: all pairs.
    """
    tree.keep("data")
    if split and split not in CHAIRS_MARKS:
        raise DataError(f"FlyingChairs has no split {split!r}; expected `train` or `val`; correct it")
    if split:
        marks = tree.read_text(CHAIRS_LIST).split()
        names = [f"{number:05d}" for number, mark in enumerate(marks, 1) if mark == CHAIRS_MARKS[split]]
    else:
        flows = [n for n in tree.below("data") if n.endswith("_flow.flo")]
        names = [n.removeprefix("data/").removesuffix("_flow.flo") for n in flows]
    for name in names:
        start = f"data/{name}"
        yield pair_files(tree, name, f"{start}_img1.ppm", f"{start}_img2.ppm", f"{start}_flow.flo")


def chairs2(tree: Tree, split: str) -> Iterator[PairFiles]:
    """FlyingChairs2 (Ilg et al. 2018, lmb.informatik.uni-freiburg.de): ROOT = FlyingChairs2, splits train, val.

    SPLIT/0000000-img_0.png, -img_1.png, -flow_01.flo (0 to 1), -flow_10.flo (1 to 0), -occ_01.png (255: the
    point of image 0 cannot be seen in image 1), -occ_10.png: two pairs a sample, NUMBER/01 and NUMBER/10. Dense.
    Occlusion weights, object ids and motion boundaries are not read.
    """
    samples = {name.rpartition("-")[0]: found["number"] for name, found in _matching(tree, split, CHAIRS2_SAMPLE)}
    for start, number in samples.items():
        for way in ("01", "10"):
            frame0, frame1 = (f"{start}-img_{k}.png" for k in way)
            flow, occluded = f"{start}-flow_{way}.flo", f"{start}-occ_{way}.png"
            yield pair_files(tree, f"{number}/{way}", frame0, frame1, flow, occluded=occluded)


def things3d(rendering: str, tree: Tree, split: str) -> Iterator[PairFiles]:
    """FlyingThings3D (Mayer et al. 2016, lmb.informatik.uni-freiburg.de): both passes, cameras and directions.

    frames_{clean,final}pass/{TRAIN,TEST}/{A,B,C}/0000/{left,right}/0006.png (or frames_…pass_webp/….webp) and
    optical_flow/{TRAIN,TEST}/{A,B,C}/0000/into_future/left/OpticalFlowIntoFuture_0006_L.pfm, from frame 6 to 7,
    into_past/…/OpticalFlowIntoPast_0007_L.pfm, from frame 7 to 6. PFM of 3 channels u, v, 0, rows from the
    bottom; dense, some values are NaN or infinite and so not valid. The last frame's flow into the future and the
    first one's into the past lead to frames that are not there: left out. SPLIT: `TRAIN`, `TEST`, `TRAIN/A`, ….
    """
    layouts = ((f"frames_{rendering}pass", ".png"), (f"frames_{rendering}pass_webp", ".webp"))
    folder, suffix = next((x for x in layouts if tree.below(f"{x[0]}/{split}")), layouts[0])
    for flow, found in _matching(tree, f"optical_flow/{split}", THINGS3D_FLOW):
        scene, camera, direction, number = found["scene"], found["camera"], found["direction"], int(found["number"])
        place = f"{folder}/{scene}/{camera}"
        step = 1 if direction == "into_future" else -1
        frame0, frame1, further = (f"{place}/{number + n * step:04d}{suffix}" for n in (0, 1, 2))
        if tree.has(frame1) or tree.has(further):
            yield pair_files(tree, f"{scene}/{camera}/{direction}/{number:04d}", frame0, frame1, flow)


def sintel(rendering: str, tree: Tree, split: str) -> Iterator[PairFiles]:
    """MPI-Sintel (Butler et al. 2012, sintel.is.tue.mpg.de): ROOT = MPI-Sintel-complete.

    training/{clean,final}/SCENE/frame_0001.png, training/flow/SCENE/frame_0001.flo (frame 1 to 2), masks
    occlusions (255: not seen in the next frame; of the pixels that leave the frame some are marked and some are not)
    and invalid (255: the flow is not reliable, a few pixels). Frames without ground truth, and scenes that this pass
    does not have, are left out; so are, in preparation, pairs that lack a frame.
    """
    refuse_split("MPI-Sintel", split)
    tree.keep("training/invalid", "training/occlusions")
    scenes = {name.split("/")[2] for name in tree.below(f"training/{rendering}")}
    for flow, found in _matching(tree, "training/flow", SINTEL_FLOW):
        scene, stem, number = found["scene"], found["stem"], int(found["number"])
        frame0, frame1 = (f"training/{rendering}/{scene}/frame_{n:04d}.png" for n in (number, number + 1))
        if scene in scenes:
            invalid, occluded = (f"training/{part}/{scene}/{stem}.png" for part in ("invalid", "occlusions"))
            pair = pair_files(tree, f"{scene}/{stem}", frame0, frame1, flow, invalid=invalid, occluded=occluded)
            yield replace(pair, needed=False)


def kitti2012(tree: Tree, split: str) -> Iterator[PairFiles]:
    """KITTI 2012 stereo/flow (Geiger et al. 2012, cvlibs.net/datasets/kitti): ROOT = data_stereo_flow.

    training/{colored_0|image_0}/000000_10.png and _11.png; flow_occ holds all known pixels, flow_noc those
    visible in both frames; both are sparse, with validity inside. The values of the two differ by up to
    2.5 px at object edges: score the non-occluded part with `read_truth(noc=True)`.
    """
    refuse_split("KITTI 2012", split)
    yield from _kitti(tree, ("colored_0", "image_0"))


def kitti2015(tree: Tree, split: str) -> Iterator[PairFiles]:
    """KITTI 2015 scene flow (Menze and Geiger 2015, cvlibs.net/datasets/kitti): ROOT = data_scene_flow.

    training/image_2/000000_10.png and _11.png, flow_occ and flow_noc as in KITTI 2012, obj_map/000000_10.png:
    8-bit ids of moving objects, 0 is the background (`FlowPair.objects`).
    """
    refuse_split("KITTI 2015", split)
    yield from _kitti(tree, ("image_2",))


def hd1k(tree: Tree, split: str) -> Iterator[PairFiles]:
    """HD1K (Kondermann et al. 2016, hci-benchmark.iwr.uni-heidelberg.de): ROOT holds hd1k_input, hd1k_flow_gt.

    hd1k_input/image_2/SEQUENCE_FRAME.png (000000_0010.png), 2560x1080; hd1k_flow_gt/flow_occ with the same names:
    KITTI's 16-bit PNG, sparse, flow to the sequence's next frame. The last flow of a sequence has no next frame
    and is left out. Uncertainties are not read.
    """
    refuse_split("HD1K", split)
    images = tree.below("hd1k_input/image_2")
    gaps = {a: _number_of(b) - _number_of(a) for a, b in pairwise(images) if _sequence_of(a) == _sequence_of(b)}
    step = min(gaps.values(), default=1)  # of the whole set: where a frame is absent, the gap is larger
    for flow in tree.below("hd1k_flow_gt/flow_occ"):
        file = flow.rpartition("/")[2]
        frame0 = f"hd1k_input/image_2/{file}"
        if frame0 in gaps or not tree.has(frame0):
            frame1 = f"{_sequence_of(frame0)}_{_number_of(frame0) + step:04d}.png"
            yield pair_files(tree, file.removesuffix(".png"), frame0, frame1, flow)


def middlebury(folder: str, tree: Tree, split: str) -> Iterator[PairFiles]:
    """Middlebury (Baker et al. 2011, vision.middlebury.edu/flow): other-data (colour) or other-data-gray.

    ROOT/FOLDER/SEQ/frame10.png and frame11.png, ground truth other-gt-flow/SEQ/flow10.flo, unknown where > 1e9;
    sequences without it are left out.
    """
    refuse_split("Middlebury", split)
    tree.keep(folder)
    for flow, found in _matching(tree, "other-gt-flow", MIDDLEBURY_FLOW):
        start = f"{folder}/{found['sequence']}/frame"
        yield pair_files(tree, found["sequence"], f"{start}10.png", f"{start}11.png", flow)


def moving_photos(tree: Tree, split: str) -> Iterator[PairFiles]:
    """Held-out part of a generated moving-photos folder: every pair of neighbouring frames, exact flow."""
    refuse_split("the held-out part of moving-photos", split)
    there = [found for _, found in _matching(tree, "heldout", MOVING_PHOTOS_FILE)]
    frames = {(found["place"], int(found["number"])) for found in there if found["kind"] == "frame"}
    flows = {(found["place"], int(found["number"])) for found in there if found["kind"] == "flow"}
    for place, number in sorted(flows | {(place, n) for place, n in frames if (place, n + 1) in frames}):
        frame0, frame1 = (f"{place}/frame_{n:04d}.png" for n in (number, number + 1))
        flow, occluded = (f"{place}/{kind}_{number:04d}" for kind in ("flow", "occluded"))
        name = f"{place.removeprefix('heldout/')}/{number:04d}"
        yield pair_files(tree, name, frame0, frame1, f"{flow}.flo", occluded=f"{occluded}.png")


def _kitti(tree: Tree, folders: tuple[str, ...]) -> Iterator[PairFiles]:
    images = next((f"training/{f}" for f in folders if tree.below(f"training/{f}")), "")
    if not images:
        raise DataError(f"{tree.base}training has no {' or '.join(folders)}; expected KITTI's images; complete it")
    tree.keep("training/flow_noc", "training/obj_map")
    for flow, found in _matching(tree, "training/flow_occ", KITTI_FLOW):
        frame0, frame1 = f"{images}/{found['file']}", f"{images}/{found['number']}_11.png"
        noc, objects = (f"training/{part}/{found['file']}" for part in ("flow_noc", "obj_map"))
        yield pair_files(tree, found["number"], frame0, frame1, flow, flow_noc=noc, objects=objects)


def _matching(tree: Tree, folder: str, pattern: re.Pattern[str]) -> Iterator[tuple[str, re.Match[str]]]:
    """Names below a folder that have the form of the pattern."""
    for name in tree.below(folder):
        if found := pattern.fullmatch(name):
            yield name, found


def _sequence_of(name: str) -> str:
    return name.rpartition("_")[0]


def _number_of(name: str) -> int:
    """The frame in a name SEQUENCE_FRAME.png; -1 where it is no number."""
    digits = name.rpartition("_")[2].removesuffix(".png")
    return int(digits) if digits.isdecimal() else -1


SINTEL_FRAME = re.compile(r"test/(?P<pass>[^/]+)/(?P<scene>[^/]+)/(?P<stem>frame_(?P<number>\d+))\.png")
KITTI_FIRST = re.compile(r"testing/[^/]+/(?P<number>\d+)_10\.png")


def sintel_test(tree: Tree, split: str) -> Iterator[PairFiles]:
    """MPI-Sintel's test part: test/{clean,final}/SCENE/frame_0001.png; pairs of neighbours, PASS/SCENE/frame_0001.

    A number that is left out within a scene is an error.
    """
    for rendering in ("clean", "final"):
        found = [m for name in tree.below(f"test/{rendering}") if (m := SINTEL_FRAME.fullmatch(name))]
        for first, second in pairwise(found):
            if first["scene"] != second["scene"]:
                continue
            if int(second["number"]) != int(first["number"]) + 1:
                raise DataError(
                    f"{tree.base}{first[0]} is followed by {second['stem']}; expected the next number; complete the set"
                )
            name = f"{rendering}/{first['scene']}/{first['stem']}"
            yield PairFiles(name, {"frame0": first[0], "frame1": second[0]})


def kitti2012_test(tree: Tree, split: str) -> Iterator[PairFiles]:
    """KITTI 2012's test part: testing/{colored_0|image_0}/000000_10.png and _11.png."""
    return _kitti_test(tree, ("colored_0", "image_0"))


def kitti2015_test(tree: Tree, split: str) -> Iterator[PairFiles]:
    """KITTI 2015's test part: testing/image_2/000000_10.png and _11.png."""
    return _kitti_test(tree, ("image_2",))


def _kitti_test(tree: Tree, folders: tuple[str, ...]) -> Iterator[PairFiles]:
    folder = next((f"testing/{f}" for f in folders if tree.below(f"testing/{f}")), "")
    for name in tree.below(folder) if folder else ():
        if found := KITTI_FIRST.fullmatch(name):
            yield PairFiles(found["number"], {"frame0": name, "frame1": f"{folder}/{found['number']}_11.png"})
