"""Jobs on a real Slurm: signals, restarts, dead ranks and cancelling, with a small program in place of a stage."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path

import psutil
import pytest

from cluster.job import Element, Job, Record
from cluster.restarts import JobState
from cluster.site import Resources, RestartConfig, Site, needed
from cluster.status import cancel, log_files, read_status
from cluster.submit import job_script, submit
from tests.processes import wait_until_ended
from tests.servers.slurm import SlurmCluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

PROGRAM = """
import os, pathlib, signal, sys, time
folder, behaviour = pathlib.Path(sys.argv[1]), sys.argv[2]
rank, start = os.environ["RANK"], len(list(folder.glob("started-" + os.environ["RANK"] + "-*")))
words = [str(os.getpid()), os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]]
(folder / f"started-{rank}-{start}").write_text(" ".join(words))
def stop(*_):
    time.sleep(1.0)  # a checkpoint
    if behaviour == "wait":
        (folder / "saved").write_text(str(start + 1))
    sys.exit(130)
signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGUSR2, signal.SIG_IGN)
if behaviour == "finish" or (behaviour == "wait" and start > 0):
    sys.exit(0)
if behaviour == "fail" and rank == "1":
    sys.exit(5)
if behaviour == "once" and rank == "1" and start == 0:
    sys.exit(5)
if behaviour == "once" and start > 0:
    sys.exit(0)
if behaviour == "usage":
    sys.exit(2)
time.sleep(120)
"""
PROGRESS = "import pathlib, sys; p = pathlib.Path(sys.argv[1], 'saved'); print(p.read_text() if p.exists() else -1)"


def make_job(folder: Path, behaviour: str, **site: object) -> Job:
    """Two nodes, a rank each."""
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "program.py").write_text(PROGRAM)
    settings: dict[str, object] = {"default": Resources(nodes=2, time_min=5), "grace_s": 25, **site}
    place = Site(kind="slurm", restarts=RestartConfig(without_progress=1), **settings)  # type: ignore[arg-type]
    element = Element(
        "one", (str(folder / "program.py"), str(folder), behaviour), progress=("-c", PROGRESS, str(folder))
    )
    return Job("train", "test", "a test", folder / "jobs", (element,), place, needed(place, "train"))


def wait_started(job: Job, start: int = 0) -> list[psutil.Process]:
    """The programs of both ranks, when they run for the n-th time."""
    folder = job.folder.parent
    places = [folder / f"started-{rank}-{start}" for rank in (0, 1)]
    deadline = time.monotonic() + 60
    while not all(place.exists() and place.read_text() for place in places):
        assert time.monotonic() < deadline, read_status(job.folder)
        time.sleep(0.05)
    return [psutil.Process(int(place.read_text().split()[0])) for place in places]


def ends(job: Job, record: Record) -> list[tuple[int, str]]:
    """Exit code and verdict of every start."""
    starts = JobState(job.folder, record.ids[0]).starts
    return [(start["end"]["code"], start["end"]["verdict"]) for start in starts if "end" in start]


def test_two_nodes_meet_at_the_first_ones_port_and_each_rank_has_a_log(slurm: SlurmCluster, tmp_path: Path) -> None:
    job = make_job(tmp_path, "finish")
    expected = job_script(job)
    record = submit(job)
    assert slurm.wait_state(record.ids[0], "COMPLETED", "FAILED") == "COMPLETED"
    worlds = [(tmp_path / f"started-{rank}-0").read_text().split()[1:] for rank in (0, 1)]
    assert worlds[0] == worlds[1] and worlds[0][0] == "node1"
    assert [path.name for path in log_files(job.folder)] == [f"{record.ids[0]}_{rank}_log.out" for rank in (0, 1)]
    written = (job.folder / f"{record.ids[0]}_submission.sh").read_text()
    assert [line for line in written.splitlines() if line] == [line for line in expected.splitlines() if line]
    assert ends(job, record) == [(0, "done")]


def test_a_pre_empted_job_saves_and_comes_back_by_itself(slurm: SlurmCluster, tmp_path: Path) -> None:
    job = make_job(tmp_path, "wait")
    record = submit(job)
    running = wait_started(job)
    urgent = slurm.run(
        "sbatch", "--parsable", "-p", "urgent", "-N", "2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1"
    )
    assert slurm.wait_state(record.ids[0], "COMPLETED", "FAILED") == "COMPLETED"
    assert slurm.state(urgent) == "COMPLETED" and wait_until_ended(running, 5) == []
    assert (tmp_path / "saved").read_text() == "1"
    assert read_status(job.folder)[0].starts == 2


def test_a_job_at_its_time_limit_saves_and_comes_back_by_itself(slurm: SlurmCluster, tmp_path: Path) -> None:
    job = make_job(tmp_path, "wait", default=Resources(nodes=2, time_min=1))
    record = submit(job)
    running = wait_started(job)
    assert slurm.wait_state(record.ids[0], "COMPLETED", "TIMEOUT", "FAILED") == "COMPLETED"
    assert (tmp_path / "saved").read_text() == "1" and wait_until_ended(running, 5) == []
    assert [verdict for _, verdict in ends(job, record)] == ["requeue", "done"]


def test_one_dead_rank_ends_all_and_starts_without_progress_are_limited(slurm: SlurmCluster, tmp_path: Path) -> None:
    job = make_job(tmp_path, "fail")
    started = time.monotonic()
    record = submit(job)
    ids = record.ids
    assert slurm.wait_state(ids[0], "FAILED", "COMPLETED") == "FAILED"
    assert time.monotonic() - started < 90
    assert [verdict for _, verdict in ends(job, record)] == ["requeue", "requeue"]
    assert "2 starts in a row brought no newer checkpoint" in log_files(job.folder, 0)[0].read_text()


def test_an_element_of_an_array_is_queued_again_alone(slurm: SlurmCluster, tmp_path: Path) -> None:
    jobs = [make_job(tmp_path / name, behaviour) for name, behaviour in (("a", "finish"), ("b", "once"))]
    both = dataclasses.replace(jobs[0], elements=jobs[0].elements + jobs[1].elements, folder=tmp_path / "jobs")
    ids = submit(both).ids
    assert [job.rsplit("_", 1)[1] for job in ids] == ["0", "1"]
    for job in ids:
        assert slurm.wait_state(job, "COMPLETED", "FAILED") == "COMPLETED"
    assert [(status.state, status.starts) for status in read_status(both.folder)] == [
        ("COMPLETED", 1),
        ("COMPLETED", 2),
    ]


def test_settings_that_cannot_be_run_are_not_tried_again(slurm: SlurmCluster, tmp_path: Path) -> None:
    job = make_job(tmp_path, "usage")
    record = submit(job)
    assert slurm.wait_state(record.ids[0], "FAILED", "COMPLETED") == "FAILED"
    assert [verdict for _, verdict in ends(job, record)] == ["failed"]


def test_a_cancelled_job_leaves_nothing_and_does_not_come_back(slurm: SlurmCluster, tmp_path: Path) -> None:
    job = make_job(tmp_path, "wait")
    record = submit(job)
    running = wait_started(job)
    assert cancel(job.folder) == record.ids
    assert wait_until_ended(running, 10) == [] and (tmp_path / "saved").exists()
    time.sleep(7)  # as long as a requeued job would wait
    assert read_status(job.folder)[0].state == "CANCELLED"
    assert wait_until_ended(slurm.processes(), 10) == []


def test_kill_9_of_what_watches_over_a_rank_ends_the_rank_too(slurm: SlurmCluster, tmp_path: Path) -> None:
    job = make_job(tmp_path, "wait")
    record = submit(job)
    running = wait_started(job)
    parent = running[1].parent()
    assert parent is not None and sys.executable in parent.cmdline()
    parent.kill()
    assert wait_until_ended(running, 20) == []
    assert slurm.wait_state(record.ids[0], "COMPLETED", "FAILED") == "COMPLETED"
    assert [verdict for _, verdict in ends(job, record)] == ["requeue", "done"]
