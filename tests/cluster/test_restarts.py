"""Which ends of a job are followed by another start, and how many starts may bring nothing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mcjepa.cluster.rendezvous import FIRST_PORT, PORTS, free_port, torch_variables
from mcjepa.cluster.restarts import JobState, Outcome, judge
from mcjepa.cluster.site import Stage

REPOSITORY = Path(__file__).resolve().parents[2]
STOPPED = Outcome(0, 130, stopped=True)


@pytest.mark.parametrize(
    ("stage", "code", "outcomes", "verdict"),
    [
        ("train", 0, [], "done"),
        ("train", 0, [STOPPED], "requeue"),
        ("train", 137, [], "requeue"),
        ("train", 143, [Outcome(1, -9)], "requeue"),
        ("train", 3, [Outcome(0, 3)], "requeue"),
        ("train", 143, [Outcome(0, 2), Outcome(1, 1)], "failed"),
        ("prep", 0, [Outcome(0, 4)], "done"),
        ("prep", 3, [Outcome(0, 3)], "failed"),
        ("eval", 1, [Outcome(0, 1)], "requeue"),
        ("prep", 0, [STOPPED], "requeue"),
    ],
)
def test_what_follows_an_end(stage: Stage, code: int, outcomes: list[Outcome], verdict: str) -> None:
    assert judge(stage, code, outcomes) == verdict


def begin(folder: Path, progress: int | None, most_idle: int = 1) -> bool:
    return JobState(folder, "7").begin(progress, "node1", 0.0, most_idle)


def test_only_starts_without_a_newer_checkpoint_are_counted(tmp_path: Path) -> None:
    assert [begin(tmp_path, step) for step in (-1, 10, 10, 20, 20, 30)] == [True] * 6
    assert [begin(tmp_path, step) for step in (30, 30)] == [True, False]
    state = JobState(tmp_path, "7")
    assert len(state.starts) == 7 and state.content["idle"] == 2


def test_without_knowledge_of_progress_every_start_counts(tmp_path: Path) -> None:
    assert [begin(tmp_path, None, most_idle=2) for _ in range(4)] == [True, True, True, False]


def test_outcomes_are_those_of_the_last_start(tmp_path: Path) -> None:
    begin(tmp_path, -1)
    JobState(tmp_path, "7").tell(Outcome(3, 5))
    assert JobState(tmp_path, "7").outcomes() == [Outcome(3, 5)]
    begin(tmp_path, -1)
    assert JobState(tmp_path, "7").outcomes() == []


def test_a_port_that_is_taken_is_passed_over() -> None:
    with socket.socket() as taken:
        first = free_port(5)
        taken.bind(("", first))
        assert free_port(5) != first
    assert FIRST_PORT <= first < FIRST_PORT + PORTS and abs(free_port(6) - free_port(5)) > 1


def test_ranks_come_from_slurms_variables() -> None:
    slurm = {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8", "SLURM_NNODES": "2"}
    found = torch_variables({**slurm, "MASTER_ADDR": "node1", "MASTER_PORT": "20001"})
    assert found == {
        "RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "node1", "MASTER_PORT": "20001",
    }  # fmt: skip


@pytest.mark.parametrize(("child", "code", "told"), [(130, 0, (130, True)), (5, 5, (5, False)), (0, 0, None)])
def test_a_task_whose_command_stopped_by_itself_does_not_end_the_others(
    tmp_path: Path, child: int, code: int, told: tuple[int, bool] | None
) -> None:
    begin(tmp_path, -1)
    program = (
        "import pathlib, sys; from mcjepa.cluster.job import Element; from mcjepa.cluster.task import SlurmTask\n"
        f"element = Element('one', ('-c', 'raise SystemExit({child})'))\n"
        f"SlurmTask('eval', element, pathlib.Path({str(tmp_path)!r}), 5.0)()"
    )
    slurm = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0"}
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, env={**os.environ, **slurm})
    assert done.returncode == code
    outcomes = JobState(tmp_path, "7").outcomes()
    assert outcomes == ([] if told is None else [Outcome(0, *told)])
