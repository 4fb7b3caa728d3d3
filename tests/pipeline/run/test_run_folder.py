"""A run's files on s3: copied when they change, removed when they go, brought back on another machine."""

from __future__ import annotations

from pathlib import Path

from mcjepa.data_prep.storage import open_store
from mcjepa.pipeline.run.folder import RunFolder


def test_a_local_run_is_its_own_folder_and_nothing_is_copied(tmp_path: Path) -> None:
    folder = RunFolder(f"file://{tmp_path}/run")
    assert (folder.path, folder.name, folder.remote) == (tmp_path / "run", "run", False)
    folder.fetch()
    folder.copy()
    assert list(folder.path.iterdir()) == []


def test_files_follow_a_run_to_another_machine(tmp_path: Path, s3: str) -> None:
    one = RunFolder(s3, str(tmp_path / "one"))
    (one.path / "logs").mkdir()
    (one.path / "logs" / "metrics.jsonl").write_text("a\n")
    (one.path / "spool").write_text("to be delivered")
    (one.path / ".hidden").write_text("x")
    (one.path / "checkpoints").mkdir()
    (one.path / "checkpoints" / "state").write_text("not this one")
    (one.path / "weights").mkdir()
    (one.path / "weights" / "large").write_bytes(b"w" * (3 << 20))
    one.copy()
    store = open_store(s3)
    assert sorted(store.list("")) == ["logs/metrics.jsonl", "spool", "weights/large"]
    assert (one.path / "weights" / "large").stat().st_size == store.size("weights/large") == 3 << 20
    (one.path / "spool").unlink()
    (one.path / "logs" / "metrics.jsonl").write_text("a\nb\n")
    one.copy()
    other = RunFolder(s3, str(tmp_path / "other"))
    other.fetch()
    assert (other.path / "logs" / "metrics.jsonl").read_text() == "a\nb\n"
    assert not (other.path / "spool").exists() and not (other.path / "weights").exists()


def test_a_log_that_is_longer_here_than_its_copy_stays(tmp_path: Path, s3: str) -> None:
    one = RunFolder(s3, str(tmp_path / "one"))
    (one.path / "log").write_text("a\n")
    one.copy()
    (one.path / "log").write_text("a\nb\n")
    RunFolder(s3, str(tmp_path / "one")).fetch()
    assert (one.path / "log").read_text() == "a\nb\n"
