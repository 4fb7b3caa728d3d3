"""What a flow set lacks is named, its folder is found, and test parts are read without ground truth."""

from __future__ import annotations

import doctest
import shutil
from pathlib import Path

import pytest

from mcjepa.data_prep.corpora import FLOW_SCANS, FLOW_SETS, FLOW_TEST_SETS, INPUT_READERS
from mcjepa.data_prep.corpora.flow import scans as flow_expected
from mcjepa.data_prep.corpora.flow.places import MARKS, find_set_folder
from mcjepa.data_prep.errors import DataError
from tests.data_prep import layouts


def names(scan) -> list[str]:
    return [pair.name for pair in scan.pairs]


def test_every_set_has_a_scan_and_marks_of_its_folder() -> None:
    assert set(FLOW_SCANS) == set(FLOW_SETS)
    assert set(MARKS) == set(FLOW_SCANS) | set(FLOW_TEST_SETS)


def test_the_lists_of_whole_sets_have_the_known_lengths(sample_data: Path) -> None:
    assert doctest.testmod(flow_expected).failed == 0
    scan = FLOW_SCANS["sintel-final"](sample_data / "flow/MPI-Sintel-complete")
    assert scan.expected == 1041 and len(scan.missing) == 1041 - 2
    assert names(scan) == ["alley_1/frame_0002", "bandage_1/frame_0035"]
    scan = FLOW_SCANS["chairs"](sample_data / "flow/FlyingChairs_release")
    assert scan.expected == 22872 and len(scan.missing) == 22870
    scan = FLOW_SCANS["kitti2012"](sample_data / "flow/kitti2012/data_stereo_flow")
    assert scan.expected == 194 and list(scan.missing)[:3] == ["000000", "000001", "000002"]


def test_a_part_of_a_set_on_purpose_lacks_only_what_is_there_in_part(tmp_path: Path) -> None:
    layouts.chairs(tmp_path)
    (tmp_path / "FlyingChairs_train_val.txt").write_text("1\n2\n1\n2\n")
    (tmp_path / "data/00002_img2.ppm").unlink()
    layouts.flow(tmp_path / "data/00005_flow.flo", 1)
    with pytest.raises(DataError, match=r"00002_img2\.ppm is not there"):
        FLOW_SCANS["chairs-val"](tmp_path)
    scan = FLOW_SCANS["chairs-train"](tmp_path, subset=True)
    assert names(scan) == ["00001", "00003"] and scan.missing == {} and scan.expected is None
    scan = FLOW_SCANS["chairs"](tmp_path, subset=True)
    assert list(scan.missing) == ["00002", "00005"]
    assert list(FLOW_SCANS["chairs"](tmp_path).missing) == ["00002", "00004", "00005"]


def test_a_missing_sintel_frame_spoils_the_pairs_it_belongs_to_in_its_pass_only(tmp_path: Path) -> None:
    layouts.sintel(tmp_path)
    (tmp_path / "training/clean/alley_1/frame_0001.png").unlink()
    scan = FLOW_SCANS["sintel-clean"](tmp_path, subset=True)
    assert names(scan) == ["alley_1/frame_0002"]
    assert scan.missing == {"alley_1/frame_0001": "training/clean/alley_1/frame_0001.png is not there"}
    assert FLOW_SCANS["sintel-final"](tmp_path, subset=True).missing == {}
    with pytest.raises(DataError, match=r"clean/alley_1/frame_0001\.png is not there"):
        FLOW_SETS["sintel-clean"](tmp_path)


@pytest.mark.parametrize("subset", [False, True])
def test_a_pair_without_the_optional_file_that_others_have_is_missing(tmp_path: Path, subset: bool) -> None:
    """Means over regions would be of the other pairs alone."""
    layouts.sintel(tmp_path / "s")
    (tmp_path / "s/training/occlusions/alley_1/frame_0002.png").unlink()
    scan = FLOW_SCANS["sintel-final"](tmp_path / "s", subset=subset)
    assert names(scan) == ["alley_1/frame_0001"]
    assert scan.missing["alley_1/frame_0002"] == "training/occlusions/alley_1/frame_0002.png is not there"
    shutil.rmtree(tmp_path / "s/training/occlusions")  # of no pair: the set is scored without
    scan = FLOW_SCANS["sintel-final"](tmp_path / "s", subset=True)
    assert len(scan.pairs) == 2 and scan.missing == {} and all(pair.occluded is None for pair in scan.pairs)


@pytest.mark.parametrize("part", ["flow_noc", "obj_map"])
def test_a_pair_of_kitti_without_its_own_part_is_missing(tmp_path: Path, part: str) -> None:
    layouts.kitti2015(tmp_path)
    whole = names(FLOW_SCANS["kitti2015"](tmp_path, subset=True))
    (tmp_path / f"training/{part}/{whole[0]}_10.png").unlink()
    scan = FLOW_SCANS["kitti2015"](tmp_path, subset=True)
    assert names(scan) == whole[1:] and whole[1:]
    assert scan.missing == {whole[0]: f"training/{part}/{whole[0]}_10.png is not there"}


def test_frames_whose_flow_is_lost_are_a_missing_pair(tmp_path: Path, sample_data: Path) -> None:
    """Of sets whose frames all have ground truth."""
    shutil.copytree(sample_data / "flow/FlyingChairs2_crop50", tmp_path / "c")
    (tmp_path / "c/train/0000000-flow_01.flo").unlink()
    scan = FLOW_SCANS["chairs2"](tmp_path / "c")
    assert names(scan) == ["0000000/10"]
    assert scan.missing == {"0000000/01": "train/0000000-flow_01.flo is not there"}
    for number in (9998, 9999, 10000, 10001):
        layouts.picture(tmp_path / f"m/heldout/00000/frame_{number:04d}.png")
        if number in (9998, 10000):
            layouts.flow(tmp_path / f"m/heldout/00000/flow_{number:04d}.flo", 1)
    scan = FLOW_SCANS["moving-photos"](tmp_path / "m")
    assert names(scan) == ["00000/9998", "00000/10000"]
    assert scan.missing == {"00000/9999": "heldout/00000/flow_9999.flo is not there"}


LOST = {
    "chairs": ("chairs", "data/00002_flow.flo", "00002"),
    "chairs-val": ("chairs", "data/00002_flow.flo", "00002"),
    "kitti2015": ("kitti2015", "training/flow_occ/000004_10.png", "000004"),
    "hd1k": ("hd1k", "hd1k_flow_gt/flow_occ/000000_0011.png", "000000_0011"),
    "things3d-clean": (
        "things3d",
        "optical_flow/TRAIN/A/0000/into_past/right/OpticalFlowIntoPast_0007_R.pfm",
        "TRAIN/A/0000/right/into_past/0007",
    ),
    "sintel-final": ("sintel", "training/flow/alley_1/frame_0002.flo", "alley_1/frame_0002"),
}


@pytest.mark.parametrize("set_name", LOST)
def test_a_lost_flow_is_an_error_in_preparation_and_named_in_a_scan(set_name: str, tmp_path: Path) -> None:
    """Its pair would else vanish without a word."""
    layout, lost, pair = LOST[set_name]
    root = getattr(layouts, layout)(tmp_path)
    for number in (4, 5):
        layouts.picture(root / f"training/final/alley_1/frame_{number:04d}.png", number)
        layouts.flow(root / f"training/flow/alley_1/frame_{number - 1:04d}.flo", 1)
    whole = [found.name for found in FLOW_SETS[set_name](root)]
    assert pair in whole
    (root / lost).unlink()
    with pytest.raises(DataError, match=f"{lost} is not there; expected the pair {pair} whole"):
        FLOW_SETS[set_name](root)
    with pytest.raises(DataError, match="complete the set"):
        list(INPUT_READERS[set_name](str(root), ""))
    if len(whole) > 1:
        scan = FLOW_SCANS[set_name](root, subset=True)
        assert scan.missing[pair] == f"{lost} is not there" and set(names(scan)) | set(scan.missing) == set(whole)


@pytest.mark.parametrize("lost", [1, 7, 19])
def test_of_a_whole_scene_of_sintel_no_flow_may_be_lost(lost: int, tmp_path: Path) -> None:
    """At its ends, too; of scenes that are there in part, frames around those with ground truth are none."""
    for number in range(1, 21):
        layouts.picture(tmp_path / f"training/clean/ambush_6/frame_{number:04d}.png", number)
        if number < 20:
            layouts.flow(tmp_path / f"training/flow/ambush_6/frame_{number:04d}.flo", 1)
    assert len(FLOW_SETS["sintel-clean"](tmp_path)) == 19
    (tmp_path / f"training/flow/ambush_6/frame_{lost:04d}.flo").unlink()
    with pytest.raises(DataError, match=f"ambush_6/frame_{lost:04d}.flo is not there"):
        FLOW_SETS["sintel-clean"](tmp_path)
    (tmp_path / "training/clean/ambush_6/frame_0011.png").rename(tmp_path / "training/clean/ambush_6/frame_0021.png")
    assert (FLOW_SCANS["sintel-clean"](tmp_path, subset=True).missing.keys() >= {f"ambush_6/frame_{lost:04d}"}) == (
        lost == 7
    )


def test_a_last_frame_of_things3d_that_is_lost_is_told_by_the_flow_it_had(tmp_path: Path) -> None:
    layouts.things3d(tmp_path)
    for number in (8, 9):
        layouts.flow(
            tmp_path / f"optical_flow/TRAIN/A/0000/into_future/left/OpticalFlowIntoFuture_{number:04d}_L.pfm", 1
        )
        layouts.picture(tmp_path / f"frames_cleanpass/TRAIN/A/0000/left/{number:04d}.png")
    (tmp_path / "frames_cleanpass/TRAIN/A/0000/left/0009.png").unlink()
    with pytest.raises(DataError, match=r"left/0009\.png is not there"):
        FLOW_SETS["things3d-clean"](tmp_path)


def test_a_missing_frame_of_hd1k_is_not_bridged(tmp_path: Path) -> None:
    layouts.hd1k(tmp_path)
    (tmp_path / "hd1k_input/image_2/000000_0011.png").unlink()
    scan = FLOW_SCANS["hd1k"](tmp_path)
    assert names(scan) == ["000003_0005"] and list(scan.missing) == ["000000_0010", "000000_0011"]


def test_frames_of_hd1k_may_be_numbered_in_steps(tmp_path: Path) -> None:
    for number in (10, 20, 30, 50, 60):
        layouts.picture(tmp_path / f"hd1k_input/image_2/000001_{number:04d}.png", number)
        layouts.flow(tmp_path / f"hd1k_flow_gt/flow_occ/000001_{number:04d}.png", 1)
    scan = FLOW_SCANS["hd1k"](tmp_path)
    assert names(scan) == ["000001_0010", "000001_0020", "000001_0050"] and list(scan.missing) == ["000001_0030"]
    assert scan.pairs[0].read_frames()[1][0, 0, 0] == 20


def test_a_hole_in_a_scene_of_things3d_is_told_from_its_end(tmp_path: Path) -> None:
    layouts.things3d(tmp_path)
    layouts.picture(tmp_path / "frames_cleanpass/TRAIN/A/0000/left/0008.png")
    (tmp_path / "frames_cleanpass/TRAIN/A/0000/left/0007.png").unlink()
    scan = FLOW_SCANS["things3d-clean"](tmp_path)
    scene = "TRAIN/A/0000/left"
    assert set(scan.missing) == {f"{scene}/into_future/0006", f"{scene}/into_future/0007", f"{scene}/into_past/0007"}
    assert all("/right/" in name for name in names(scan))


def test_a_set_is_found_by_its_own_folder_or_one_that_holds_it(tmp_path: Path, sample_data: Path) -> None:
    own = layouts.sintel(tmp_path / "data/MPI-Sintel-complete")
    for root in (own, own.parent, tmp_path, str(tmp_path), f"file://{tmp_path}"):
        assert find_set_folder(root, "sintel-clean") == own
    assert find_set_folder(sample_data / "flow", "kitti2012") == sample_data / "flow/kitti2012/data_stereo_flow"
    assert find_set_folder(sample_data / "flow", "chairs") == sample_data / "flow/FlyingChairs_release"
    assert find_set_folder(sample_data / "flow", "chairs2") == sample_data / "flow/FlyingChairs2_crop50"
    with pytest.raises(DataError, match=r"no folder of the set hd1k at .*hd1k_flow_gt and hd1k_input"):
        find_set_folder(tmp_path, "hd1k")
    with pytest.raises(DataError, match=r"no folder 'nowhere' for the set hd1k"):
        find_set_folder("nowhere", "hd1k")
    layouts.sintel(tmp_path / "data/copy")
    with pytest.raises(DataError, match="more than once"):
        find_set_folder(tmp_path, "sintel-clean")
    assert find_set_folder(own, "sintel-clean") == own


def test_kitti_of_both_years_side_by_side_is_told_apart(tmp_path: Path) -> None:
    newer = layouts.kitti2015(tmp_path / "data_scene_flow")
    assert find_set_folder(tmp_path, "kitti2015") == find_set_folder(tmp_path, "kitti2015-test") == newer
    with pytest.raises(DataError, match="kitti2012"):
        find_set_folder(tmp_path, "kitti2012")


def test_test_parts_have_pairs_of_neighbours_without_truth(tmp_path: Path) -> None:
    pairs = FLOW_TEST_SETS["sintel-test"](layouts.sintel(tmp_path / "s"))
    assert [p.name for p in pairs] == [f"{p}/wall/frame_{n:04d}" for p in ("clean", "final") for n in (1, 2)]
    assert all(pair.flow is None for pair in pairs) and pairs[0].read_frames()[1][0, 0, 0] == 2
    (tmp_path / "s/test/final/wall/frame_0002.png").unlink()
    with pytest.raises(DataError, match=r"frame_0001.png is followed by frame_0003"):
        FLOW_TEST_SETS["sintel-test"](tmp_path / "s")
    pairs = FLOW_TEST_SETS["kitti2015-test"](layouts.kitti2015(tmp_path / "k"))
    assert [pair.name for pair in pairs] == ["000000", "000004"]
    assert [int(frame[0, 0, 0]) for frame in pairs[1].read_frames()] == [10, 11]
    (tmp_path / "k/testing/image_2/000004_11.png").unlink()
    with pytest.raises(DataError, match=r"000004_11\.png is not there"):
        FLOW_TEST_SETS["kitti2015-test"](tmp_path / "k")
    with pytest.raises(DataError, match="no test frames"):
        FLOW_TEST_SETS["kitti2012-test"](tmp_path / "k")
