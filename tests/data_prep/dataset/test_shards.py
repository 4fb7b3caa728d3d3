"""Shards are plain USTAR, the same bytes every time, and read by webdataset and tarfile as they are."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from mcjepa.data_prep.dataset.shards import ShardWriter, tar_header
from mcjepa.data_prep.errors import DataError

SAMPLES = {
    "d3a1-000000": {"00.jpg": b"\xff\xd8first", "01.jpg": b"\xff\xd8" + bytes(700), "json": b'{"a":1}'},
    "d3a1-000001": {"json": b"{}", "00.jpg": b"", "01.jpg": bytes(512)},
}
GOLDEN = "635a14142e3becaa3ba96a9c0096460e29dcad011726c7357d4b2f97f517dfa6"


def write(samples: dict[str, dict[str, bytes]]) -> tuple[bytes, ShardWriter, tuple]:
    file = io.BytesIO()
    writer = ShardWriter(file)
    for key, members in samples.items():
        writer.add(key, members)
    return file.getvalue(), writer, (writer.finish(), file.getvalue())


def test_the_digest_of_a_known_shard_never_changes() -> None:
    _, _, ((digest, size, _), data) = write(SAMPLES)
    assert digest == hashlib.sha256(data).hexdigest() and size == len(data)
    assert digest == GOLDEN


def test_bytes_are_those_of_pythons_tarfile_in_ustar_format() -> None:
    _, _, (_, data) = write(SAMPLES)
    expected = io.BytesIO()
    with tarfile.open(fileobj=expected, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for key, members in SAMPLES.items():
            for suffix, content in sorted(members.items()):
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    assert expected.getvalue().startswith(data)
    assert not any(expected.getvalue()[len(data) :])  # tarfile pads with zeros to 10 kiB


def test_offsets_point_at_the_contents() -> None:
    _, _, ((_, _, entries), data) = write(SAMPLES)
    found = {entry.key: {m.suffix: data[m.offset : m.offset + m.bytes] for m in entry.members} for entry in entries}
    assert found == SAMPLES
    assert [m.suffix for m in entries[1].members] == ["00.jpg", "01.jpg", "json"]


def test_webdataset_reads_the_samples_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "clip-000000.tar"
    path.write_bytes(write(SAMPLES)[2][1])
    read = {
        sample["__key__"]: {k: v for k, v in sample.items() if not k.startswith("__")}
        for sample in webdataset.WebDataset(str(path), shardshuffle=False)
    }
    assert read == SAMPLES


def test_going_back_leaves_no_trace() -> None:
    file = io.BytesIO()
    writer = ShardWriter(file)
    first, second = SAMPLES.items()
    writer.add(*first)
    mark = writer.mark()
    writer.add("bad-000000", {"jpg": bytes(5000)})
    writer.go_back(mark)
    writer.add(*second)
    digest, _, entries = writer.finish()
    assert file.getvalue() == write(SAMPLES)[2][1]
    assert digest == GOLDEN and [e.key for e in entries] == list(SAMPLES)


@pytest.mark.parametrize("key", ["with.dot", "with/slash", ""])
def test_keys_that_webdataset_would_split_are_refused(key: str) -> None:
    with pytest.raises(DataError, match="key"):
        ShardWriter(io.BytesIO()).add(key, {"jpg": b""})


def test_a_member_that_does_not_fit_ustar_is_refused() -> None:
    with pytest.raises(DataError, match="does not fit"):
        tar_header("x" * 101, 1)
    with pytest.raises(DataError, match="8 GiB"):
        tar_header("x", 8**11)
    assert tar_header("x" * 100, 8**11 - 1)[124:136] == b"7" * 11 + b"\0"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(max_size=1600), min_size=1, max_size=6))
def test_any_contents_survive(contents: list[bytes]) -> None:
    samples = {f"k-{n:06d}": {"bin": content} for n, content in enumerate(contents)}
    _, _, ((_, size, _), data) = write(samples)
    assert size % 512 == 0
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        read = [archive.extractfile(member).read() for member in archive]  # type: ignore[union-attr]
    assert read == contents
