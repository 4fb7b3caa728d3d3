"""Readers of data sets, on the sample data in the sets' own formats and on broken copies of their layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mcjepa.data_prep.corpora import FLOW_SETS, INPUT_READERS, SEGMENTATION_CLASSES, SEGMENTATION_SETS, VOS_SETS
from mcjepa.data_prep.corpora.flow.files import write_flo
from mcjepa.data_prep.corpora.image_files import decode_rgb, read_ids, voc_palette, write_id_png, write_png
from mcjepa.data_prep.corpora.items import FlowPair, LabelledImage, MaskedVideo
from mcjepa.data_prep.errors import DataError

# Mean length of the true flow, px, over (all valid | non-occluded) pixels: the published bars of zero flow.
ZERO_FLOW_EPE = {
    ("chairs", "flow/FlyingChairs_release", "00002", False): 4.51,
    ("sintel-clean", "flow/MPI-Sintel-complete", "alley_1/frame_0002", False): 2.98,
    ("sintel-final", "flow/MPI-Sintel-complete", "bandage_1/frame_0035", False): 1.62,
    ("kitti2012", "flow/kitti2012/data_stereo_flow", "000027", True): 31.46,
    ("kitti2012", "flow/kitti2012/data_stereo_flow", "000110", True): 25.68,
    ("middlebury", "flow/middlebury", "RubberWhale", False): 1.26,
}


@pytest.mark.parametrize(("name", "root", "pair", "noc"), ZERO_FLOW_EPE)
def test_real_flow_has_the_known_mean_length(sample_data, name: str, root: str, pair: str, noc: bool) -> None:
    found = {p.name: p for p in FLOW_SETS[name](sample_data / root)}[pair]
    truth = found.read_truth(noc=noc)
    length = np.linalg.norm(truth.flow_px, axis=-1)[truth.valid].mean()
    assert round(float(length), 2) == ZERO_FLOW_EPE[name, root, pair, noc]
    frame0, frame1 = found.read_frames()
    assert frame0.shape == frame1.shape == (*truth.valid.shape, 3)


def test_real_validity_and_occlusion_follow_each_set(sample_data) -> None:
    kitti = FLOW_SETS["kitti2012"](sample_data / "flow/kitti2012/data_stereo_flow")[0]
    everything, visible = kitti.read_truth(), kitti.read_truth(noc=True)
    assert everything.occluded is not None
    np.testing.assert_array_equal(everything.valid & ~everything.occluded, visible.valid & everything.valid)
    whale = FLOW_SETS["middlebury"](sample_data / "flow/middlebury")[0].read_truth()
    assert round(100 * (1 - whale.valid.mean()), 1) == 1.6 and whale.occluded is None
    assert np.abs(whale.flow_px).max() < 100
    sintel = FLOW_SETS["sintel-final"](sample_data / "flow/MPI-Sintel-complete")[0].read_truth()
    assert not sintel.valid.all() and sintel.occluded is not None and 0.01 < sintel.occluded.mean() < 0.1


def test_real_camvid_davis_and_image_trees_have_the_known_sizes(sample_data) -> None:
    camvid = sample_data / "camvid/CamVid"
    assert [len(SEGMENTATION_SETS["camvid"](camvid, s)) for s in ("train", "val")] == [90, 30]
    image, labels = SEGMENTATION_SETS["camvid"](camvid, "val")[0].read()
    assert image.shape == (360, 480, 3) and labels.dtype == np.int64
    assert set(np.unique(labels)) <= {*range(len(SEGMENTATION_CLASSES["camvid"](camvid))), 255}
    davis = VOS_SETS["davis2017"](sample_data / "davis/DAVIS")
    assert (len(davis), sum(len(v.frames) for v in davis)) == (9, 510)
    assert davis[0].name == "car-shadow" and set(np.unique(davis[0].read_mask(0))) == {0, 1}
    assert davis[0].read_frame(0).shape == (480, 854, 3)
    inputs = list(INPUT_READERS["davis"](str(sample_data / "davis/DAVIS"), "2017/val"))
    assert sum(len(i.members) for i in inputs) == 510 and inputs[0].kind == "frames"
    assert len(list(INPUT_READERS["images"](str(sample_data / "imagenet/train"), ""))) == 300
    assert len(list(INPUT_READERS["videos"](str(sample_data / "videos"), ""))) == 9


def test_a_palette_mask_of_several_objects_is_read_by_its_ids(sample_data) -> None:
    folder = sample_data / "davis/DAVIS-2017-test-dev_first_frames/Annotations/480p"
    ids = {int(i) for path in folder.glob("*/00000.png") for i in np.unique(read_ids(path))}
    assert ids == set(range(8))


def test_inputs_come_in_a_fixed_order_with_names_below_the_root(videos: Path) -> None:
    names = [i.name for i in INPUT_READERS["videos"](str(videos), "")]
    assert names == ["a.mp4", "b.mp4", "deep/c.MP4"]
    assert [i.name for i in INPUT_READERS["videos"](str(videos), "deep")] == ["c.MP4"]


def test_every_folder_of_images_is_one_sequence(images: Path) -> None:
    write_png(images / "loose.png", np.zeros((8, 8, 3), np.uint8))
    (images / ".hidden.png").write_bytes(b"")
    found = {i.name: i.members for i in INPUT_READERS["frame-folders"](str(images), "")}
    assert found == {
        ".": ("loose.png",),
        "class0": ("0.png", "2.png", "4.png"),
        "class1": ("1.png", "3.png"),
    }


@pytest.mark.parametrize("reader", ["videos", "images", "frame-folders", "davis", "camvid", "moving-photos"])
def test_a_missing_or_empty_folder_is_named_with_what_to_do(reader: str, tmp_path: Path) -> None:
    for folder in (tmp_path / "absent", tmp_path):
        with pytest.raises(DataError, match=r"expected .*; ") as error:
            list(INPUT_READERS[reader](str(folder), ""))
        assert str(folder) in str(error.value)


def test_a_listed_davis_sequence_that_is_absent_is_refused(tmp_path: Path) -> None:
    (tmp_path / "JPEGImages/480p/dog").mkdir(parents=True)
    write_png(tmp_path / "JPEGImages/480p/dog/00000.jpg", np.zeros((2, 2, 3), np.uint8))
    (tmp_path / "ImageSets/2017").mkdir(parents=True)
    (tmp_path / "ImageSets/2017/val.txt").write_text("dog\ncat\n")
    with pytest.raises(DataError, match="lacks cat"):
        list(INPUT_READERS["davis"](str(tmp_path), "2017/val"))


def test_an_incomplete_flow_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match="no pair"):
        FLOW_SETS["chairs"](tmp_path)
    write_flo(tmp_path / "data" / "00001_flow.flo", np.zeros((4, 4, 2), np.float32))
    with pytest.raises(DataError, match="00001_img1"):
        FLOW_SETS["chairs"](tmp_path)


def test_unknown_flow_is_invalid_and_zero(tmp_path: Path) -> None:
    flow = np.full((2, 2, 2), 3, np.float32)
    flow[0, 1] = 1.67e9
    flow[1, 0, 1] = np.nan
    write_flo(tmp_path / "f.flo", flow)
    truth = FlowPair("p", tmp_path / "0.png", tmp_path / "1.png", tmp_path / "f.flo").read_truth()
    assert truth.valid.tolist() == [[True, False], [False, True]]
    assert truth.flow_px[0, 1].tolist() == [0, 0] and truth.flow_px[1, 1].tolist() == [3, 3]


def test_void_labels_and_davis2016_masks_are_normalised(tmp_path: Path) -> None:
    write_png(tmp_path / "i.png", np.zeros((2, 2, 3), np.uint8))
    write_png(tmp_path / "l.png", np.array([[0, 11], [255, 10]], np.uint8))
    labels = LabelledImage("x", tmp_path / "i.png", tmp_path / "l.png", void_label=11).read()[1]
    assert labels.tolist() == [[0, 255], [255, 10]]
    write_png(tmp_path / "m.png", np.array([[0, 255]], np.uint8))
    write_id_png(tmp_path / "n.png", np.array([[0, 3]], np.uint8))
    video = MaskedVideo("v", (), (tmp_path / "m.png", tmp_path / "n.png"))
    assert video.read_mask(0).tolist() == [[0, 1]] and video.read_mask(1).tolist() == [[0, 3]]


def test_sizes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", np.zeros((2, 2, 3), np.uint8))
    write_png(tmp_path / "b.png", np.zeros((2, 3, 3), np.uint8))
    with pytest.raises(DataError, match="one size"):
        FlowPair("p", tmp_path / "a.png", tmp_path / "b.png", None).read_frames()
    with pytest.raises(DataError, match="no ground truth"):
        FlowPair("p", tmp_path / "a.png", tmp_path / "b.png", None).read_truth()


def test_colours_are_read_as_red_green_blue_and_grey_as_three_channels(tmp_path: Path) -> None:
    write_png(tmp_path / "c.png", np.array([[[255, 0, 10]]], np.uint8))
    assert decode_rgb((tmp_path / "c.png").read_bytes(), "c").tolist() == [[[255, 0, 10]]]
    write_png(tmp_path / "g.png", np.array([[7]], np.uint8))
    assert decode_rgb((tmp_path / "g.png").read_bytes(), "g").tolist() == [[[7, 7, 7]]]
    with pytest.raises(DataError, match="not a readable image"):
        decode_rgb(b"nonsense", "n")
    with pytest.raises(DataError, match="mode RGB"):
        read_ids(tmp_path / "c.png")


def test_the_palette_is_that_of_pascal_voc() -> None:
    known = [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    assert voc_palette()[:5].tolist() == known and voc_palette()[255].tolist() == [224, 224, 192]
