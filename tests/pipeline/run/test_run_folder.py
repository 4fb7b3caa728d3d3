"""A run's files on s3: copied when they change, removed when they go, brought back on another machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcjepa.data_prep.errors import DataError
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


def begun(s3: str, scratch: Path, start: str) -> RunFolder:
    """The folder of rank 0 in a new start."""
    folder = RunFolder(s3, str(scratch))
    folder.fetch()
    folder.begin(start)
    return folder


def joined(s3: str, scratch: Path, before: str, start: str) -> RunFolder:
    """The folder of another node in the same start."""
    folder = RunFolder(s3, str(scratch))
    folder.join(before, start, 8)
    return folder


def wrote(folder: RunFolder, content: str, *names: str) -> None:
    for name in names:
        (folder.path / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.path / name).write_text(content)
    folder.copy()


def test_what_the_last_start_left_on_its_machine_is_newer_than_the_copies(tmp_path: Path, s3: str) -> None:
    wrote(begun(s3, tmp_path / "a", "1"), "first\n", "logs/metrics.jsonl", "run.json")
    (tmp_path / "a" / "logs" / "metrics.jsonl").write_text("first\nnot copied\n")
    (tmp_path / "a" / "run.json").write_text("now\n")
    wrote(begun(s3, tmp_path / "a", "2"), "x", "other")
    assert open_store(s3).read("logs/metrics.jsonl") == b"first\nnot copied\n"
    assert open_store(s3).read("run.json") == b"now\n"


def test_a_scratch_folder_of_an_earlier_start_does_not_count_when_the_run_comes_back(tmp_path: Path, s3: str) -> None:
    names = ("logs/metrics.jsonl", "run.json", "spool/state.json")
    one = begun(s3, tmp_path / "a", "1")
    wrote(one, "by A\n", *names)
    wrote(begun(s3, tmp_path / "b", "2"), "by B\n", *names)
    (one.path / "logs" / "metrics.jsonl").write_text("by A\nlonger, of an attempt that was lost\n")
    (one.path / "weights" / "step-000000009").mkdir(parents=True)
    (one.path / "weights" / "step-000000009" / "w").write_text("of a lost attempt")
    (one.path / ".hidden").touch()
    again = begun(s3, tmp_path / "a", "3")
    again.copy()
    for folder in (tmp_path / "a", tmp_path / "b"):
        assert {(folder / name).read_text() for name in names} == {"by B\n"}
    assert not (again.path / "weights").exists() and (again.path / ".hidden").exists()
    assert {open_store(s3).read(name) for name in names} == {b"by B\n"}


def test_another_node_copies_only_what_it_wrote_itself(tmp_path: Path, s3: str) -> None:
    wrote(begun(s3, tmp_path / "a", "1"), "by A\n", "run.json", "weights/step-000000004/w", "bad_steps/rank-0")
    wrote(begun(s3, tmp_path / "b", "2"), "by B\n", "run.json")
    for before, start in (("2", "3"), ("3", "4")):
        begun(s3, tmp_path / "b", start)
        node = joined(s3, tmp_path / "a", before, start)
        (node.path / "bad_steps").mkdir(exist_ok=True)
        (node.path / "bad_steps" / f"start-{start}-rank-8").write_text("its own")  # killed before it was copied
        assert not (node.path / "run.json").exists() and not (node.path / "weights").exists()
    node.copy()
    store = open_store(s3)
    assert store.read("run.json") == b"by B\n"
    assert all(store.read(f"bad_steps/start-{start}-rank-8") == b"its own" for start in "34")


def test_nodes_that_share_a_scratch_folder_leave_it_to_rank_0(tmp_path: Path, s3: str) -> None:
    first = begun(s3, tmp_path / "a", "1")
    wrote(first, "first\n", "run.json")
    second = joined(s3, tmp_path / "a", "", "1")
    open_store(s3).write("run.json", b"changed there")
    second.copy()
    assert (first.path / "run.json").is_file() and open_store(s3).read("run.json") == b"changed there"


def test_files_that_no_start_left_are_neither_removed_nor_copied(tmp_path: Path, s3: str) -> None:
    wrote(begun(s3, tmp_path / "a", "1"), "by A\n", "run.json")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.txt").write_text("mine")
    (tmp_path / "own" / "run.json").write_text("old")
    folder = begun(s3, tmp_path / "own", "2")
    folder.copy()
    assert (folder.path / "thesis.txt").is_file() and (folder.path / "run.json").read_text() == "by A\n"
    assert sorted(open_store(s3).list("")) == ["run.json"]


def test_a_start_that_was_followed_by_another_copies_nothing_more(tmp_path: Path, s3: str) -> None:
    frozen = begun(s3, tmp_path / "a", "1")
    wrote(begun(s3, tmp_path / "b", "2"), "by B\n", "run.json")
    with pytest.raises(DataError, match="belongs to a later start of the run"):
        wrote(frozen, "by A\n", "run.json")
    assert open_store(s3).read("run.json") == b"by B\n"


def test_weights_of_a_save_that_did_not_count_are_not_uploaded_again(tmp_path: Path, s3: str) -> None:
    folder = begun(s3, tmp_path / "a", "1")
    wrote(folder, "w", "weights/step-000000004/w", "weights/step-000000008/w")
    folder.store.remove("weights/step-000000008/w")
    again = begun(s3, tmp_path / "a", "2")
    again.forget_weights_after(4)
    again.copy()
    assert list(again.store.list("weights/")) == ["weights/step-000000004/w"]
    local = RunFolder(str(tmp_path / "run"))
    wrote(local, "w", "weights/step-000000008/w")
    local.forget_weights_after(4)
    assert (local.path / "weights" / "step-000000008").is_dir()
