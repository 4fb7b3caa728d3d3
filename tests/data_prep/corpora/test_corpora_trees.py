"""The walk through trees: one order for folders and s3, links, special files and names that are no text."""

from __future__ import annotations

import os
import shutil
import socket
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mcjepa.data_prep.corpora import FLOW_SETS, INPUT_READERS, SEGMENTATION_SETS, VOS_SETS
from mcjepa.data_prep.corpora.inputs import in_frame_order
from mcjepa.data_prep.corpora.items import Input
from mcjepa.data_prep.corpora.trees import IMAGE_SUFFIXES, Tree, files_below
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import open_store
from tests.data_prep import layouts

# In byte order of whole names: '!' and '-' sort before '/', which sorts before digits and letters.
NAMES = ("a!/z.jpg", "a-b.png", "a/1.png", "a/B.GIF", "a/b/0.png", "a0.jpeg", "b.jpg", "é.png", "日.png", "😀.png")


def listed(reader: str, root: Path | str, split: str = "") -> list[Input]:
    return list(INPUT_READERS[reader](str(root), split))


def write_names(root: Path) -> Path:
    for name in (*NAMES, "notes.txt", ".hidden/a.png", "a/.b.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def upload(folder: Path, location: str) -> str:
    store = open_store(location)
    paths = [path for path in folder.rglob("*") if path.is_file()]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda path: store.write(path.relative_to(folder).as_posix(), path.read_bytes()), paths))
    return location


def test_files_come_in_byte_order_of_their_whole_names_with_their_sizes(tmp_path: Path) -> None:
    items = listed("images", write_names(tmp_path))
    assert [i.name for i in items] == list(NAMES)
    assert [i.bytes for i in items] == [len(name.encode()) for name in NAMES]
    assert [i.uri for i in items] == [f"{tmp_path}/{name}" for name in NAMES]


def test_images_below_an_s3_prefix_are_listed_as_in_a_folder(tmp_path: Path, s3: str) -> None:
    upload(write_names(tmp_path), s3)
    assert [(i.name, i.bytes) for i in listed("images", s3)] == [(i.name, i.bytes) for i in listed("images", tmp_path)]
    assert listed("images", s3)[0].uri == f"{s3}/{NAMES[0]}"
    assert [i.name for i in listed("images", s3, "a")] == ["1.png", "B.GIF", "b/0.png"]


@pytest.mark.slow
def test_every_set_below_an_s3_prefix_is_listed_as_in_its_local_copy(tmp_path: Path, s3: str) -> None:
    write_names(tmp_path / "images")
    for write in (layouts.things3d, layouts.hd1k, layouts.kitti2015, layouts.sintel, layouts.chairs, layouts.davis):
        write(tmp_path / write.__name__)
    layouts.voc2012(tmp_path / "voc2012")
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars/x.tar", "w") as tar:
        for name in ("0.jpg", "0.cls", "1.png"):
            tar.add(tmp_path / "chairs/FlyingChairs_train_val.txt", name)
    upload(tmp_path, s3)
    cases = [("images", "images"), ("frame-folders", "images"), ("imagefolder", "images"), ("tars", "tars")]
    cases += [("webdataset", "tars"), ("davis", "davis"), ("chairs-val", "chairs"), ("sintel-final", "sintel")]
    cases += [("kitti2015", "kitti2015"), ("kitti2015-multiview", "kitti2015"), ("hd1k", "hd1k")]
    cases += [("hd1k-sequences", "hd1k"), ("things3d-clean", "things3d"), ("flyingthings3d", "things3d")]
    cases += [("voc2012", "voc2012"), ("sintel", "sintel")]
    for reader, folder in cases:
        here, there = tmp_path / folder, f"{s3}/{folder}"
        local = [(str(i).replace(str(here), there)) for i in listed(reader, here)]
        assert [str(i) for i in listed(reader, there)] == local, reader
    pair = FLOW_SETS["things3d-final"](f"{s3}/things3d")[0]
    assert pair.read_frames()[0][0, 0].tolist() == [106] * 3 and pair.read_truth().flow_px[0, 0].tolist() == [6, 1]
    assert FLOW_SETS["kitti2015"](f"{s3}/kitti2015")[0].read_truth().valid.sum() == 40
    assert SEGMENTATION_SETS["voc2012"](f"{s3}/voc2012", "train")[0].read()[1].min() == 255
    assert VOS_SETS["davis2017"](f"{s3}/davis")[0].read_mask(0).max() == 2
    with pytest.raises(DataError, match="no file ending in"):
        listed("videos", f"{s3}/images")


def test_links_into_themselves_are_listed_with_the_reason_and_not_entered(tmp_path: Path) -> None:
    (tmp_path / "data/deep").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    layouts.picture(tmp_path / "elsewhere/c.png")
    layouts.picture(tmp_path / "data/deep/a.png")
    (tmp_path / "data/deep/up").symlink_to(tmp_path / "data")
    (tmp_path / "data/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/self.png").symlink_to("self.png")
    (tmp_path / "data/lost.png").symlink_to("nothing")
    (tmp_path / "data/unmounted").symlink_to("nothing")
    (tmp_path / "data/lost.txt").symlink_to("nothing")
    found = {i.name: i.refusal for i in listed("images", tmp_path / "data")}
    assert list(found) == ["deep/a.png", "deep/up", "lost.png", "more/c.png", "self.png", "unmounted"]
    assert found["deep/a.png"] == found["more/c.png"] == ""
    assert "folder that it lies in" in found["deep/up"] and "symbolic links" in found["self.png"]
    assert "No such file" in found["lost.png"] and "No such file" in found["unmounted"]
    sequences = {i.name: (i.members, i.refusal) for i in listed("frame-folders", tmp_path / "data")}
    assert sequences["deep"] == (("a.png",), "") and sequences["more"] == (("c.png",), "")
    assert sequences["deep/up"][1] and sequences["unmounted"][1] and len(sequences) == 5
    assert sequences["."][1].startswith("2 of its 2 files cannot be read; lost.png: cannot be examined (No such file")


def test_special_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero.mp4").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(tmp_path, os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{here}/socket.mp4")
        os.close(here)
        found = {i.name: (i.refusal, i.bytes) for i in listed("videos", tmp_path)}
    assert list(found) == ["pipe.mp4", "socket.mp4", "zero.mp4"]
    assert set(found.values()) == {("neither a file nor a folder", -1)}


def test_names_that_are_no_text_are_listed_and_sorted_by_their_bytes(tmp_path: Path) -> None:
    names = [b"\x80.png", b"\xff.png", "\ue000.png".encode(), b"a.png", b"b\xe9/1.png"]
    for name in names:
        path = os.path.join(os.fsencode(tmp_path), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        open(path, "wb").close()
    items = listed("images", tmp_path)
    assert [os.fsencode(i.name) for i in items] == sorted(names)
    assert all(os.path.exists(i.uri) for i in items)
    assert {os.fsencode(i.name) for i in listed("frame-folders", tmp_path)} == {b".", b"b\xe9"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_read_is_an_input_with_a_reason(tmp_path: Path) -> None:
    layouts.picture(tmp_path / "a.png")
    layouts.picture(tmp_path / "closed/b.png")
    (tmp_path / "closed").chmod(0)
    found = {i.name: i.refusal for i in listed("images", tmp_path)}
    (tmp_path / "closed").chmod(0o755)
    assert found == {"a.png": "", "closed": "a folder that may not be read"}


def test_frames_with_unpadded_numbers_are_in_order_of_the_numbers(tmp_path: Path) -> None:
    for number in (1, 2, 9, 10, 100):
        layouts.picture(tmp_path / f"walk/f{number}.png")
    assert listed("frame-folders", tmp_path)[0].members == ("f1.png", "f2.png", "f9.png", "f10.png", "f100.png")
    assert in_frame_order(["b2", "a10", "a9", "1"], str) == ["1", "a9", "a10", "b2"]


def test_the_frames_of_a_folder_are_one_sequence_wherever_its_folders_sort(tmp_path: Path) -> None:
    for name in ("s/a.png", "s/m/0.png", "s/m/1.png", "s/z.png", "t.png"):
        layouts.picture(tmp_path / name)
    found = {i.name: i for i in listed("frame-folders", tmp_path)}
    assert {n: i.members for n, i in found.items()} == {
        "s/m": ("0.png", "1.png"),
        "s": ("a.png", "z.png"),
        ".": ("t.png",),
    }
    assert found["."].files == (f"{tmp_path}/t.png",) and found["s/m"].uri == f"{tmp_path}/s/m"
    assert found["s"].bytes == sum(os.path.getsize(f) for f in found["s"].files)


def test_imagenet_labels_are_its_folders(sample_data: Path, tmp_path: Path) -> None:
    items = listed("imagenet", sample_data / "imagenet")
    assert len(items) == 300 and all(i.label == i.name.split("/")[0] and i.label[0] == "n" for i in items)
    ants = listed("imagefolder", sample_data / "hymenoptera_data", "val")
    assert {i.label for i in ants} == {"ants", "bees"} and ants[0].name.startswith("ants/")
    shutil.copy(ants[0].uri, tmp_path / "flat.jpg")
    assert [i.label for i in listed("imagefolder", tmp_path)] == [""]


def test_a_tree_knows_files_with_and_without_a_listing(tmp_path: Path) -> None:
    tree = Tree(write_names(tmp_path))
    assert tree.has("a/1.png") and not tree.has("a/2.png") and tree.bytes_of("a/1.png") == 7
    assert tree.below("a") == ["a/1.png", "a/B.GIF", "a/b/0.png"] and tree.below("none") == []
    assert tree.bytes_of("a/1.png") == 7 and tree.bytes_of("a/b/1.png") == -1
    with pytest.raises(DataError, match="no text"):
        (tmp_path / "list.txt").write_bytes(b"\xff")
        tree.read_text("list.txt")
    assert list(files_below(f"file://{tmp_path}", IMAGE_SUFFIXES)) == list(NAMES)
