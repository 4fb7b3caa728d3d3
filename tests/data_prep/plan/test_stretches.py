"""Where corpora are cut into stretches that are listed side by side."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.plan import stretches
from mcjepa.data_prep.settings import CorpusConfig
from mcjepa.data_prep.storage import FolderStore


def folders_with_folders(root: Path, count: int) -> Path:
    """`count` folders with three folders each, which hold a file."""
    for number in range(count):
        for inner in "xyz":
            place = root / f"{number}" / inner / "0.jpg"
            place.parent.mkdir(parents=True)
            place.write_bytes(b"1")
    return root


@pytest.mark.parametrize("error", [DataError("'1' cannot be listed"), OSError(5, "Input/output error")])
def test_a_folder_that_cannot_be_read_takes_no_other_cuts(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = FolderStore.level

    def level(store: FolderStore, prefix: str = "") -> list[str]:
        if prefix == "1/":  # the superuser, whom tests may run as, reads every folder
            raise error
        return whole(store, prefix)

    monkeypatch.setattr(FolderStore, "level", level)
    corpus = CorpusConfig(reader="images", path=str(folders_with_folders(tmp_path, 4)))
    keys = [f"{outer}/{inner}/" for outer in (0, 2, 3) for inner in "xyz"]
    assert [span.first for span in stretches.cut_corpus(corpus, 9)] == ["", *keys[1:]]


def test_cuts_are_not_only_in_the_folders_that_are_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stretches, "MOST_LEVELS", 4)
    corpus = CorpusConfig(reader="images", path=str(folders_with_folders(tmp_path, 8)))
    assert [span.first for span in stretches.cut_corpus(corpus, 10)] == ["", *(f"{n}/" for n in range(1, 8))]


def test_a_flat_folder_has_a_stretch_a_worker(tmp_path: Path) -> None:
    """Each stretch of it reads all its names."""
    for number in range(40):
        (tmp_path / f"{number:02d}.jpg").write_bytes(b"1")
    corpus, wanted = CorpusConfig(reader="images", path=str(tmp_path)), 4 * stretches.STRETCHES_A_WORKER
    assert [span.first for span in stretches.cut_corpus(corpus, wanted)] == ["", "10.jpg", "20.jpg", "30.jpg"]
    assert len(stretches.cut_corpus(replace(corpus, reader="tars"), wanted)) == wanted
    (tmp_path / "inside").mkdir()
    assert len(stretches.cut_corpus(corpus, wanted)) > 4
