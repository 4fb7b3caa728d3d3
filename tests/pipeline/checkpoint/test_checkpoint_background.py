"""Saves in the background: the manifest is last, every rank's files are waited for, and failures are loud."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mcjepa.data_prep.storage import open_store
from mcjepa.model.config import ModelConfig
from mcjepa.pipeline.checkpoint import background
from mcjepa.pipeline.checkpoint.background import BackgroundSaver
from mcjepa.pipeline.checkpoint.manifest import Checkpoint, find_damage, list_checkpoints
from mcjepa.pipeline.checkpoint.part import Part, Snapshot
from mcjepa.pipeline.engine.state import Piece
from mcjepa.pipeline.errors import RunError

KEY = "checkpoints/step-000000007"


def make(rank: int, run: Path, save: str = "abcd", step: int = 7) -> Part:
    """A rank's part that is still to be written; rank 0's has weights too."""
    pieces = [Piece("w", "weight", 4 * rank, torch.full((4,), float(rank)))]
    weights = {} if rank else {"w": torch.zeros(8)}
    manifest = {"version": 2, "step": step, "metrics": {}}
    part = Part(run, step, save, f"state-{rank}", pieces, weights, ModelConfig(), {}, manifest)
    part.path.parent.mkdir(parents=True, exist_ok=True)
    return part


def nothing(*_: object) -> None:
    pass


def saver(
    run: Path,
    rank: int,
    world_size: int,
    after: Callable[[int], None] = nothing,
    remote: bool = False,
    on_commit: Callable[[Checkpoint], None] = nothing,
) -> BackgroundSaver:
    return BackgroundSaver(
        open_store(str(run)), remote, rank, world_size, before_commit=nothing, on_commit=on_commit, after_commit=after
    )


def within(seconds: float) -> Callable[[], float]:
    """What is left of so much time from now on."""
    ends = time.monotonic() + seconds
    return lambda: max(ends - time.monotonic(), 0.0)


def keys(run: Path) -> list[str]:
    return list(open_store(str(run)).list("checkpoints/"))


def no_folder(part: Part) -> None:
    """Makes a part impossible to write, as on a failing disk."""
    part.path.mkdir(parents=True)
    (part.path / "in the way").touch()


@pytest.mark.parametrize("remote", [False, True], ids=["folder", "scratch"])
def test_the_manifest_waits_for_all_ranks_of_this_very_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remote: bool
) -> None:
    monkeypatch.setattr(background, "POLL_S", 0.01)
    run = tmp_path / "run"
    local = tmp_path / "scratch" if remote else run
    first, second = saver(run, 0, 2, remote=remote), saver(run, 1, 2, remote=remote)
    second.submit(make(1, local, save="of an attempt before"))
    first.submit(make(0, local))
    time.sleep(0.3)
    assert f"{KEY}/manifest.json" not in keys(run) and first.waiting == 1 and not first.committed
    second.submit(make(1, local))
    second.close(within(10))
    first.close(within(10))
    [checkpoint] = list_checkpoints(open_store(str(run)))
    assert sorted(checkpoint.files) == ["state-0", "state-1"]
    assert find_damage(open_store(str(run)), checkpoint) == ""
    assert checkpoint.record["weights_sha256"] and (local / "weights" / "step-000000007").is_dir()
    assert [each.digest for each in first.committed] == [checkpoint.digest]
    assert sorted(path.name for path in (run / KEY).iterdir()) == ["manifest.json", "state-0", "state-1"]
    assert not remote or not (local / KEY).exists()


def test_a_rank_whose_folder_another_one_has_cleared_makes_it_again(tmp_path: Path) -> None:
    """Rank 1 of the node has uploaded and finds the scratch folder empty before rank 0 has begun to write."""
    part = make(0, tmp_path / "scratch")
    part.path.parent.rmdir()
    one = saver(tmp_path / "run", 0, 1, remote=True)
    one.submit(part)
    one.close(within(10))
    assert keys(tmp_path / "run") == [f"{KEY}/manifest.json", f"{KEY}/state-0"]


def test_old_checkpoints_are_removed_only_after_the_commit(tmp_path: Path) -> None:
    seen: list[list[str]] = []
    one = saver(tmp_path, 0, 1, after=lambda step: seen.append(keys(tmp_path)))
    one.submit(make(0, tmp_path))
    one.close(within(10))
    assert seen == [[f"{KEY}/manifest.json", f"{KEY}/state-0"]]


def test_removing_old_checkpoints_holds_nobody_and_its_failure_is_no_failed_save(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def slow_and_refused(step: int) -> None:
        time.sleep(0.5)
        raise OSError("read-only")

    one = saver(tmp_path, 0, 1, after=slow_and_refused)
    started = time.monotonic()
    one.remove_old(7)
    assert time.monotonic() - started < 0.3
    one.close(within(10))
    assert "old checkpoints were not removed (read-only)" in caplog.text and one.failed_in_a_row == 0


def test_what_goes_wrong_behind_a_commit_is_no_failed_save_and_ends_no_thread(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def stumble(step: int) -> None:
        raise KeyError("metrics")

    one = saver(tmp_path, 0, 1, after=stumble)
    one.remove_old(3)
    one.submit(make(0, tmp_path))
    one.wait()
    one.close(within(10))
    assert caplog.text.count("old checkpoints were not removed") == 2 and not one.last_failure
    assert [each.step for each in list_checkpoints(open_store(str(tmp_path)))] == [7]


def test_a_checkpoint_of_a_process_that_has_taken_over_meanwhile_stays(tmp_path: Path) -> None:
    """One that was frozen in its save, and goes on when its successor has saved the same step."""

    def another_one(_: Checkpoint) -> None:
        other = saver(tmp_path, 0, 1)
        other.submit(make(0, tmp_path, "of the successor"))
        other.close(within(10))

    one = saver(tmp_path, 0, 1, on_commit=another_one)
    one.submit(make(0, tmp_path))
    with pytest.raises(RunError, match="written by another process"):
        one.close(within(10))
    [checkpoint] = list_checkpoints(open_store(str(tmp_path)))
    assert checkpoint.record["step"] == 7 and find_damage(open_store(str(tmp_path)), checkpoint) == ""


def test_a_manifest_of_an_attempt_that_did_not_count_is_replaced(tmp_path: Path) -> None:
    part = make(0, tmp_path)
    (tmp_path / KEY / "manifest.json").write_bytes(b"damaged")
    one = saver(tmp_path, 0, 1)
    one.submit(part)
    one.close(within(10))
    assert json.loads((tmp_path / KEY / "manifest.json").read_bytes())["step"] == 7


def test_a_save_that_fails_on_one_rank_is_removed_and_said_and_the_next_one_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(background, "POLL_S", 0.01)
    first, second = saver(tmp_path, 0, 2), saver(tmp_path, 1, 2)
    bad = make(1, tmp_path)
    no_folder(bad)
    first.submit(make(0, tmp_path))
    second.submit(bad)
    first.wait()  # rank 1's word is enough: nothing is waited out
    second.wait()
    assert (first.failed_in_a_row, second.failed_in_a_row) == (1, 1)
    assert "state-1" in first.last_failure and "step 7 was not saved in" in caplog.text
    assert not (tmp_path / KEY).exists() and not (tmp_path / "weights" / "step-000000007").exists()
    for rank, each in enumerate((first, second)):
        each.submit(make(rank, tmp_path, "efgh", 8))
    second.close(within(10))
    first.close(within(10))
    assert (first.failed_in_a_row, second.failed_in_a_row) == (0, 0)
    assert [each.step for each in list_checkpoints(open_store(str(tmp_path)))] == [8]


def test_a_rank_that_cannot_even_tell_of_its_failure_is_not_waited_for(tmp_path: Path) -> None:
    first = saver(tmp_path, 0, 2)
    first.submit(make(0, tmp_path))
    first.give_up(["abcd"])  # the loop has heard of it
    with pytest.raises(RunError, match="1 ranks have not saved"):
        first.close(within(10))


def test_a_failure_is_logged_at_once_and_raised_at_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    part = make(0, tmp_path)
    no_folder(part)
    one = saver(tmp_path, 0, 1)
    one.submit(part)
    with pytest.raises(RunError, match="step 7 was not saved"):
        one.close(within(10))
    assert one.failed_in_a_row == 1 and one.waiting == 0
    assert any(record.levelname == "ERROR" for record in caplog.records)


def test_a_limit_that_comes_while_it_waits_holds(tmp_path: Path) -> None:
    """Ctrl-C once a run is done and its last checkpoint is on its way."""
    first, asked = saver(tmp_path, 0, 2), 0

    def time_left_s() -> float | None:
        nonlocal asked
        asked += 1
        return None if asked < 3 else 0.0

    first.submit(make(0, tmp_path))
    with pytest.raises(RunError, match="grace_s"):
        first.close(time_left_s)
    assert asked == 3


def test_what_is_not_done_in_time_is_an_error(tmp_path: Path) -> None:
    first = saver(tmp_path, 0, 2)
    first.submit(make(0, tmp_path))
    with pytest.raises(RunError, match="grace_s"):
        first.close(within(0.1))


def test_a_copy_stays_as_it_was_and_its_memory_is_used_again(tmp_path: Path) -> None:
    part, snapshot = make(0, tmp_path), Snapshot()
    copy = snapshot.copy(part)
    part.pieces[0].values.fill_(5)
    part.weights["w"].fill_(5)
    assert copy.pieces[0].values.tolist() == [0.0] * 4 and copy.weights["w"].tolist() == [0.0] * 8
    again = snapshot.copy(part)
    assert again.pieces[0].values.tolist() == [5.0] * 4
    assert again.pieces[0].values.data_ptr() == copy.pieces[0].values.data_ptr()
    part.pieces = [Piece("w", "weight", 0, torch.zeros(9))]
    assert snapshot.copy(part).pieces[0].values.shape == (9,)
