"""Everything that lies in a corpus is an input's file or counted by the end of its name; labels are never invented."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest
from test_corpora_tars import PICTURE, add, write_tar

from mcjepa.data_prep.corpora.census import Census
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.plan.listing import list_inputs
from mcjepa.data_prep.settings import CorpusConfig, DatasetConfig


def listed(reader: str, root: Path, **options: object) -> tuple[list[str], Census, list[str]]:
    """Names of the inputs, the census, and the labels."""
    corpus = CorpusConfig(reader=reader, path=str(root), **options)  # type: ignore[arg-type]
    census = Census()
    inputs = list(list_inputs(DatasetConfig(kind="image", corpora=(corpus,)), census))
    files = sum(len(planned.item.files) for planned in inputs)
    assert census.entries == files + sum(census.others.values())
    return [p.item.name for p in inputs], census, [p.item.label for p in inputs]


SUFFIXES = [
    "heic",
    "avif",
    "jxl",
    "jp2",
    "jfif",
    "3gp",
    "mts",
    "m2ts",
    "flv",
    "ogv",
    "mxf",
    "qt",
    "vob",
    "tar.gz",
    "tgz",
    "txt",
]


@pytest.mark.parametrize(
    ("reader", "taken"),
    [
        ("images", {"heic", "avif", "jp2", "jfif", "jpg"}),
        ("videos", {"3gp", "mts", "m2ts", "flv", "ogv", "mxf", "qt", "vob", "mp4"}),
        ("tars", {"tar.gz", "tgz", "jpg"}),
    ],
)
def test_every_file_is_an_input_or_counted_by_its_suffix(reader: str, taken: set[str], tmp_path: Path) -> None:
    for number, suffix in enumerate([*SUFFIXES, "JPG", "mp4", "noend"]):
        name = "plain" if suffix == "noend" else f"{number}.{suffix}"
        (tmp_path / f"f{number % 3}").mkdir(exist_ok=True)
        (tmp_path / f"f{number % 3}" / name).write_bytes(b"x")
    write_tar(tmp_path / "t.tar", lambda tar: add(tar, "0.jpg"))
    names, census, _ = listed(reader, tmp_path)
    found = {name.partition(".")[2].lower().removeprefix("tar/0.") for name in names}
    assert found == taken
    in_folders = sum(len(files) for _, _, files in os.walk(tmp_path))
    assert census.entries == in_folders  # the one tar is a file, or its one member
    known = {f".{s}" for s in (*SUFFIXES, "jpg", "mp4")} - {f".{s}" for s in taken}
    assert set(census.others) == known - ({".jpg"} if reader == "tars" else set()) | {"no plain ending"} | (
        {".jpg", ".tar"} if reader == "videos" else {".jpg"} if reader == "tars" else {".tar"}
    )


def foreign(tar: tarfile.TarFile) -> None:
    """Members of a sample apart, a class in capitals, masks and depth maps, samples without a class."""
    for name in ("0.jpg", "1.jpg", "0.cls", "2.JPG", "2.CLS", "3.jpg", "3.seg.png", "3.depth.tif", "3.cls", "4.jpg"):
        add(tar, name, name[0].encode() if "cls" in name.lower() else PICTURE)
    for name in ("1.cls", "5.v1.jpg", "6.left.jpg", "6.right.jpg", "7.mp4", "7.jpg", "7.json", "8.png", "8.jpg"):
        add(tar, name, b"one" if "cls" in name else PICTURE)


def test_labels_of_foreign_shards_are_those_that_are_given(tmp_path: Path) -> None:
    write_tar(tmp_path / "s0.tar", foreign)
    names, census, labels = listed("webdataset", tmp_path, labels=True)
    assert dict(zip([n.removeprefix("s0.tar/") for n in names], labels, strict=True)) == {
        "0.jpg": "0",
        "1.jpg": "one",
        "2.JPG": "2",
        "3.jpg": "3",
        "4.jpg": "",
        "5.v1.jpg": "",
        "7.mp4": "",
        "8.jpg": "",
    }
    assert census.unlabelled == 4
    assert census.others == {
        ".cls (label)": 4,
        ".json": 1,
        ".seg.png (not chosen of its sample)": 1,
        ".depth.tif (not chosen of its sample)": 1,
        ".left.jpg (not chosen of its sample)": 1,
        ".right.jpg (not chosen of its sample)": 1,
        ".jpg (not chosen of its sample)": 1,
        ".png (not chosen of its sample)": 1,
    }
    assert census.entries == 19


def test_members_are_chosen_by_a_field(tmp_path: Path) -> None:
    write_tar(tmp_path / "s0.tar", foreign)
    assert listed("webdataset", tmp_path, members=("left.jpg", "seg.png"))[0] == [
        "s0.tar/3.seg.png",
        "s0.tar/6.left.jpg",
    ]
    assert listed("tars", tmp_path, members=("png",))[0] == ["s0.tar/3.seg.png", "s0.tar/8.png"]
    with pytest.raises(DataError, match="reader packaged-photos with `members`"):
        listed("packaged-photos", tmp_path, members=("png",))


def test_the_masks_of_a_frame_folder_are_no_frames(tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    for name in ("1.jpg", "1_mask.jpg", "2.jpg", "2_mask.jpg", "2.depth.png", "10.jpg", "cover_art.jpg"):
        (tmp_path / "clip" / name).write_bytes(PICTURE)
    corpus = CorpusConfig(reader="frame-folders", path=str(tmp_path))
    census = Census()
    (only,) = list_inputs(DatasetConfig(kind="clip", corpora=(corpus,)), census)
    assert only.item.members == ("1.jpg", "2.jpg", "10.jpg", "cover_art.jpg")
    assert census.others == {".mask.jpg (beside its frame)": 2, ".depth.png (beside its frame)": 1}
    names = listed("frame-folders", tmp_path, members=("_mask.jpg",))
    assert names[0] == ["clip"] and names[1].others == {".jpg (not among members)": 4, ".png (not among members)": 1}


def test_of_a_frame_in_two_formats_one_is_the_frame(tmp_path: Path) -> None:
    for folder, names in (
        ("clip", ("1.jpg", "1.png", "2.JPG", "2.png", "3.jpg", "4.jpg", "4_mask.png")),
        ("mixed", ("1.jpg", "2.png", "3.jpg")),
    ):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).write_bytes(PICTURE)
    corpus = CorpusConfig(reader="frame-folders", path=str(tmp_path))
    census = Census()
    found = {p.item.name: p.item.members for p in list_inputs(DatasetConfig(kind="clip", corpora=(corpus,)), census)}
    assert found == {"clip": ("1.jpg", "2.JPG", "3.jpg", "4.jpg"), "mixed": ("1.jpg", "2.png", "3.jpg")}
    assert census.others == {".png (beside its frame)": 2, ".mask.png (beside its frame)": 1}


@pytest.mark.parametrize("padding", [0, 512, 10240, 3 << 20])
def test_what_stands_behind_an_end_mark_is_read(padding: int, tmp_path: Path) -> None:
    for number in range(3):
        write_tar(tmp_path / f"parts/{number}.tar", lambda tar, n=number: add(tar, f"{n}.jpg"))  # type: ignore[misc]
    parts = [(tmp_path / f"parts/{n}.tar").read_bytes() + bytes(padding) for n in range(3)]
    whole = tmp_path / "all"
    whole.mkdir()
    (whole / "t.tar").write_bytes(b"".join(parts))
    for reader in ("tars", "webdataset"):
        names, _, _ = listed(reader, whole)
        assert names == [f"t.tar/{n}.jpg" for n in range(3)]
    (whole / "t.tar").write_bytes(parts[0] + b"this is no tar header" * 100)
    names, _, _ = listed("tars", whole)
    assert names == ["t.tar/0.jpg", "t.tar"]
