"""The audit proves conservation: entries that lie in the corpora = files of inputs + named others."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import cv2
import pytest

from mcjepa.data_prep.dataset.audit import audit_dataset
from mcjepa.data_prep.dataset.manifest import read_manifest
from mcjepa.data_prep.settings import CorpusConfig, DatasetConfig
from tests.data_prep.small_corpora import smooth_frames

NAMES = (
    "a.jpg",
    "b.PNG",
    "c.jpeg",
    "readme.txt",
    "x.json",
    "y.json",
    "shots.zip",
    "more.tar.gz",
    "movie.mxf",
    "LICENSE",
)


@pytest.fixture
def corpora(tmp_path: Path) -> tuple[Path, Path]:
    """A tree of pictures and other things, a folder of them linked; and tars with other things, one of them packed."""
    picture = cv2.imencode(".png", smooth_frames(1, 1, 48, 64)[0])[1].tobytes()
    tree, tars = tmp_path / "tree", tmp_path / "tars"
    for number, name in enumerate(NAMES):
        (tree / f"f{number % 3}").mkdir(parents=True, exist_ok=True)
        (tree / f"f{number % 3}" / name).write_bytes(picture)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "linked.png").write_bytes(picture)
    (tree / "link").symlink_to(tmp_path / "elsewhere")
    (tree / "empty.jpg").touch()
    (tree / "nowhere.jpg").symlink_to(tmp_path / "not there")
    tars.mkdir()
    (tmp_path / "content.png").write_bytes(picture)
    for number in range(2):
        with tarfile.open(tars / f"{number}.tar", "w") as tar:
            for name in ("0_left.png", "0_right.png", "1.txt", "deep/2.json", "deep/2_left.png"):
                tar.add(tmp_path / "content.png", name)
    (tars / "notes.md").write_text("notes")
    (tars / "packed.tgz").write_bytes(b"\x1f\x8b\x08")
    return tree, tars


def test_everything_that_lies_there_is_an_input_or_a_named_other(
    corpora: tuple[Path, Path], build, tmp_path: Path
) -> None:
    tree, tars = corpora
    config = DatasetConfig(
        kind="image",
        corpora=(
            CorpusConfig(reader="images", path=str(tree)),
            CorpusConfig(reader="tars", path=str(tars), members=("_left.png",)),
        ),
    )
    manifest, _ = build(tmp_path / "d", config)
    files = sum(len(names) for _, _, names in os.walk(tree, followlinks=True))
    members = 0
    for path in tars.glob("*.tar"):
        with tarfile.open(path) as tar:
            members += len(tar.getnames())
    there = files + members + 2  # what is no tar that can be read is an entry itself
    report = audit_dataset(str(tmp_path / "d"))
    assert report.ok and report.entries == there == report.files + sum(manifest.census["others"].values())
    assert manifest.census["others"] == {
        ".txt": 3,
        ".json": 4,
        ".zip": 1,
        ".tar.gz": 1,
        ".mxf": 1,
        ".md": 1,
        "no plain ending": 1,
        ".png (not among members)": 2,
    }
    assert manifest.totals.inputs == report.files == 6 + 2 * 2 + 1
    assert (manifest.totals.ok, manifest.totals.quarantined) == (8, 3)  # empty, a link to nothing, a packed tar


@pytest.mark.parametrize("change", [{"entries": 1}, {".txt": -1}, {"files": 1}])
def test_a_census_that_does_not_add_up_is_a_problem(
    change: dict[str, int], corpora: tuple[Path, Path], build, tmp_path: Path
) -> None:
    build(tmp_path / "d", DatasetConfig(kind="image", corpora=(CorpusConfig(reader="images", path=str(corpora[0])),)))
    path = tmp_path / "d" / "manifest.json"
    content = json.loads(path.read_text())
    ((name, by),) = change.items()
    place = {"entries": content["census"], ".txt": content["census"]["others"], "files": content}[name]
    place[name] += by
    path.write_text(json.dumps(content))
    assert read_manifest(str(tmp_path / "d")).census
    report = audit_dataset(str(tmp_path / "d"))
    assert not report.ok and any("entries in the corpora" in problem for problem in report.problems)
