"""The card of a dataset: what it shows, that it is complete in itself, and that nothing foreign gets through it."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from mcjepa.data_prep.card import content as card
from mcjepa.data_prep.card import samples as card_samples
from mcjepa.data_prep.card.charts import histogram, shares
from mcjepa.data_prep.card.content import write_card
from mcjepa.data_prep.card.samples import foreign_thumbnail, frame_suffixes
from mcjepa.data_prep.corpora.image_files import write_png
from mcjepa.data_prep.dataset.manifest import read_manifest
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.settings import (
    BorderFilter,
    CorpusConfig,
    CutFilter,
    DarkFilter,
    DatasetConfig,
    FiltersConfig,
    MotionFilter,
)
from mcjepa.data_prep.storage import open_store


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += f"{data}\n"

    def count(self, tag: str) -> int:
        return sum(1 for name, _ in self.tags if name == tag)


def card_of(root: Path) -> Page:
    return Page(Path(write_card(str(root))).read_text())


def textured(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), np.uint8)
    return cv2.resize(noise, (96, 64), interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Good, dark, truncated and empty pictures, and one with a name that is HTML."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for n in range(4):
        write_png(folder / f"{n}.png", textured(n))
    write_png(folder / "dark.png", textured(9) // 40)
    write_png(folder / "<img src=x onerror=alert(1)>.png", textured(5))
    jpeg = cv2.imencode(".jpg", textured(6))[1].tobytes()
    (folder / "cut<b>.jpg").write_bytes(jpeg[: len(jpeg) * 2 // 3])
    (folder / "empty.png").write_bytes(b"")
    return folder


@pytest.fixture
def filtered(pictures: Path, build, tmp_path: Path) -> Path:
    """A published dataset of them whose dark pictures were dropped."""
    filters = FiltersConfig(dark=DarkFilter(mode="drop"), border=BorderFilter(mode="score"))
    corpora = (CorpusConfig(reader="images", path=str(pictures)),)
    build(tmp_path / "d", DatasetConfig(kind="image", corpora=corpora, filters=filters))
    return tmp_path / "d"


def test_the_card_shows_counts_lineage_samples_and_conservation(published: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(published, tmp_path / "d"))
    manifest = read_manifest(str(root))
    page = card_of(root)
    for text in (manifest.dataset_id, manifest.plan_digest, manifest.inputs_digest, manifest.decoder, manifest.encoder):
        assert text in page.text
    assert "Conservation holds: the list of inputs has 3 ok + 0 filtered + 0 quarantined = 3 inputs" in page.text
    assert page.count("img") == 2 * 24
    for chart in ("Stored size, px", "Samples an input", "Duration of a sample, s", "Frame rate of the video, Hz"):
        assert chart in page.text
    assert "Of 24 samples read from 2 of 2 shards: all there are." in page.text


def test_dropped_samples_and_failed_inputs_are_listed_with_reasons(filtered: Path) -> None:
    page = card_of(filtered)
    assert re.search(r"dark: mean luma [\d.]+ below 12", page.text)
    assert "the file is empty" in page.text
    assert "Conservation holds: the list of inputs has 5 ok + 1 filtered + 2 quarantined = 8 inputs" in page.text
    assert "Bars: part of the frame" in page.text
    thumbnails = [attrs["alt"] for tag, attrs in page.tags if tag == "img" and attrs["alt"]]
    assert thumbnails == ["0-images/cut<b>.jpg"]


def test_all_that_lies_in_the_corpora_is_counted_by_its_end(pictures: Path, build, tmp_path: Path) -> None:
    for name in ("a.txt", "b.TXT", "c.tar.gz", "clip.mp4", "<b>bold.<i>"):
        (pictures / name).write_bytes(b"x")
    build(tmp_path / "d", DatasetConfig(kind="image", corpora=(CorpusConfig(reader="images", path=str(pictures)),)))
    page = card_of(tmp_path / "d")
    assert "The corpora hold 13 entries: 8 files of inputs and 5 others." in page.text
    rows = re.findall(r"^(\.[a-z.0-9]+|no plain ending)\n+(\d+)$", page.text, re.MULTILINE)
    assert rows == [(".txt", "2"), (".mp4", "1"), (".tar.gz", "1"), ("no plain ending", "1")]
    path = tmp_path / "d" / "manifest.json"
    path.write_text(path.read_text().replace('"entries":13', '"entries":14').replace('"entries": 13', '"entries": 14'))
    assert "The corpora hold 14 entries: 8 files of inputs but 5 others." in card_of(tmp_path / "d").text


def test_scores_get_their_own_histograms(videos: Path, clips_of, build, tmp_path: Path) -> None:
    filters = FiltersConfig(motion=MotionFilter(mode="score"), cut=CutFilter(mode="score"))
    build(tmp_path / "d", clips_of(videos, filters=filters))
    page = card_of(tmp_path / "d")
    assert "Motion: mean flow, px" in page.text and "Scene cuts: content score" in page.text


def test_the_page_loads_and_runs_nothing_and_foreign_text_stays_text(filtered: Path) -> None:
    page = card_of(filtered)
    assert "<img src=x onerror=alert(1)>.png" in page.text
    assert not {"script", "link", "iframe", "b:", "object", "form"} & {tag for tag, _ in page.tags}
    for _, attrs in page.tags:
        assert not [name for name in attrs if name.startswith("on")]
        assert all((attrs.get(name) or "data:").startswith(("data:", "#")) for name in ("src", "href"))
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none'") and policy.endswith("script-src 'none'")


def test_the_same_dataset_has_the_same_card(published: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(published, tmp_path / "d"))
    first = Path(write_card(str(root))).read_bytes()
    assert Path(write_card(str(root))).read_bytes() == first


def test_a_card_is_written_into_any_store(store, videos: Path, clips_of, build) -> None:
    build(store.location, clips_of(videos))
    assert write_card(store.location) == f"{store.location}/card.html"
    assert store.read("card.html").startswith(b"<!doctype html>")


def test_reading_is_bounded_and_the_page_says_so(published: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(card_samples, "MOST_SHARDS", 1)
    monkeypatch.setattr(card_samples, "MOST_SAMPLES", 6)
    monkeypatch.setattr(card_samples, "SHOWN_SAMPLES", 2)
    root = Path(shutil.copytree(published, tmp_path / "d"))
    page = card_of(root)
    assert "Of 6 samples read from 1 of 2 shards." in page.text
    assert page.count("img") == 4


def test_many_reasons_are_counted_together(published: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(card, "MOST_REASONS", 2)
    tally = card._InputTally("seed")
    record = next(iter(card.read_inputs(open_store(str(published)))))
    for n, word in enumerate("abcde"):
        values = {**vars(record), "name": f"{n}", "outcome": "filtered", "reason": f"{word} {n}", "samples": 0}
        tally.add(type(record)(**values))
    counts = {reason.text: reason.count for reason in tally.reasons.values()}
    assert counts == {"a #": 1, "b #": 1, "other reasons": 3}


def test_an_unpublished_dataset_has_no_card(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a published dataset"):
        write_card(str(tmp_path))


def test_a_damaged_shard_is_an_error_that_says_what_to_do(published: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(published, tmp_path / "d"))
    for shard in (root / "shards").glob("*.tar"):
        shard.write_bytes(b"\0" * shard.stat().st_size)
    with pytest.raises(DataError, match="mcjepa prep audit"):
        write_card(str(root))


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n broken", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_no_thumbnail_of_what_is_no_picture(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    assert foreign_thumbnail(str(tmp_path / "file")) is None


def test_no_thumbnail_of_a_picture_with_too_many_pixels_of_a_folder_or_of_nothing(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "bomb.png"), np.zeros((5000, 4000), np.uint8))
    for name in ("bomb.png", ".", "absent"):
        assert foreign_thumbnail(str(tmp_path / name)) is None


def test_inputs_that_killed_a_decoder_are_not_opened_again(monkeypatch, published: Path) -> None:
    opened: list[str] = []
    monkeypatch.setattr(card, "foreign_thumbnail", opened.append)
    record = next(iter(card.read_inputs(open_store(str(published)))))
    for reason in ("the decoder died 2 times (signal 11)", "silent for 20 s and was killed", "cut off or damaged"):
        values = {**vars(record), "outcome": "quarantined", "reason": reason, "uri": reason, "samples": 0}
        card._InputTally("seed").add(type(record)(**values))
    assert opened == ["cut off or damaged"]


def test_charts_of_nothing_are_empty_and_of_one_value_are_not() -> None:
    assert histogram("t", []) is None and shares("t", []) is None
    drawn, limited, named = histogram("t", [3.0]), histogram("t", [1.0, 5.0], [2.0, 9.0]), shares("t", [("<x>", 2)])
    assert drawn and "median 3" in drawn.svg
    assert limited and limited.svg.count('class="limit"') == 1
    assert named and "&lt;x&gt;" in named.svg


def test_frames_are_in_the_order_of_their_numbers_and_not_of_their_letters() -> None:
    suffixes = sorted([*(f"{n:02d}.jpg" for n in range(120)), "json", "99.json"])
    assert suffixes.index("100.jpg") < suffixes.index("11.jpg")
    assert frame_suffixes(suffixes) == [f"{n:02d}.jpg" for n in range(120)]
    assert frame_suffixes(["json", "png"]) == ["png"]
