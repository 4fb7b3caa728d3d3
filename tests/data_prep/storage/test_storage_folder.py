"""What only a folder can hold: links in circles, names that are no text, pipes, folders that may not be read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import KeySpan, open_store


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    (tmp_path / "top" / "in").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    for place in ("top/in", "other"):
        (tmp_path / place / "clip").write_bytes(b"1234")
    for link, target in {
        "top/in/up": "..",
        "top/in/self": "self",
        "top/dangling": "nowhere",
        "top/other": "../other",
        "other/back": "../top/in",
    }.items():
        (tmp_path / link).symlink_to(target)
    found = dict(open_store(str(tmp_path / "top")).files())
    assert found == {
        "dangling": -1,
        "in/clip": 4,
        "in/self": -1,
        "in/up": -1,
        "other/back/clip": 4,
        "other/back/self": -1,
        "other/back/up": -1,
        "other/clip": 4,
    }
    assert "dangling" not in set(open_store(str(tmp_path / "top")).list(""))


def test_a_folder_that_cannot_be_entered_lies_in_one_span(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(".")
    for name in ("a", "loop-x", "z"):
        (tmp_path / name).write_bytes(b"1")
    store = open_store(str(tmp_path))
    whole = [("a", 1), ("loop-x", 1), ("loop", -1), ("z", 1)]
    assert list(store.files()) == whole
    for cut in ("a", "loop", "loop-x", "loop/", "loop/a", "loop/loop/z", "z"):
        first, second = (list(store.files(span=span)) for span in (KeySpan(end=cut), KeySpan(cut)))
        assert first + second == whole, cut


def test_names_that_are_no_utf8_survive(tmp_path: Path) -> None:
    name = b"caf\xe9.mp4"
    with open(os.fsencode(tmp_path) + b"/" + name, "wb") as file:
        file.write(b"123")
    store = open_store(str(tmp_path))
    (entry,) = store.files()
    assert (os.fsencode(entry.key), entry.bytes, store.read(entry.key)) == (name, 3, b"123")


def test_what_is_no_file_has_no_length(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").mkdir()
    assert list(open_store(str(tmp_path)).files()) == [("pipe", -1)]


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read every folder")
def test_a_folder_that_may_not_be_read_is_an_entry_or_an_error(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    assert list(open_store(str(tmp_path)).files()) == [("closed", -1)]
    with pytest.raises(DataError, match="cannot be listed"):
        list(open_store(str(tmp_path / "closed")).files())
