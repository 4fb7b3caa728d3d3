"""Both kinds of store keep the same promises: atomic writes, conditional puts, ranged reads, clear errors."""

from __future__ import annotations

import itertools
import os
import pickle
import shutil
import threading
from pathlib import Path
from urllib.parse import quote

import pytest

from mcjepa.data_prep.corpora.places import plain_location, store_and_key
from mcjepa.data_prep.corpora.trees import Tree
from mcjepa.data_prep.errors import AbsentKey, DataError
from mcjepa.data_prep.storage import (
    FolderStore,
    KeySpan,
    Store,
    absolute_location,
    atomic_write,
    explained_disk_errors,
    join_location,
    local_path,
    open_store,
)


def test_what_is_written_is_read(store: Store) -> None:
    store.write("a/b.bin", b"0123456789")
    assert store.read("a/b.bin") == b"0123456789"
    assert store.read_range("a/b.bin", 3, 4) == b"3456"
    assert store.read_range("a/b.bin", 8, 10) == b"89"
    assert store.size("a/b.bin") == 10 and store.exists("a/b.bin")
    store.write("a/b.bin", b"new")
    assert store.read("a/b.bin") == b"new"


def test_an_absent_key_is_an_error_that_names_it(store: Store) -> None:
    assert not store.exists("no/such")
    for read in (store.read, store.size, lambda key: store.read_range(key, 0, 1)):
        with pytest.raises(AbsentKey, match="no/such"):
            read("no/such")
    store.remove("no/such")


def test_listing_is_sorted_and_by_prefix(store: Store) -> None:
    for key in ("shards/b", "shards/a", "top"):
        store.write(key, b"x")
    assert list(store.list("shards/")) == ["shards/a", "shards/b"]
    assert list(store.list("")) == ["shards/a", "shards/b", "top"]
    store.remove("shards/a")
    assert list(store.list("sh")) == ["shards/b"]


def test_files_come_with_their_lengths_in_the_byte_order_of_their_keys(store: Store) -> None:
    keys = ["a b", "a/b", "a/c/d", "a/c!", "a/c0", "a+b", "a-b", "a.txt", "a0", "é", "z/é %20+&<"]
    for length, key in enumerate(keys):
        store.write(key, bytes(length))
    for hidden in (".x", "a/.y", ".z/k"):
        store.write(hidden, b"")
    found = list(store.files())
    assert [entry.key for entry in found] == sorted(keys, key=str.encode) == list(store.list(""))
    assert {entry.key: entry.bytes for entry in found} == {key: length for length, key in enumerate(keys)}
    assert [entry.key for entry in store.files("a/c")] == ["a/c!", "a/c/d", "a/c0"]
    assert [entry.key for entry in store.files("a/c/")] == ["a/c/d"]
    assert list(store.files("no/such")) == list(store.files(".z/")) == []
    ends = ["", "a", "a/", "a/c!", "a/c/", "a/c/d", "a0", "b/", "z/", "zz", "é"]
    for first, end in itertools.product(ends, ends):
        span = KeySpan(first, end)
        assert list(store.files(span=span)) == [entry for entry in found if span.holds(entry.key)], span
    assert store.level() == ["a b", "a+b", "a-b", "a.txt", "a/", "a0", "z/", "é"]
    assert store.level("a/") == ["a/b", "a/c!", "a/c/", "a/c0"]


def test_content_is_read_as_a_stream(store: Store) -> None:
    content = bytes(range(256)) * 9000
    store.write("clip.mp4", content)
    with store.open("clip.mp4") as file:
        assert file.read(3) == content[:3]
        assert b"".join(iter(lambda: file.read(100_000), b"")) == content[3:]
        assert file.read() == b""
    with pytest.raises(AbsentKey, match="absent"), store.open("absent.mp4"):
        pass


def test_content_or_a_span_of_it_is_copied_to_a_local_file(store: Store, tmp_path: Path) -> None:
    store.write("clip.mp4", b"0123456789")
    path = tmp_path / "clip.mp4"
    for span, expected in ((None, b"0123456789"), ((2, 3), b"234"), ((9, 1), b"9"), ((4, 0), b"")):
        store.download("clip.mp4", path, span)
        assert path.read_bytes() == expected
    for span in ((8, 3), (20, 1)):
        with pytest.raises(DataError, match="expected"):
            store.download("clip.mp4", path, span)
    with pytest.raises(AbsentKey, match="absent"):
        store.download("absent.mp4", path)


def test_empty_content_is_content(store: Store, tmp_path: Path) -> None:
    store.write("empty", b"")
    store.download("empty", tmp_path / "empty")
    with store.open("empty") as file:
        assert file.read() == store.read("empty") == store.read_range("empty", 0, 5) == b""
    assert (tmp_path / "empty").read_bytes() == b"" and store.read_range("empty", 7, 5) == b""


def test_only_the_first_conditional_put_wins(store: Store) -> None:
    assert store.write_if_absent("manifest.json", b"first")
    assert not store.write_if_absent("manifest.json", b"second")
    assert store.read("manifest.json") == b"first"


def test_of_many_writers_at_once_one_wins(store: Store) -> None:
    won: list[int] = []

    def put(number: int) -> None:
        if store.write_if_absent("once", str(number).encode()):
            won.append(number)

    threads = [threading.Thread(target=put, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and store.read("once") == str(won[0]).encode()


def test_a_finished_file_is_taken_over(store: Store) -> None:
    path = store.scratch() / f"piece.{os.getpid()}.partial"
    path.write_bytes(b"content")
    assert list(store.list("")) == []
    store.write_file("shards/x.tar", path)
    assert store.read("shards/x.tar") == b"content" and not path.exists()


def test_a_growing_file_is_taken_over_when_it_is_finished(store: Store) -> None:
    for end in ("finished", "given up"):
        path = store.scratch() / f"{end}.partial"
        with store.growing_file(end, path) as growing:
            path.write_bytes(b"con")
            growing.settle(3)
            path.write_bytes(b"content")
            if end == "finished":
                growing.finish()
    assert list(store.list("")) == ["finished"] and store.read("finished") == b"content"


def test_a_store_can_be_sent_to_another_process(store: Store) -> None:
    store.write("k", b"v")
    assert pickle.loads(pickle.dumps(store)).read("k") == b"v"  # noqa: S301


@pytest.mark.parametrize("key", ["../out", "a/../../out", "/etc/passwd"])
def test_a_key_cannot_lead_out_of_its_location(store: Store, key: str) -> None:
    with pytest.raises(DataError, match="leads out"):
        store.read(key)


def test_a_failed_write_leaves_the_old_content_and_no_litter(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "state.json"
    atomic_write(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_explained() -> None:
    with (
        pytest.raises(DataError, match=r"no space left .*expected room.*free some space"),
        explained_disk_errors("here"),
        open("/dev/full", "wb") as full,
    ):
        full.write(b"x")
        full.flush()


def test_a_folder_below_a_file_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="writable folder"):
        open_store(str(tmp_path / "file" / "data")).write("k", b"")


def test_locations_are_paths_urls_or_buckets(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/with%20space")
    assert isinstance(store, FolderStore) and store.path("k") == tmp_path / "with space" / "k"
    assert join_location("s3://b/p/", "clips") == "s3://b/p/clips"
    assert absolute_location("s3://b/p") == "s3://b/p" and absolute_location("x") == str(Path("x").absolute())
    for wrong in ("ftp://x/y", "", "s3://", "file://data/x", "file://data", "file://~/data"):
        with pytest.raises(DataError):
            open_store(wrong)


ODD_NAMES = ("a#b", "a?b", "a b", "50%", "50%25", "a%20b", "é+&=;", "file:x", "[x")


@pytest.mark.parametrize("name", ODD_NAMES)
def test_no_letter_of_a_location_cuts_it_off(name: str, tmp_path: Path) -> None:
    place = tmp_path / name / "set"
    for location in (str(place), place.as_uri(), f"file://{tmp_path}/{quote(name, safe='#?')}/set"):
        store = open_store(location)
        store.write("k#1?/x%20", b"content")
        assert (place / "k#1?" / "x%20").read_bytes() == b"content" and list(store.list("")) == ["k#1?/x%20"]
        assert open_store(join_location(location, name)).location.startswith(location)
        open_store(join_location(location, name)).write("k", location.encode())
        assert (place / name / "k").read_text() == location
        assert plain_location(location) == str(place) == str(local_path(location))
        shutil.rmtree(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_plain_path_is_no_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    open_store("file:x").write("k", b"1")
    assert (tmp_path / "file:x" / "k").read_bytes() == b"1"
    assert open_store("//[x/y").location == "//[x/y"
    assert local_path("file://localhost/a%23") == Path("/a#")
    assert local_path(Path("/\udcff#").as_uri()) == Path("/\udcff#")


def test_objects_keep_their_names_whatever_letters_they_have(s3: str) -> None:
    for name in ODD_NAMES:
        store = open_store(f"{s3}/{name}")
        store.write("k#1?/x%20", name.encode())
        assert [entry.key for entry in store.files()] == ["k#1?/x%20"] and store.level() == ["k#1?/"]
        store.move("k#1?/x%20", "m+%2B")
        assert store.read("m+%2B") == name.encode() and store.size("m+%2B") == len(name.encode())
        found, key = store_and_key(f"{s3}/{name}/m+%2B")
        assert found.read(key) == name.encode()
        assert Tree(f"{s3}/{name}").below("") == ["m+%2B"]


def test_a_file_is_moved_with_its_content(store: Store) -> None:
    store.write("a/b", b"content")
    store.move("a/b", "c/d e/f")
    assert list(store.list("")) == ["c/d e/f"] and store.read("c/d e/f") == b"content"
    with pytest.raises(AbsentKey):
        store.move("a/b", "x")
