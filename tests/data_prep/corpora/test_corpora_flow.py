"""Flow sets: directions, validity and splits of each official layout, and their pairs as inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mcjepa.data_prep.corpora import FLOW_SETS, INPUT_READERS
from mcjepa.data_prep.corpora.image_files import read_ids
from mcjepa.data_prep.corpora.items import FlowPair, Input
from mcjepa.data_prep.errors import DataError
from tests.data_prep import layouts


def first_pixels(pair: FlowPair) -> list[int]:
    return [int(frame[0, 0, 0]) for frame in pair.read_frames()]


def test_things3d_goes_both_ways_in_time_and_never_beyond_its_frames(tmp_path: Path) -> None:
    layouts.things3d(tmp_path)
    pairs = {p.name: p for p in FLOW_SETS["things3d-clean"](tmp_path)}
    scene = "TRAIN/A/0000"
    assert list(pairs) == [
        f"{scene}/{camera}/{way}" for way in ("into_future/0006", "into_past/0007") for camera in ("left", "right")
    ]
    forward, backward = pairs[f"{scene}/left/into_future/0006"], pairs[f"{scene}/right/into_past/0007"]
    assert first_pixels(forward) == [6, 7] and first_pixels(backward) == [7, 6]
    truth = forward.read_truth()
    assert truth.flow_px[..., 0].tolist() == [[6] * 8] * 6 and truth.valid.all() and truth.occluded is None
    assert truth.flow_px[:, 0, 1].tolist() == [1, 2, 3, 4, 5, 6]  # PFM rows are stored from the bottom
    assert backward.read_truth().flow_px[0, 0, 0] == -7
    final = FLOW_SETS["things3d-final"](tmp_path)
    assert [p.name for p in final] == list(pairs) and first_pixels(final[0]) == [106, 107]
    assert {p.name[:11] for p in FLOW_SETS["things3d-clean-test"](tmp_path)} == {"TEST/B/0007"}
    assert len(list(INPUT_READERS["things3d-final"](str(tmp_path), "TRAIN/A"))) == 4
    with pytest.raises(DataError, match="TRAIN/C"):
        list(INPUT_READERS["things3d-final"](str(tmp_path), "TRAIN/C"))


def test_things3d_values_that_are_no_numbers_are_invalid(tmp_path: Path) -> None:
    layouts.things3d(tmp_path)
    path = next(tmp_path.glob("optical_flow/TRAIN/A/0000/into_future/left/*_0006_L.pfm"))
    data = bytearray(path.read_bytes())
    data[-12:-8] = np.float32(np.nan).tobytes()
    path.write_bytes(data)
    truth = FLOW_SETS["things3d-clean"](tmp_path)[0].read_truth()
    assert not truth.valid[0, -1] and truth.valid.sum() == 47 and truth.flow_px[0, -1].tolist() == [0, 0]


def test_things3d_in_webp_is_read_too(tmp_path: Path) -> None:
    layouts.things3d(tmp_path)
    for path in list(tmp_path.glob("frames_cleanpass/**/*.png")):
        path.rename(path.with_suffix(".webp"))
    (tmp_path / "frames_cleanpass").rename(tmp_path / "frames_cleanpass_webp")
    assert first_pixels(FLOW_SETS["things3d-clean"](tmp_path)[0]) == [6, 7]
    assert len(list(INPUT_READERS["flyingthings3d"](str(tmp_path), "clean"))) == 2


def test_hd1k_pairs_a_frame_with_the_next_of_its_sequence(tmp_path: Path) -> None:
    pairs = FLOW_SETS["hd1k"](layouts.hd1k(tmp_path))
    assert [p.name for p in pairs] == ["000000_0010", "000000_0011", "000003_0005"]
    assert [first_pixels(p) for p in pairs] == [[10, 11], [11, 12], [5, 6]]
    truth = pairs[2].read_truth()
    assert not truth.valid[0].any() and truth.valid[1:].all() and truth.occluded is None
    assert truth.flow_px[1, 0].tolist() == [5, 2] and truth.flow_px[0].tolist() == [[0, 0]] * 8
    (tmp_path / "hd1k_input/image_2/000000_0011.png").unlink()
    with pytest.raises(DataError, match="000000_0011"):
        FLOW_SETS["hd1k"](tmp_path)


def test_kitti2015_has_object_maps_and_two_kinds_of_truth(tmp_path: Path) -> None:
    pairs = FLOW_SETS["kitti2015"](layouts.kitti2015(tmp_path))
    assert [p.name for p in pairs] == ["000000", "000004"] and first_pixels(pairs[1]) == [10, 11]
    assert pairs[1].read_truth(noc=True).valid.sum() == 40 and not pairs[1].read_truth().occluded.any()
    assert pairs[1].objects is not None and set(np.unique(read_ids(pairs[1].objects))) == {4}


def test_real_chairs2_has_a_pair_in_each_direction_with_occlusions(sample_data: Path) -> None:
    forward, backward = FLOW_SETS["chairs2"](sample_data / "flow/FlyingChairs2_crop50")
    assert (forward.name, backward.name) == ("0000000/01", "0000000/10")
    there, back = forward.read_truth(), backward.read_truth()
    np.testing.assert_allclose(there.flow_px.mean((0, 1)), (0.1375, -0.0873), atol=1e-3)
    np.testing.assert_allclose(back.flow_px.mean((0, 1)), (-0.1896, 0.1235), atol=1e-3)
    assert there.occluded is not None and round(float(there.occluded.mean()), 4) == 0.0352
    assert (forward.read_frames()[0] == backward.read_frames()[1]).all()
    with pytest.raises(DataError, match="'val'"):
        FLOW_SETS["chairs2-val"](sample_data / "flow/FlyingChairs2_crop50")


def test_real_grey_middlebury_is_the_colour_pair_in_grey(sample_data: Path) -> None:
    grey = FLOW_SETS["middlebury-grey"](sample_data / "flow/middlebury")
    colour = FLOW_SETS["middlebury"](sample_data / "flow/middlebury")
    assert [p.name for p in grey] == [p.name for p in colour] == ["RubberWhale"]
    frame, wanted = grey[0].read_frames()[0].astype(float), colour[0].read_frames()[0].astype(float)
    assert (frame[..., 0] == frame[..., 1]).all() and np.abs(frame.mean(2) - wanted.mean(2)).mean() < 12


def test_the_official_split_of_chairs_is_line_by_number(tmp_path: Path) -> None:
    layouts.chairs(tmp_path)
    names = {s: [p.name for p in FLOW_SETS[s](tmp_path)] for s in ("chairs", "chairs-train", "chairs-val")}
    assert names == {
        "chairs": ["00001", "00002", "00003"],
        "chairs-train": ["00001", "00003"],
        "chairs-val": ["00002"],
    }
    assert [i.name for i in INPUT_READERS["chairs"](str(tmp_path), "train")] == names["chairs-train"]
    with pytest.raises(DataError, match="no split 'test'"):
        list(INPUT_READERS["chairs"](str(tmp_path), "test"))


@pytest.mark.parametrize(
    ("name", "root", "roles"),
    [
        ("sintel-clean", "flow/MPI-Sintel-complete", ("frame0", "frame1", "flow", "invalid", "occluded")),
        ("kitti2012", "flow/kitti2012/data_stereo_flow", ("frame0", "frame1", "flow", "flow_noc")),
        ("chairs2", "flow/FlyingChairs2_crop50", ("frame0", "frame1", "flow", "occluded")),
        ("chairs", "flow/FlyingChairs_release", ("frame0", "frame1", "flow")),
        ("middlebury", "flow/middlebury", ("frame0", "frame1", "flow")),
    ],
)
def test_a_real_pair_as_an_input_is_the_same_pair(sample_data: Path, name: str, root: str, roles: tuple) -> None:
    pairs = FLOW_SETS[name](sample_data / root)
    items = list(INPUT_READERS[name](str(sample_data / root), ""))
    assert [i.name for i in items] == [p.name for p in pairs]
    item, pair = items[0], pairs[0]
    assert (item.kind, item.roles, item.uri) == ("pair", roles, str(sample_data / root))
    assert item.bytes == sum(Path(f).stat().st_size for f in item.files)
    again, wanted = FlowPair.from_input(item).read_truth(), pair.read_truth()
    np.testing.assert_array_equal(again.flow_px, wanted.flow_px)
    np.testing.assert_array_equal(again.valid, wanted.valid)


def test_a_pair_without_flow_is_refused(tmp_path: Path) -> None:
    item = Input("p", str(tmp_path), "pair", ("0.png", "1.png"), ("frame0", "frame1"))
    with pytest.raises(DataError, match="no flow"):
        FlowPair.from_input(item)


def test_a_set_without_splits_refuses_one(sample_data: Path) -> None:
    with pytest.raises(DataError, match="no split 'train'"):
        list(INPUT_READERS["kitti2012"](str(sample_data / "flow/kitti2012/data_stereo_flow"), "train"))


def test_held_out_moving_photos_are_pairs_too(tmp_path: Path) -> None:
    for number in (0, 1):
        layouts.picture(tmp_path / f"heldout/00003/frame_{number:04d}.png", number)
    layouts.flow(tmp_path / "heldout/00003/flow_0000.flo", 4)
    layouts.picture(tmp_path / "heldout/00003/occluded_0000.png", 255)
    (item,) = INPUT_READERS["moving-photos"](str(tmp_path), "pairs")
    assert (item.name, item.kind) == ("00003/0000", "pair")
    truth = FlowPair.from_input(item).read_truth()
    assert truth.occluded is not None and truth.occluded.sum() == 1 and truth.flow_px[0, 0, 0] == 4
