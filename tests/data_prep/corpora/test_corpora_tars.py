"""Tars as corpora: members in place, hostile names and members, damage, WebDataset's samples."""

from __future__ import annotations

import io
import struct
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import pytest

from mcjepa.data_prep.corpora import INPUT_READERS
from mcjepa.data_prep.corpora.items import Input
from mcjepa.data_prep.dataset.inputs import read_inputs
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.settings import CorpusConfig, DatasetConfig
from mcjepa.data_prep.storage import open_store
from tests.data_prep.small_corpora import smooth_frames

PICTURE = b"\x89PNG" + bytes(range(200)) * 3


def listed(reader: str, root: Path | str, split: str = "") -> list[Input]:
    return list(INPUT_READERS[reader](str(root), split))


def add(tar: tarfile.TarFile, name: str, data: bytes = PICTURE, kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    info.size = len(data) if kind == tarfile.REGTYPE else 0
    tar.addfile(info, io.BytesIO(data))


def write_tar(path: Path, fill: Callable[[tarfile.TarFile], None]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        fill(tar)
    return path


def content(item: Input) -> bytes:
    assert item.span is not None
    with open(item.uri, "rb") as file:
        file.seek(item.span[0])
        return file.read(item.span[1])


def test_images_of_tars_are_inputs_where_they_lie(tmp_path: Path) -> None:
    names = ("b/1.png", "a/0.JPG", "note.txt", "long/" * 60 + "x.png", "é.png", ".hidden.png", "d/._mac.png")

    def fill(tar: tarfile.TarFile) -> None:
        add(tar, "b", kind=tarfile.DIRTYPE)
        for name in names:
            add(tar, name, name.encode())

    write_tar(tmp_path / "z.tar", fill)
    write_tar(tmp_path / "part/a.tar", lambda tar: add(tar, "0.png"))
    items = listed("tars", tmp_path)
    assert [i.name for i in items] == [
        "part/a.tar/0.png",
        *(f"z.tar/{n}" for n in names if n.endswith(("png", "JPG")) and "._" not in n and n[0] != "."),
    ]
    assert [content(i).decode() for i in items[1:]] == [i.name.removeprefix("z.tar/") for i in items[1:]]
    assert all(i.kind == "image" and i.bytes == i.span[1] and not i.refusal for i in items if i.span)
    assert [i.name for i in listed("tars", tmp_path, "part")] == ["a.tar/0.png"]


def test_hostile_members_are_listed_and_nothing_is_written(tmp_path: Path) -> None:
    def fill(tar: tarfile.TarFile) -> None:
        for name in ("../../evil.png", "/etc/passwd.png", "evil.png", "a/../b.png", "a/b.png", "a/b.png"):
            add(tar, name)
        add(tar, "hard.png", kind=tarfile.LNKTYPE, link="evil.png")
        add(tar, "soft.png", kind=tarfile.SYMTYPE, link="/etc/passwd")
        add(tar, "loop.png", kind=tarfile.SYMTYPE, link="loop.png")
        add(tar, "device.png", kind=tarfile.CHRTYPE)
        add(tar, "pipe.png", kind=tarfile.FIFOTYPE)
        add(tar, "odd.png", kind=b"Z")
        add(tar, "inner.tar")
        add(tar, "readme", kind=tarfile.SYMTYPE, link="evil.png")

    write_tar(tmp_path / "in/t.tar", fill)
    before = sorted(tmp_path.rglob("*"))
    items = listed("tars", tmp_path / "in")
    assert sorted(tmp_path.rglob("*")) == before
    names = [i.name for i in items]
    assert len(set(names)) == len(names) == 13 and not any(".." in n.split("/") for n in names)
    assert names[:5] == ["t.tar/evil.png", "t.tar/etc/passwd.png", f"t.tar/evil.png@{2 * 1536 + 512}", *names[3:5]]
    assert names[3] == "t.tar/a/b.png" and names[4].startswith("t.tar/a/b.png@")
    assert [content(i) for i in items[:6]] == [PICTURE] * 6
    reasons = {i.name.removeprefix("t.tar/"): i.refusal for i in items[6:]}
    assert reasons == {
        "hard.png": "a hard link, not a file",
        "soft.png": "a symbolic link, not a file",
        "loop.png": "a symbolic link, not a file",
        "device.png": "a device, not a file",
        "pipe.png": "a pipe, not a file",
        "odd.png": "a member of an unknown type, not a file",
        "inner.tar": "a tar within a tar; unpack the outer one",
    }
    assert all(i.span is None for i in items[6:])


def test_a_sparse_member_is_refused(tmp_path: Path) -> None:
    def fill(tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo("sparse.png")
        info.pax_headers = {"GNU.sparse.map": "0,4", "GNU.sparse.size": "9", "GNU.sparse.numblocks": "1"}
        info.size = 4
        tar.addfile(info, io.BytesIO(b"abcd"))
        add(tar, "whole.png")

    write_tar(tmp_path / "t.tar", fill)
    assert [bool(i.refusal) for i in listed("tars", tmp_path)] == [True, False]


@pytest.mark.parametrize("kept_bytes", [512 + 100, 512 + 1024 + 600, 512 + 1024, 512 + 1024 + 512 + 300])
def test_a_tar_that_was_cut_off_gives_its_whole_members_and_a_reason(tmp_path: Path, kept_bytes: int) -> None:
    path = write_tar(tmp_path / "t.tar", lambda tar: [add(tar, n) for n in ("0.png", "1.png", "2.png")] and None)
    path.write_bytes(path.read_bytes()[:kept_bytes])
    items = listed("tars", tmp_path)
    whole = [i.name for i in items if not i.refusal]
    assert whole == (["t.tar/0.png"] if kept_bytes > 1200 else [])
    assert items[-1].name == "t.tar" and items[-1].refusal and items[-1].bytes == kept_bytes
    assert all(i.span is None for i in items if i.refusal)


def test_a_damaged_header_is_told_and_members_before_it_are_kept(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", lambda tar: [add(tar, n) for n in ("0.png", "1.png")] and None)
    data = bytearray(path.read_bytes())
    data[1536 + 150] ^= 0xFF
    path.write_bytes(data)
    items = listed("tars", tmp_path)
    assert [i.name for i in items] == ["t.tar/0.png", "t.tar"] and "at byte 1536" in items[1].refusal


def test_what_is_no_uncompressed_tar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.tar").write_bytes(b"")
    (tmp_path / "text.tar").write_text("not a tar\n" * 200)
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as tar:
        add(tar, "0.png")
    (tmp_path / "lost.tar").symlink_to("nothing")
    assert {i.name: bool(i.refusal) for i in listed("tars", tmp_path)} == dict.fromkeys(
        ("empty.tar", "lost.tar", "packed.tar", "text.tar"), True
    )


def test_tars_without_images_are_an_error_that_says_so(tmp_path: Path) -> None:
    write_tar(tmp_path / "t.tar", lambda tar: add(tar, "a.txt"))
    with pytest.raises(DataError, match="tars without images"):
        listed("tars", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"ending in \.tar"):
        listed("tars", tmp_path, "empty")


def checked(header: bytearray) -> bytes:
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def test_sizes_that_lead_back_or_fill_the_memory_end_the_listing(tmp_path: Path) -> None:
    """A negative size would make a reader loop; an extended header of gigabytes would be read into memory."""
    good = write_tar(tmp_path / "good.tar", lambda tar: add(tar, "0.png")).read_bytes()[:1536]
    back = bytearray(good[:512])
    back[124:136] = struct.pack(">BxxxQ", 0xFF, (1 << 64) - 1024)
    back[125:128] = b"\xff" * 3
    huge = bytearray(good[:512])
    huge[124:136] = b"%011o\0" % (1 << 32)
    huge[156:157] = b"x"
    for name, header in (("back", back), ("huge", huge)):
        (tmp_path / f"{name}.tar").write_bytes(good + checked(header) + bytes(4096))
    found = {i.name: i.refusal for i in listed("tars", tmp_path)}
    assert set(found) >= {"back.tar", "back.tar/0.png", "huge.tar", "huge.tar/0.png", "good.tar/0.png"}
    assert "leads back to byte 1023" in found["back.tar"] and "-1024 bytes" in found["back.tar/0.png@2048"]
    assert f"{1 << 32} bytes" in found["huge.tar"]


def test_samples_of_real_webdataset_shards_keep_their_media(sample_data: Path) -> None:
    items = listed("webdataset", sample_data / "videos/webdataset")
    assert [i.name.rpartition("/")[2] for i in items] == [
        "000000014.mp4",
        "000000025.mp4",
        "000000356.mp4",
        "0000008_00001.mp4",
        "0000030_00005.mp4",
        "0000038_00003.mp4",
    ]
    assert {i.kind for i in items} == {"video"} and not any(i.refusal or i.label for i in items)
    assert sum(content(i)[4:8] == b"ftyp" for i in items) == 3  # the other three are JPEG images by content


def test_the_class_of_a_sample_is_its_label_wherever_it_stands(tmp_path: Path) -> None:
    def fill(tar: tarfile.TarFile) -> None:
        for name, data in (
            ("x/0.cls", b"7\n"),
            ("x/0.jpg", PICTURE),
            ("x/0.seg.png", PICTURE),
            ("x/1.jpg", PICTURE),
            ("x/1.json", b"{}"),
            ("x/1.cls", b"cat"),
            ("2.mp4", PICTURE),
            ("2.cls", b"c" * 65),
            ("3.webm", PICTURE),
        ):
            add(tar, name, data)

    write_tar(tmp_path / "t.tar", fill)
    items = listed("webdataset", tmp_path)
    assert [(i.name, i.kind, i.label) for i in items] == [
        ("t.tar/x/0.jpg", "image", "7"),
        ("t.tar/x/1.jpg", "image", "cat"),
        ("t.tar/2.mp4", "video", ""),
        ("t.tar/3.webm", "video", ""),
    ]
    assert [content(i) for i in items] == [PICTURE] * 4


def labels_of(tmp_path: Path, *archives: str) -> list[str]:
    """Labels of the pictures of a file of tars, each given as its members: `x` a picture, `m` a mask, 0..9 a class."""
    parts = []
    for number, members in enumerate(archives):

        def fill(tar: tarfile.TarFile, members: str = members) -> None:
            for member in members:
                name = {"x": "0.jpg", "m": "0.seg.png"}.get(member, "0.cls")
                add(tar, name, PICTURE if member in "xm" else member.encode())

        parts.append(write_tar(tmp_path / f"parts/{number}.tar", fill).read_bytes())
    (tmp_path / "whole").mkdir(exist_ok=True)
    (tmp_path / "whole/t.tar").write_bytes(b"".join(parts))
    found = listed("webdataset", tmp_path / "whole")
    assert len(found) == "".join(archives).count("x") and all(i.name.startswith("t.tar/0.jpg") for i in found)
    return [item.label for item in found]


def test_a_key_that_comes_again_is_another_sample_with_its_own_label(tmp_path: Path) -> None:
    assert labels_of(tmp_path, "x3", "x7") == labels_of(tmp_path, "3x", "7x") == ["3", "7"]
    assert labels_of(tmp_path, "x", "x7") == ["", "7"] and labels_of(tmp_path, "x3", "x") == ["3", ""]
    assert labels_of(tmp_path, "x3x7") == labels_of(tmp_path, "x37x") == labels_of(tmp_path, "xm3mx7") == ["3", "7"]
    assert labels_of(tmp_path, "xx37") == labels_of(tmp_path, "37xx") == ["", ""], "whose label is whose?"
    assert labels_of(tmp_path, "mx3m") == ["3"]


@pytest.mark.parametrize("name", ["odd.tar/t.tar", "t.TAR"])
def test_a_quarantined_member_is_named_with_its_tar(name: str, build, tmp_path: Path) -> None:
    """In what `prep run` prints: the tar alone would leave its reader with a thousand members to try."""
    good = cv2.imencode(".jpg", smooth_frames(0, 1, 48, 64)[0])[1].tobytes()
    path = write_tar(tmp_path / "corpus" / name, lambda tar: [add(tar, "a/0.jpg"), add(tar, "a/1.jpg", good)])
    config = DatasetConfig(kind="image", corpora=(CorpusConfig(reader="tars", path=str(tmp_path / "corpus")),))
    build(tmp_path / "d", config)
    found = {r.outcome: r for r in read_inputs(open_store(str(tmp_path / "d")))}
    assert found["quarantined"].where == f"{path} (a/0.jpg)" and found["ok"].where == f"{path} (a/1.jpg)"
    assert replace(found["ok"], uri="/videos/x.mp4").where == "/videos/x.mp4"
