"""Jobs on a real Slurm: signals, restarts, dead ranks and cancelling, with a small program in place of a stage."""

from __future__ import annotations

import dataclasses
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mcjepa.cluster.restarts import JobState
from mcjepa.cluster.site import Resources, needed
from mcjepa.cluster.status import cancel, log_files, read_status
from mcjepa.cluster.submit import job_script, submit
from tests.cluster.slurm_jobs import Submitted, make_job, submitted, wait_started
from tests.processes import wait_until_ended
from tests.servers.slurm import SlurmCluster

REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def crowd(slurm_cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Submitted]]:
    """Jobs that need nobody's hand, side by side: most of their time they wait for Slurm."""
    root = tmp_path_factory.mktemp("crowd")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**slurm_cluster.variables, "PYTHONPATH": str(REPOSITORY)}.items():
            patch.setenv(name, value)
        minute = Resources(nodes=2, time_min=1)
        found = {"limit": submitted(root / "limit", "wait", default=minute)}
        found |= {behaviour: submitted(root / behaviour, behaviour) for behaviour in ("finish", "fail", "usage")}
        one, other = make_job(root / "one", "finish"), make_job(root / "other", "once")
        both = dataclasses.replace(one, elements=one.elements + other.elements, folder=root / "both" / "jobs")
        found["array"] = Submitted(both, submit(both))
        yield found


def test_two_nodes_meet_at_the_first_ones_port_and_each_rank_has_a_log(
    slurm: SlurmCluster, crowd: dict[str, Submitted]
) -> None:
    it = crowd["finish"]
    assert it.state(slurm) == "COMPLETED" and it.verdicts() == ["done"]
    worlds = [(it.folder / f"started-{rank}-0").read_text().split()[1:] for rank in (0, 1)]
    assert worlds[0] == worlds[1] and worlds[0][0] == "node1"
    job = it.record.ids[0]
    assert [path.name for path in log_files(it.job.folder)] == [f"{job}_{rank}_log.out" for rank in (0, 1)]


def test_what_a_dry_run_prints_is_what_sbatch_got(slurm: SlurmCluster, crowd: dict[str, Submitted]) -> None:
    for name in ("finish", "array"):
        it = crowd[name]
        written = (it.job.folder / f"{it.record.ids[0].split('_')[0]}_submission.sh").read_text()
        assert [line for line in written.splitlines() if line] == [s for s in job_script(it.job).splitlines() if s]


def test_one_dead_rank_ends_all_and_starts_without_progress_are_limited(
    slurm: SlurmCluster, crowd: dict[str, Submitted]
) -> None:
    it = crowd["fail"]
    assert it.state(slurm) == "FAILED" and it.verdicts() == ["requeue", "requeue"]
    said = log_files(it.job.folder, 0)[0].read_text()
    assert "2 starts in a row brought no newer checkpoint" in said
    assert said.count("mcjepa: rank 1 ended with exit code 5, see ") == 2
    ends = [start["end"]["at"] - start["at"] for start in JobState(it.job.folder, it.record.ids[0]).starts]
    assert max(ends) < 30  # the other rank would wait for two minutes


def test_settings_that_cannot_be_run_are_not_tried_again(slurm: SlurmCluster, crowd: dict[str, Submitted]) -> None:
    assert crowd["usage"].state(slurm) == "FAILED" and crowd["usage"].verdicts() == ["failed"]


def test_an_element_of_an_array_is_queued_again_alone(slurm: SlurmCluster, crowd: dict[str, Submitted]) -> None:
    it = crowd["array"]
    assert [job.rsplit("_", 1)[1] for job in it.record.ids] == ["0", "1"]
    for job in it.record.ids:
        assert slurm.wait_state(job, "COMPLETED", "FAILED") == "COMPLETED"
    found = [(status.state, status.starts) for status in read_status(it.job.folder)]
    assert found == [("COMPLETED", 1), ("COMPLETED", 2)]


def test_a_job_at_its_time_limit_saves_and_comes_back_by_itself(
    slurm: SlurmCluster, crowd: dict[str, Submitted]
) -> None:
    it = crowd["limit"]
    assert it.state(slurm) == "COMPLETED" and it.verdicts() == ["requeue", "done"]
    assert (it.folder / "saved").read_text() == "1"


def test_a_pre_empted_job_saves_and_comes_back_by_itself(slurm: SlurmCluster, tmp_path: Path) -> None:
    slurm.wait_idle()
    it = submitted(tmp_path, "wait")
    running = wait_started(it.job)
    words = ["sbatch", "--parsable", "-p", "urgent", "-N", "2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1"]
    urgent = slurm.run(*words)
    assert it.state(slurm) == "COMPLETED" and it.verdicts() == ["requeue", "done"]
    assert slurm.state(urgent) == "COMPLETED" and wait_until_ended(running, 5) == []
    assert (tmp_path / "saved").read_text() == "1"


def test_a_cancelled_job_leaves_nothing_and_does_not_come_back(slurm: SlurmCluster, tmp_path: Path) -> None:
    slurm.wait_idle()
    it = submitted(tmp_path, "wait")
    running = wait_started(it.job)
    assert cancel(it.job.folder) == it.record.ids
    assert wait_until_ended(running, 10) == [] and (tmp_path / "saved").exists()
    time.sleep(7)  # as long as a job that is queued again would wait
    assert read_status(it.job.folder)[0].state == "CANCELLED"
    assert wait_until_ended(slurm.processes(), 10) == []


def test_a_slurmd_may_die_but_what_watches_over_a_rank_takes_it_along(slurm: SlurmCluster, tmp_path: Path) -> None:
    it = submitted(tmp_path, "wait")
    running = wait_started(it.job)
    slurm.kill_daemon(2)
    slurm.start_node(2)
    time.sleep(3)
    assert all(process.is_running() for process in running) and it.verdicts() == []
    parent = running[1].parent()
    assert parent is not None and "submitit.core._submit" in parent.cmdline()
    parent.kill()
    assert wait_until_ended(running, 20) == []
    assert it.state(slurm) == "COMPLETED" and it.verdicts() == ["requeue", "done"]


def test_a_cancelled_ray_cluster_leaves_no_process_port_or_folder(slurm: SlurmCluster, tmp_path: Path) -> None:
    slurm.wait_idle()
    train = make_job(tmp_path, "alone")
    job = dataclasses.replace(train, stage="prep", need=needed(train.site, "prep"))
    record = submit(job)
    deadline = time.monotonic() + 150
    while not (tmp_path / "on-ray").exists():
        assert time.monotonic() < deadline and read_status(job.folder)[0].active, slurm.run("squeue", "--states=all")
        time.sleep(0.1)
    host, port = (tmp_path / "on-ray").read_text().rsplit(":", 1)
    running = slurm.processes()
    assert sum("raylet" in process.name() for process in running) == 2
    with socket.create_connection((host, int(port)), timeout=5):
        pass
    assert cancel(job.folder) == record.ids
    assert wait_until_ended(running, 15) == []
    assert not list(Path("/tmp").glob(f"mcjepa-ray-{record.ids[0]}-*"))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=5)
