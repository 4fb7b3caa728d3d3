"""Inputs brought to this machine: what is left where it is, what is copied or linked, and what is told of failures."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from mcjepa.data_prep.corpora import INPUT_READERS
from mcjepa.data_prep.corpora.items import FlowPair, Input
from mcjepa.data_prep.decode.fetch import local_input
from mcjepa.data_prep.decode.messages import DecodeFailure
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import open_store
from tests.data_prep import layouts


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """A folder for fetched files that need not be there yet."""
    return tmp_path / "work/scratch"


def listed(reader: str, root: Path | str, split: str = "") -> list[Input]:
    return list(INPUT_READERS[reader](str(root), split))


def test_a_plain_local_input_is_left_where_it_is(tmp_path: Path, scratch: Path) -> None:
    layouts.picture(tmp_path / "é 1.png")
    (item,) = listed("images", tmp_path)
    with local_input(item, scratch) as found:
        assert found is item
    assert not scratch.exists()


@pytest.mark.parametrize("name", ["a/b.PNG", "../../evil.png", "/x.png", "odd.$(touch x)"])
def test_a_member_of_a_tar_becomes_a_file_of_its_own(tmp_path: Path, scratch: Path, name: str) -> None:
    (tmp_path / "content").write_bytes(b"picture")
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        tar.add(tmp_path / "content", "first.png")
        tar.add(tmp_path / "content", name)
    span = (1536, 7)
    item = Input(f"t.tar/{name}", str(tmp_path / "t.tar"), "image", span=span, bytes=7)
    before = set(tmp_path.rglob("*"))
    with local_input(item, scratch) as found:
        assert Path(found.uri).read_bytes() == b"picture" and found.span is None and found.name == item.name
        assert Path(found.uri).is_relative_to(scratch)
        assert Path(found.uri).suffix == (".png" if name.lower().endswith("png") else "")
    assert set(tmp_path.rglob("*")) - before == {scratch, scratch.parent} and not any(scratch.iterdir())


def test_names_that_are_no_text_are_linked_under_plain_ones(tmp_path: Path, scratch: Path) -> None:
    folder = os.path.join(os.fsencode(tmp_path), b"s\xff")
    os.mkdir(folder)
    for number in (0, 1):
        with open(os.path.join(folder, b"%d\xe9.PNG" % number), "wb") as file:
            file.write(b"%d" % number)
    (sequence,) = listed("frame-folders", tmp_path)
    with local_input(sequence, scratch) as found:
        assert found.members == ("000000.png", "000001.png") and found.uri.isascii()
        assert [Path(f).read_bytes() for f in found.files] == [b"0", b"1"]
    (first, _) = listed("images", tmp_path)
    with local_input(first, scratch) as found:
        assert found.uri.endswith("/000000.png") and Path(found.uri).read_bytes() == b"0"
    assert not any(scratch.iterdir()) and len(os.listdir(folder)) == 2


def test_inputs_from_s3_are_whole_and_gone_afterwards(tmp_path: Path, scratch: Path, s3: str) -> None:
    store = open_store(s3)
    layouts.sintel(tmp_path / "sintel")
    for path in (tmp_path / "sintel/training").rglob("*_000*.*"):
        store.write(path.relative_to(tmp_path).as_posix(), path.read_bytes())
    (frame0, *_), (pair, *_) = listed("images", s3), listed("sintel-clean", f"{s3}/sintel")
    with local_input(frame0, scratch) as found:
        assert os.path.getsize(found.uri) == frame0.bytes
    with local_input(pair, scratch) as found:
        assert found.roles == pair.roles and FlowPair.from_input(found).read_truth().flow_px[0, 0].tolist() == [1, 1]
    store.write("t.tar", b"..content..")
    with local_input(Input("t.tar/a.png", f"{s3}/t.tar", "image", span=(2, 7)), scratch) as found:
        assert Path(found.uri).read_bytes() == b"content"
    with (
        pytest.raises(DecodeFailure, match="11 bytes, this member ends at 18"),
        local_input(Input("t.tar/a.png", f"{s3}/t.tar", "image", span=(9, 9)), scratch),
    ):
        pass
    with pytest.raises(DecodeFailure, match="not there any more"), local_input(Input("x", f"{s3}/x", "image"), scratch):
        pass
    assert not any(scratch.iterdir())


def test_a_tar_that_vanished_or_shrank_fails_its_input(tmp_path: Path, scratch: Path) -> None:
    item = Input("t.tar/a.png", str(tmp_path / "t.tar"), "image", span=(512, 7))
    with pytest.raises(DecodeFailure, match=r"t\.tar is not there any more"), local_input(item, scratch):
        pass
    (tmp_path / "t.tar").write_bytes(bytes(515))
    with pytest.raises(DecodeFailure, match="515 bytes, this member ends at 519"), local_input(item, scratch):
        pass
    assert not any(scratch.iterdir())


def test_a_scratch_that_cannot_be_made_is_not_the_inputs_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    item = Input("t.tar/a.png", str(tmp_path / "t.tar"), "image", span=(512, 7))
    with pytest.raises(DataError, match="cannot be written"), local_input(item, tmp_path / "file/scratch"):
        pass
