"""Readers of optical flow sets: every pair with ground truth, in the layout of the set's own archive.

All ground truth is flow from the first frame to the second in pixels, u right, v down. Each function lists a
set's pairs by the names of their files: `fn(tree, split)`.

A pair is listed where its flow is there, and where its frames tell that there was one: a lost flow must not be unseen.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator
from itertools import pairwise

from mcjepa.data_prep.corpora.flow.pairs import PairFiles, pair_files, refuse_split
from mcjepa.data_prep.corpora.trees import Tree
from mcjepa.data_prep.errors import DataError

CHAIRS_MARKS = {"train": "1", "val": "2"}
CHAIRS_LIST = "FlyingChairs_train_val.txt"
CHAIRS_FILE = re.compile(r"data/(?P<name>.+)_(?:flow\.flo|img1\.ppm)")
CHAIRS2_SAMPLE = re.compile(r"[^/]+/(?P<number>[^/]+)-(?:flow_(?:01|10)\.flo|img_[01]\.png)")
THINGS3D_FLOW = re.compile(
    r"optical_flow/(?P<scene>.+)/(?P<direction>into_future|into_past)/(?P<camera>[^/]+)/"
    r"OpticalFlowInto(?:Future|Past)_(?P<number>\d+)_[LR]\.pfm"
)
THINGS3D_FRAME = re.compile(r"frames_[^/]+/(?P<scene>.+)/(?P<camera>[^/]+)/(?P<number>\d+)\.[a-z]+")
SINTEL_FILE = re.compile(r"training/[^/]+/(?P<scene>[^/]+)/frame_(?P<number>\d+)\.(?:flo|png)")
SINTEL_FRAMES = 50
SINTEL_SHORT_SCENES = {"ambush_2": 21, "ambush_4": 33, "ambush_6": 20, "market_6": 40}
"""Frames of the training scenes that have fewer."""
KITTI_FIRST = re.compile(r"[a-z]+/[^/]+/(?P<number>\d+)_10\.png")
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
        found = {f"{found['name']}_flow.flo" for _, found in _matching(tree, "data", CHAIRS_FILE)}
        names = [name.removesuffix("_flow.flo") for name in _by_bytes(found)]
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
    Of a scene that has flow, each two neighbours have it in all the ways in which any two of the split have it.
    """
    layouts = ((f"frames_{rendering}pass", ".png"), (f"frames_{rendering}pass_webp", ".webp"))
    folder, suffix = next((x for x in layouts if tree.below(f"{x[0]}/{split}")), layouts[0])
    flows = {
        (found["scene"], found["direction"], found["camera"], int(found["number"])): flow
        for flow, found in _matching(tree, f"optical_flow/{split}", THINGS3D_FLOW)
    }
    ends: dict[tuple[str, ...], list[int]] = {}
    for *way, number in flows:
        ends.setdefault(tuple(way), []).append(number)
    frames = [
        (f["scene"], f["camera"], int(f["number"])) for _, f in _matching(tree, f"{folder}/{split}", THINGS3D_FRAME)
    ]
    lost = _lost_of_things3d(flows, frames)
    for key, flow in sorted({**lost, **flows}.items(), key=lambda pair: os.fsencode(pair[1])):
        scene, direction, camera, number = key
        place, step = f"{folder}/{scene}/{camera}", THINGS3D_STEPS[direction]
        frame0, frame1 = (f"{place}/{n:04d}{suffix}" for n in (number, number + step))
        last = max(ends.get(key[:3], [number]), key=lambda n: n * step)
        if number != last or tree.has(frame1):
            yield pair_files(tree, f"{scene}/{camera}/{direction}/{number:04d}", frame0, frame1, flow)


THINGS3D_STEPS = {"into_future": 1, "into_past": -1}
Things3dKey = tuple[str, str, str, int]
"""Scene, direction, camera and number of a flow."""


def _lost_of_things3d(flows: Collection[Things3dKey], frames: list[tuple[str, str, int]]) -> dict[Things3dKey, str]:
    """Names of the flows that are not there, of neighbours whose scene has some."""
    scenes, ways = {key[0] for key in flows}, {key[1:3] for key in flows}
    there, lost = set(frames), {}
    for scene, camera, number in frames:
        for direction, step in THINGS3D_STEPS.items():
            key = scene, direction, camera, number
            whole = scene in scenes and (direction, camera) in ways and (scene, camera, number + step) in there
            if whole and key not in flows:
                file = f"OpticalFlow{direction.title().replace('_', '')}_{number:04d}_{camera[0].upper()}.pfm"
                lost[key] = f"optical_flow/{scene}/{direction}/{camera}/{file}"
    return lost


def sintel(rendering: str, tree: Tree, split: str) -> Iterator[PairFiles]:
    """MPI-Sintel (Butler et al. 2012, sintel.is.tue.mpg.de): ROOT = MPI-Sintel-complete.

    training/{clean,final}/SCENE/frame_0001.png, training/flow/SCENE/frame_0001.flo (frame 1 to 2), masks
    occlusions (255: not seen in the next frame; of the pixels that leave the frame some are marked and some are not)
    and invalid (255: the flow is not reliable, a few pixels). Frames before the first and behind the last ground truth
    of a scene that is not there whole, and scenes that this pass does not have, are left out.
    """
    refuse_split("MPI-Sintel", split)
    tree.keep("training/invalid", "training/occlusions")
    frames = _numbers_of_sintel(tree, rendering)
    flows = _numbers_of_sintel(tree, "flow", frames)
    for scene in _by_bytes(flows):
        there, numbers = frames[scene], flows[scene]
        last = SINTEL_SHORT_SCENES.get(scene, SINTEL_FRAMES)
        whole = set(range(1, last + 1)) <= there
        first, end = (1, last) if whole else (min(numbers, default=0), max(numbers, default=0))
        known = numbers | {n for n in range(first, end) if {n, n + 1} <= there}
        for number in sorted(known):
            stem = f"frame_{number:04d}"
            frame0, frame1 = (f"training/{rendering}/{scene}/frame_{n:04d}.png" for n in (number, number + 1))
            invalid, occluded = (f"training/{part}/{scene}/{stem}.png" for part in ("invalid", "occlusions"))
            flow = f"training/flow/{scene}/{stem}.flo"
            yield pair_files(tree, f"{scene}/{stem}", frame0, frame1, flow, invalid=invalid, occluded=occluded)


def _numbers_of_sintel(tree: Tree, part: str, scenes: Iterable[str] | None = None) -> dict[str, set[int]]:
    """Numbers of a part's files by scene; of these scenes, also where there are none."""
    numbers: dict[str, set[int]] = {scene: set() for scene in scenes or ()}
    for _, found in _matching(tree, f"training/{part}", SINTEL_FILE):
        if scenes is None or found["scene"] in numbers:
            numbers.setdefault(found["scene"], set()).add(int(found["number"]))
    return numbers


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
    and is left out; of a sequence that has flow every other frame has it. Uncertainties are not read.
    """
    refuse_split("HD1K", split)
    images = [name for name in tree.below("hd1k_input/image_2") if _number_of(name) >= 0]
    gaps = {a: _number_of(b) - _number_of(a) for a, b in pairwise(images) if _sequence_of(a) == _sequence_of(b)}
    step = min(gaps.values(), default=1)  # of the whole set: where a frame is absent, the gap is larger
    files = {name.rpartition("/")[2] for name in tree.below("hd1k_flow_gt/flow_occ")}
    sequences = {_sequence_of(file) for file in files}
    whole = (frame.rpartition("/")[2] for frame, gap in gaps.items() if gap == step)
    for file in _by_bytes({*files, *(name for name in whole if _sequence_of(name) in sequences)}):
        frame0 = f"hd1k_input/image_2/{file}"
        if frame0 in gaps or not tree.has(frame0):
            frame1 = f"{_sequence_of(frame0)}_{_number_of(frame0) + step:04d}.png"
            flow = f"hd1k_flow_gt/flow_occ/{file}"
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
    numbers = {found["number"] for _, found in _matching(tree, "training/flow_occ", KITTI_FIRST)}
    frames = {found["number"] for _, found in _matching(tree, images, KITTI_FIRST)}
    for number in _by_bytes(numbers | {number for number in frames if tree.has(f"{images}/{number}_11.png")}):
        frame0, frame1 = f"{images}/{number}_10.png", f"{images}/{number}_11.png"
        flow, noc, objects = (f"training/{part}/{number}_10.png" for part in ("flow_occ", "flow_noc", "obj_map"))
        yield pair_files(tree, number, frame0, frame1, flow, flow_noc=noc, objects=objects)


def _matching(tree: Tree, folder: str, pattern: re.Pattern[str]) -> Iterator[tuple[str, re.Match[str]]]:
    """Names below a folder that have the form of the pattern."""
    for name in tree.below(folder):
        if found := pattern.fullmatch(name):
            yield name, found


def _by_bytes(names: Iterable[str]) -> list[str]:
    """The names as listings sort them."""
    return sorted(names, key=os.fsencode)


def _sequence_of(name: str) -> str:
    return name.rpartition("_")[0]


def _number_of(name: str) -> int:
    """The frame in a name SEQUENCE_FRAME.png; -1 where it is no number."""
    digits = name.rpartition("_")[2].removesuffix(".png")
    return int(digits) if digits.isdecimal() else -1


SINTEL_FRAME = re.compile(r"test/(?P<pass>[^/]+)/(?P<scene>[^/]+)/(?P<stem>frame_(?P<number>\d+))\.png")


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
