"""Background uploads: the manifest is last, every rank's files are waited for, and failures are loud."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mcjepa.data_prep.storage import open_store
from mcjepa.pipeline.checkpoint import upload
from mcjepa.pipeline.checkpoint.upload import Upload, Uploader
from mcjepa.pipeline.errors import RunError

KEY = "checkpoints/step-000000007"


def make(rank: int, folder: Path, save: str = "abcd") -> Upload:
    """A rank's part, with its local file written."""
    local = folder / f"scratch-{rank}"
    local.mkdir(parents=True, exist_ok=True)
    (local / f"state-{rank}").write_text(f"state of rank {rank}")
    return Upload(7, KEY, save, local, (f"state-{rank}",), b"manifest" if rank == 0 else b"")


def uploader(store: Path, rank: int, world_size: int, after: Callable[[int], None] = lambda step: None) -> Uploader:
    return Uploader(
        open_store(str(store)), rank, world_size, before_commit=lambda: None, after_commit=after
    )  # fmt: skip


def keys(store: Path) -> list[str]:
    return list(open_store(str(store)).list("checkpoints/"))


def test_the_manifest_waits_for_all_ranks_of_this_very_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "POLL_S", 0.01)
    store = tmp_path / "store"
    first, second = uploader(store, 0, 2), uploader(store, 1, 2)
    second.submit(make(1, tmp_path, save="of an attempt before"))
    first.submit(make(0, tmp_path))
    time.sleep(0.3)
    assert f"{KEY}/manifest.json" not in keys(store) and first.waiting == 1
    second.submit(make(1, tmp_path))
    second.close(10)
    first.close(10)
    assert (store / KEY / "manifest.json").read_bytes() == b"manifest"
    assert (store / KEY / "state-1").read_text() == "state of rank 1"
    assert not (tmp_path / "scratch-0").exists()


def test_old_checkpoints_are_removed_only_after_the_commit(tmp_path: Path) -> None:
    seen: list[list[str]] = []
    store = tmp_path / "store"
    one = uploader(store, 0, 1, after=lambda step: seen.append(keys(store)))
    one.submit(make(0, tmp_path))
    one.close(10)
    assert seen == [[f"{KEY}/manifest.json", f"{KEY}/state-0"]]


def test_a_manifest_of_an_attempt_that_did_not_count_is_replaced(tmp_path: Path) -> None:
    store = tmp_path / "store"
    (store / KEY).mkdir(parents=True)
    (store / KEY / "manifest.json").write_bytes(b"damaged")
    one = uploader(store, 0, 1)
    one.submit(make(0, tmp_path))
    one.close(10)
    assert (store / KEY / "manifest.json").read_bytes() == b"manifest"


def test_a_failed_upload_is_logged_at_once_and_raised_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "store").write_text("a file where the folder should be")
    one = uploader(tmp_path / "store", 0, 1)
    one.submit(make(0, tmp_path))
    with pytest.raises(RunError, match="step 7 was not uploaded"):
        one.close(10)
    assert one.failed_in_a_row == 1 and one.waiting == 0
    assert any(record.levelname == "ERROR" for record in caplog.records)


def test_a_later_upload_that_succeeds_makes_up_for_it(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    one = uploader(tmp_path / "store", 0, 1)
    one.submit(make(0, tmp_path))
    while one.waiting:
        time.sleep(0.01)
    (tmp_path / "store").unlink()
    one.submit(make(0, tmp_path))
    one.close(10)
    assert one.failed_in_a_row == 0


def test_what_is_not_done_in_time_is_an_error(tmp_path: Path) -> None:
    first = uploader(tmp_path / "store", 0, 2)
    first.submit(make(0, tmp_path))
    with pytest.raises(RunError, match="grace_s"):
        first.close(0.1)
