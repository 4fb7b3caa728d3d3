"""Lists of inputs for the plan: names, sizes, labels and repetitions."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.plan.listing import list_inputs
from mcjepa.data_prep.settings import CorpusConfig, DatasetConfig
from tests.data_prep import layouts


def listed(*corpora: CorpusConfig) -> list:
    return list(list_inputs(DatasetConfig(kind="image", corpora=corpora)))


def test_names_begin_with_the_corpus_and_its_repetition(tmp_path: Path) -> None:
    layouts.picture(tmp_path / "a/0.png")
    layouts.things3d(tmp_path / "things")
    corpora = (
        CorpusConfig(reader="images", path=str(tmp_path / "a"), repeat=2),
        CorpusConfig(reader="things3d-clean", path=str(tmp_path / "things"), split="TEST"),
    )
    found = listed(*corpora)
    assert [p.name for p in found[:3]] == [
        "0-images/0.png",
        "0-images@1/0.png",
        "1-things3d-clean/TEST/B/0007/left/into_future/0006",
    ]
    assert all(p.name.partition("/")[2] == p.item.name for p in found)
    assert found[0].bytes == os.path.getsize(found[0].item.uri)
    assert found[2].bytes == sum(map(os.path.getsize, found[2].item.files))


def test_locations_hold_in_processes_that_run_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layouts.picture(tmp_path / "a/0.png")
    monkeypatch.chdir(tmp_path)
    (found,) = listed(CorpusConfig(reader="images", path="a"))
    assert found.item.uri == str(tmp_path / "a/0.png")


def test_labels_are_first_folders_where_they_are_asked_for(tmp_path: Path) -> None:
    for name in ("cat/1/0.png", "dog/0.png", "none.png"):
        layouts.picture(tmp_path / name)
    corpus = CorpusConfig(reader="images", path=str(tmp_path))
    assert {p.item.label for p in listed(corpus)} == {""}
    labelled = CorpusConfig(reader="images", path=str(tmp_path), labels=True)
    assert [p.item.label for p in listed(labelled)] == ["cat", "dog", ""]
    with tarfile.open(tmp_path / "n01440764.tar", "w") as tar:
        tar.add(tmp_path / "none.png", "n01440764_1.JPEG")
    tars = CorpusConfig(reader="tars", path=str(tmp_path), labels=True)
    assert [p.item.label for p in listed(tars)] == ["n01440764"]
    (tmp_path / "train").mkdir()
    (tmp_path / "n01440764.tar").rename(tmp_path / "train/n01440764.tar")
    (tmp_path / "train/n01443537.TAR").write_bytes((tmp_path / "train/n01440764.tar").read_bytes())
    assert [p.item.label for p in listed(tars)] == ["n01440764", "n01443537"]


def test_inputs_that_listing_refuses_are_planned_with_their_reason(tmp_path: Path) -> None:
    layouts.picture(tmp_path / "0.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    found = listed(CorpusConfig(reader="images", path=str(tmp_path)))
    assert [(p.name, p.bytes >= 0, bool(p.item.refusal)) for p in found] == [
        ("0-images/0.png", True, False),
        ("0-images/loop.png", False, True),
    ]


def test_an_unknown_reader_is_told_with_the_nearest_one() -> None:
    with pytest.raises(DataError, match="did you mean 'videos'"):
        listed(CorpusConfig(reader="vidoes", path="x"))


@pytest.mark.parametrize("reader", ["videos", "images", "webdataset", "davis", "camvid", "sintel-clean"])
@pytest.mark.parametrize("scheme", ["gs", "https", "hdfs"])
def test_a_store_that_is_not_read_is_named_not_taken_for_a_folder(reader: str, scheme: str) -> None:
    config = DatasetConfig(kind="image", corpora=(CorpusConfig(reader=reader, path=f"{scheme}://bucket/data"),))
    with pytest.raises(DataError) as caught:
        list(list_inputs(config))
    words = str(caught.value)
    assert f"{scheme}://bucket/data is of {scheme}://, which is not read; expected a path, file://" in words
    assert "AWS_ENDPOINT_URL" in words
