"""The watchdog on real ranks: one starves or sleeps, the other waits for it in a collective."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
from small_steps import finish_ranks, start_ranks

from mcjepa.pipeline.monitor.watchdog import Watchdog, waiting_for, who_is_waited_for
from mcjepa.pipeline.settings.monitor import GuardConfig
from mcjepa.pipeline.step.clock import StepClock

PROGRAM = Path(__file__).with_name("hung_ranks.py")


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_starving_rank_is_named_with_its_stack_and_all_ranks_end(tmp_path: Path) -> None:
    started = start_ranks(PROGRAM, 2, str(tmp_path), "starve", "4")
    answers = [errors for _, errors in finish_ranks(started, 100)]
    assert [process.returncode for process in started] == [3, 3], answers
    records = [json.loads((tmp_path / f"logs/hung/rank-{rank:05d}.json").read_text()) for rank in (0, 1)]
    assert [(r["step"], r["part"]) for r in records] == [(2, "forward"), (2, "data")]
    assert [r["waits_for"] for r in records] == ["a collective (all_reduce)", "data"]
    assert "time.sleep" not in answers[0] and "hung_ranks.py" in (tmp_path / "logs/hung/rank-00001.txt").read_text()
    assert "they wait for rank 1 (waits for data in step 2" in answers[0]
    assert "watchdog_exit_s=4" in answers[0] and "start the run again" in answers[1]


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_slow_part_is_reported_and_forgotten_when_it_is_over(tmp_path: Path) -> None:
    started = start_ranks(PROGRAM, 1, str(tmp_path), "pause", "0")
    (answer,) = [errors for _, errors in finish_ranks(started, 100)]
    assert started[0].returncode == 0, answer
    assert "has been in data of step 2" in answer and "goes on: data of step 2 is over" in answer
    assert list((tmp_path / "logs" / "hung").glob("*.json")) == []


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_end_of_a_run_may_take_its_time(tmp_path: Path) -> None:
    started = start_ranks(PROGRAM, 1, str(tmp_path), "close", "2")
    (answer,) = [errors for _, errors in finish_ranks(started, 100)]
    assert started[0].returncode == 0 and "has been in" not in answer, answer


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_thread_that_keeps_pythons_lock_is_ended_too(tmp_path: Path) -> None:
    started = start_ranks(PROGRAM, 2, str(tmp_path), "lock", "2")
    answers = [errors for _, errors in finish_ranks(started, 100)]
    assert all(process.returncode != 0 for process in started), answers
    assert "Timeout (" in answers[1] or "watchdog_exit_s=2" in answers[1]


def test_the_rank_at_the_earliest_step_is_blamed_where_all_wait_in_collectives() -> None:
    def record(rank: int, step: int) -> dict[str, object]:
        where = {"part": "forward", "waits_for": "a collective (all_reduce)", "host": "h", "pid": 1}
        return {"rank": rank, "step": step, **where}

    line = who_is_waited_for([record(0, 5), record(1, 4), record(2, 5)], 4)
    assert line.startswith("2 rank(s) wait in a collective; they wait for rank 1 (")
    assert "rank(s) 3: not stuck by their own account" in line


def test_ranks_of_an_earlier_larger_world_are_not_blamed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hung = tmp_path / "logs" / "hung"
    hung.mkdir(parents=True)
    old = {"rank": 5, "step": 1, "part": "data", "waits_for": "data", "host": "gone", "pid": 9}
    clock = StepClock()
    clock.enter("data", 7)
    with Watchdog(GuardConfig(watchdog_s=0.4, watchdog_exit_s=0.0), clock, tmp_path, 1, 2):
        (hung / "rank-00005.json").write_text(json.dumps(old))  # rank 0, which tidies up, is slower to begin
        time.sleep(1.5)
    assert "they wait for rank 1 (waits for data in step 7" in caplog.text
    assert "rank 5" not in caplog.text
    with Watchdog(GuardConfig(watchdog_s=0.4), StepClock(), tmp_path, 0, 2):
        assert not (hung / "rank-00005.json").exists()


def test_a_thread_outside_collectives_waits_for_its_part() -> None:
    assert waiting_for(sys._getframe(), "checkpoint") == "checkpoint"
    assert waiting_for(None, "agreement") == "a collective (agreement)"


def test_an_exit_before_the_report_is_refused() -> None:
    with pytest.raises(ValueError, match="more than watchdog_s"):
        GuardConfig(watchdog_s=10.0, watchdog_exit_s=5.0)
