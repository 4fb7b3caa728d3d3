"""Multi-frame sets and DAVIS as sequences: which frames, in which order, of which split."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mcjepa.data_prep.corpora import INPUT_READERS, VOS_SETS
from mcjepa.data_prep.corpora.image_files import write_png
from mcjepa.data_prep.dataset.inputs import read_inputs
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.settings import CorpusConfig, DatasetConfig
from mcjepa.data_prep.storage import open_store
from tests.data_prep import layouts
from tests.data_prep.small_corpora import smooth_frames


def sequences(reader: str, root: Path, split: str = "") -> dict[str, tuple[str, ...]]:
    items = list(INPUT_READERS[reader](str(root), split))
    assert all(i.kind == "frames" and i.bytes == sum(Path(f).stat().st_size for f in i.files) for i in items)
    return {i.name: i.members for i in items}


def test_sintel_scenes_are_sequences_of_one_pass(sample_data: Path, tmp_path: Path) -> None:
    real = sequences("sintel", sample_data / "flow/MPI-Sintel-complete", "clean")
    assert real == {"alley_1": tuple(f"frame_{n:04d}.png" for n in (1, 2, 3, 4))}
    layouts.sintel(tmp_path)
    three = tuple(f"frame_{n:04d}.png" for n in (1, 2, 3))
    assert sequences("sintel", tmp_path) == sequences("sintel", tmp_path, "final") == {"alley_1": three}
    assert sequences("sintel", tmp_path, "test/final") == {"wall": three}
    with pytest.raises(DataError, match="expected sequences"):
        sequences("sintel", tmp_path, "albedo")


def test_kitti_multiview_frames_are_grouped_by_number(tmp_path: Path) -> None:
    layouts.kitti2015(tmp_path)
    found = sequences("kitti2015-multiview", tmp_path)
    assert list(found) == ["training/000000", "training/000004", "testing/000000", "testing/000004"]
    assert found["training/000004"] == ("000004_09.png", "000004_10.png", "000004_11.png")
    assert list(sequences("kitti2015-multiview", tmp_path, "training")) == ["training/000000", "training/000004"]
    with pytest.raises(DataError, match="colored_0 or image_0"):
        sequences("kitti2012-multiview", tmp_path)
    (tmp_path / "training/image_2").rename(tmp_path / "training/image_0")
    assert list(sequences("kitti2012-multiview", tmp_path)) == ["training/000000", "training/000004"]


@pytest.mark.parametrize(
    ("reader", "layout", "lost", "name"),
    [
        ("frame-folders", layouts.sintel, "training/clean/alley_1/frame_0002.png", "training/clean/alley_1"),
        ("sintel", layouts.sintel, "training/clean/alley_1/frame_0002.png", "alley_1"),
        ("flyingthings3d", layouts.things3d, "frames_cleanpass/TRAIN/A/0000/left/0007.png", "A/0000/left"),
        ("kitti2015-multiview", layouts.kitti2015, "training/image_2/000004_10.png", "training/000004"),
        ("hd1k-sequences", layouts.hd1k, "hd1k_input/image_2/000000_0011.png", "000000"),
        ("davis", layouts.davis, "JPEGImages/480p/bear/00001.jpg", "bear"),
    ],
)
def test_a_sequence_never_closes_over_a_frame_that_cannot_be_read(
    reader: str, layout: Callable[[Path], Path], lost: str, name: str, tmp_path: Path
) -> None:
    """As git-annex leaves files that have not been fetched: links to nothing."""
    layout(tmp_path)
    whole = sequences(reader, tmp_path)
    (tmp_path / lost).unlink()
    (tmp_path / lost).symlink_to("not fetched")
    found = {item.name: item for item in INPUT_READERS[reader](str(tmp_path), "")}
    assert {n: item.members for n, item in found.items()} == whole
    assert [item.name for item in found.values() if item.refusal] == [name]
    (_, _, file) = lost.rpartition("/")
    count = len(whole[name])
    assert found[name].refusal.startswith(f"1 of its {count} files cannot be read; {file}: cannot be examined (No such")
    assert found[name].bytes == -1


def test_a_frame_folder_with_an_unreadable_frame_is_quarantined_whole(build, tmp_path: Path) -> None:
    for folder in ("good", "bad"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        for number, frame in enumerate(smooth_frames(0, 4, 48, 64), 1):
            write_png(tmp_path / f"in/{folder}/{number}.png", frame)
    (tmp_path / "in/bad/3.png").unlink()
    (tmp_path / "in/bad/3.png").symlink_to("not fetched")
    corpora = (CorpusConfig(reader="frame-folders", path=str(tmp_path / "in")),)
    build(tmp_path / "d", DatasetConfig(kind="clip", corpora=corpora, clip_stride=1))
    found = {Path(r.uri).name: (r.outcome, r.samples) for r in read_inputs(open_store(str(tmp_path / "d")))}
    assert found == {"good": ("ok", 3), "bad": ("quarantined", 0)}


def test_real_kitti2012_pairs_are_short_sequences(sample_data: Path) -> None:
    found = sequences("kitti2012-multiview", sample_data / "flow/kitti2012/data_stereo_flow")
    assert found["training/000074"] == ("000074_10.png", "000074_11.png") and len(found) == 3


def test_hd1k_sequences_are_grouped_by_number(tmp_path: Path) -> None:
    found = sequences("hd1k-sequences", layouts.hd1k(tmp_path))
    assert found == {
        "000000": ("000000_0010.png", "000000_0011.png", "000000_0012.png"),
        "000003": ("000003_0005.png", "000003_0006.png"),
    }


def test_things3d_scenes_are_sequences_of_one_pass_and_camera(tmp_path: Path) -> None:
    layouts.things3d(tmp_path)
    two = ("0006.png", "0007.png")
    assert sequences("flyingthings3d", tmp_path) == {"A/0000/left": two, "A/0000/right": two}
    assert list(sequences("flyingthings3d", tmp_path, "final/TEST")) == ["B/0007/left", "B/0007/right"]


def test_both_kinds_of_davis_lists_are_read(tmp_path: Path) -> None:
    layouts.davis(tmp_path)
    frames = ("00000.jpg", "00001.jpg", "00002.jpg")
    assert sequences("davis", tmp_path) == {"bear": frames, "dog": frames}
    assert sequences("davis", tmp_path, "2017/val") == sequences("davis", tmp_path, "480p/val") == {"dog": frames}
    assert list(sequences("davis", tmp_path, "2016/train")) == ["bear"]
    with pytest.raises(DataError, match=r"2016/val\.txt is not there"):
        sequences("davis", tmp_path, "2016/val")


def test_davis2016_sees_one_object_where_2017_sees_each(tmp_path: Path) -> None:
    layouts.davis(tmp_path)
    (each,), (one,) = VOS_SETS["davis2017"](tmp_path), VOS_SETS["davis2016"](tmp_path)
    assert each.name == one.name == "dog" and len(each.frames) == len(each.masks) == 3
    assert set(np.unique(each.read_mask(1))) == {0, 1, 2} and set(np.unique(one.read_mask(1))) == {0, 1}
    (tmp_path / "Annotations/480p/dog/00001.png").unlink()
    with pytest.raises(DataError, match=r"dog/00001\.png is not there"):
        VOS_SETS["davis2017"](tmp_path)


@pytest.mark.parametrize("name", ["davis2017", "davis2016", "davis2017-test-dev"])
def test_a_mask_whose_frame_is_lost_is_an_error_and_no_shorter_sequence(tmp_path: Path, name: str) -> None:
    layouts.davis(tmp_path)
    (tmp_path / "ImageSets/2017/test-dev.txt").write_text("dog\n")
    (tmp_path / "ImageSets/480p/val.txt").unlink()
    (tmp_path / "JPEGImages/480p/bear/00001.jpg").unlink()  # of a sequence in no list of these: nobody's affair
    assert len(VOS_SETS[name](tmp_path)[0].frames) == 3
    (tmp_path / "JPEGImages/480p/dog/00001.jpg").unlink()
    with pytest.raises(DataError, match=r"480p/dog/00001\.png is there without its frame; expected both or neither"):
        VOS_SETS[name](tmp_path)


def test_a_list_of_frames_says_which_there_must_be(tmp_path: Path) -> None:
    layouts.davis(tmp_path)
    for kind, suffix in (("JPEGImages", "jpg"), ("Annotations", "png")):
        (tmp_path / f"{kind}/480p/dog/00002.{suffix}").unlink()
    assert len(VOS_SETS["davis2017"](tmp_path)[0].frames) == 2  # its list names sequences
    with pytest.raises(DataError, match=r"lacks JPEGImages/480p/dog/00002\.jpg; expected .* split '480p/val'"):
        VOS_SETS["davis2016"](tmp_path)


def test_masks_of_moving_photos_belong_to_frames_by_their_numbers(tmp_path: Path) -> None:
    """A frame and another one's mask lost would pair each mask with the frame after its own."""
    folder = tmp_path / "heldout/00000"
    for number in range(4):
        layouts.picture(folder / f"frame_{number:04d}.png")
        layouts.write_id_png(folder / f"objects_{number:04d}.png", np.ones(layouts.SIZE, np.uint8))
    (video,) = VOS_SETS["moving-photos"](tmp_path)
    assert [Path(str(mask)).name for mask in video.masks] == [f"objects_{n:04d}.png" for n in range(4)]
    (folder / "frame_0001.png").unlink()
    (folder / "objects_0003.png").unlink()
    with pytest.raises(DataError, match=r"objects_0001\.png is there without its frame"):
        VOS_SETS["moving-photos"](tmp_path)


def test_davis2016_without_its_list_has_its_sequences_of_2017(tmp_path: Path, sample_data: Path) -> None:
    videos = VOS_SETS["davis2016"](sample_data / "davis/DAVIS")
    assert len(videos) == 9 and all(video.one_object for video in videos)
    layouts.davis(tmp_path)
    (tmp_path / "ImageSets/480p/val.txt").unlink()
    (tmp_path / "ImageSets/2017/val.txt").write_text("dog\nbear\n")
    assert [video.name for video in VOS_SETS["davis2016"](tmp_path)] == ["dog"]  # bear is in no list of 2016


def test_davis_test_sequences_have_the_mask_of_their_first_frame(tmp_path: Path) -> None:
    layouts.davis(tmp_path)
    with pytest.raises(DataError, match=r"2017/test-dev\.txt is not there"):
        VOS_SETS["davis2017-test-dev"](tmp_path)
    (tmp_path / "ImageSets/2017/test-dev.txt").write_text("bear\n")
    for mask in sorted((tmp_path / "Annotations/480p/bear").iterdir())[1:]:
        mask.unlink()
    (video,) = VOS_SETS["davis2017-test-dev"](tmp_path)
    assert len(video.frames) == 3 and [Path(mask).name for mask in video.masks] == ["00000.png"]


def test_real_first_frames_of_the_davis_test_set_can_be_listed(sample_data: Path) -> None:
    found = sequences("davis", sample_data / "davis/DAVIS-2017-test-dev_first_frames")
    assert len(found) == 15 and set(found.values()) == {("00000.jpg",)}


@pytest.mark.parametrize(
    ("reader", "layout", "frame"),
    [
        ("sintel", layouts.sintel, "training/clean/alley_1/frame_{:04d}.png"),
        ("flyingthings3d", layouts.things3d, "frames_cleanpass/TRAIN/A/0000/left/{:04d}.png"),
        ("kitti2015-multiview", layouts.kitti2015, "training/image_2/000004_{:02d}.png"),
        ("hd1k-sequences", layouts.hd1k, "hd1k_input/image_2/000000_{:04d}.png"),
        ("davis", layouts.davis, "JPEGImages/480p/bear/{:05d}.jpg"),
    ],
)
def test_a_sequence_that_lost_a_frame_is_refused_whole(
    reader: str, layout: Callable[[Path], Path], frame: str, tmp_path: Path
) -> None:
    """Those beside it would be taken for neighbours."""
    root = layout(tmp_path)
    for path in (root / frame).parent.glob(frame.rpartition("/")[2].partition("{")[0] + "*"):
        path.unlink()
    for number in (30, 31, 33):
        layouts.picture(root / frame.format(number), number)
    items = list(INPUT_READERS[reader](str(root), ""))
    refused = [item for item in items if item.refusal]
    assert [item.members[0].endswith(frame.rpartition("/")[2].format(30)) for item in refused] == [True]
    assert "31." in refused[0].refusal and "a frame between them is not there" in refused[0].refusal
    layouts.picture(root / frame.format(32), 32)
    assert not any(item.refusal for item in INPUT_READERS[reader](str(root), ""))
