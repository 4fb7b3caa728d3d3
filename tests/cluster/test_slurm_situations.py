"""How people really use a cluster, on a real Slurm with and without accounting: shells, modules, states, GPUs."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from mcjepa.cluster.errors import LaunchError
from mcjepa.cluster.job import After, read_record, write_record
from mcjepa.cluster.preflight.scheduler import read_slurm, scheduler_findings
from mcjepa.cluster.restarts import JobState
from mcjepa.cluster.site import GpuOption, Resources, Site, needed
from mcjepa.cluster.slurm import job_states
from mcjepa.cluster.status import cancel, follow_logs, log_files, read_status
from mcjepa.cluster.submit import job_script, submit
from mcjepa.pipeline.launch.jobs import Launch, resubmit, submit_launch
from mcjepa.pipeline.launch.ranks import MODULE
from mcjepa.pipeline.recipe.recipe import load_recipe
from mcjepa.pipeline.world import gpu_index
from tests.cluster.slurm_jobs import Submitted, make_job, submitted, wait_started
from tests.pipeline.small_recipe import write_small_recipe
from tests.processes import wait_until_ended
from tests.servers.slurm import GPU_TYPE, SlurmCluster

REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(240)]

GPU_OPTIONS: tuple[GpuOption, ...] = get_args(GpuOption)
ONE = Resources(nodes=1, time_min=5)
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "leak-canary-5a01",
    "MLFLOW_TRACKING_PASSWORD": "leak-canary-5a02",
    "SLURM_SECRET": "leak-canary-5a03",
    "NIL": "leak-canary-5a04",
}
HOSTILE = {
    "SBATCH_EXPORT": "ALL",
    "SBATCH_PARTITION": "urgent",
    "SBATCH_GRES": "gpu:7",
    "SBATCH_ACCOUNT": "nobodys",
    "SBATCH_QOS": "none",
    "SBATCH_TIMELIMIT": "0-00:00:01",
    "SBATCH_ARRAY_INX": "0-3",
    "SBATCH_HOLD": "1",
    "SLURM_EXPORT_ENV": "ALL",
    "SLURM_MEM_PER_CPU": "9000",
    "SLURM_MEM_PER_NODE": "9000",
    "SLURM_GPUS": "7",
    "SLURM_NNODES": "9",
    "SLURM_JOB_ID": "1",
    "SLURM_JOBID": "1",
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "4",
    "SRUN_EXPORT_ENV": "NONE",
    "SALLOC_PARTITION": "urgent",
    "SQUEUE_FORMAT": "%A",
    "SQUEUE_STATES": "F",
    "SCANCEL_STATE": "PENDING",
    "SACCT_FORMAT": "user",
}
FAKE_MODULES = """\
module() {
    [ "$2" = unknown ] && { echo "no modulefile for $2" >&2; return 1; }
    [ "$2" = silent ] && return 0
    export LOADEDMODULES="${LOADEDMODULES:+$LOADEDMODULES:}$2" LOADED_BY="$MODULEPATH"
}
"""
LATE_RANK_0 = """\
# its task begins when that of rank 1 has failed, and is killed before it can say anything
[ -n "$SLURM_STEP_ID" ] && [ "$SLURM_PROCID" = 0 ] && sleep 20
exec "$@"
"""


def submitted_with(variables: Mapping[str, str], folder: Path, behaviour: str, **site: object) -> Submitted:
    """Submitted from a shell that has more variables."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        return submitted(folder, behaviour, **site)


def submitted_training(folder: Path, asked: Resources) -> Submitted:
    """A real training."""
    folder.mkdir()
    job = make_job(folder, "finish", default=asked, environment={"OMP_NUM_THREADS": "1"})
    words = (*MODULE, "train", str(write_small_recipe(folder)))
    job = dataclasses.replace(job, elements=(dataclasses.replace(job.elements[0], argv=words),))
    return Submitted(job, submit(job))


def submitted_inside(slurm: SlurmCluster, folder: Path) -> Submitted:
    """Submitted from an allocation, as people do on an interactive node."""
    words = "from pathlib import Path; from tests.cluster.slurm_jobs import submitted; import sys"
    program = f"{words}; print(submitted(Path(sys.argv[1]), 'finish').record.ids[0])"
    answer = subprocess.run(
        ["srun", "-N1", "-n1", "--mem-per-cpu=60", "--gpus=1", "--export=ALL", sys.executable, "-c", program, folder],
        cwd=REPOSITORY, env={**os.environ, **slurm.variables}, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    return Submitted(make_job(folder, "finish"), read_record(folder / "jobs"))


@pytest.fixture(scope="module")
def crowd(any_slurm_cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Submitted]]:
    """Jobs side by side; those on node2 are for the tests to disturb, one has it for itself."""
    root, slurm = tmp_path_factory.mktemp("situations"), any_slurm_cluster
    (root / "modules.sh").write_text(FAKE_MODULES)
    begin = f". {root}/modules.sh"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**slurm.variables, "PYTHONPATH": str(REPOSITORY)}.items():
            patch.setenv(name, value)
        slurm.wait_idle()
        spare = Resources(nodes=1, cpus_per_task=4, partition="spare", time_min=5, options={"nodelist": "node2"})
        found = {"spare": submitted(root / "spare", "wait", default=spare)}
        wait_started(found["spare"].job)
        urgent = ["sbatch", "--parsable", "-p", "urgent", "-w", "node2", "-c", "4", "-o", "/dev/null"]
        found |= {
            "special": submitted(root / "special", "wait", default=ONE),
            "hostile": submitted_with({**HOSTILE, **SECRETS}, root / "hostile", "tell", default=ONE),
            "false": submitted(root / "false", "finish", default=ONE, setup=("true", "false", "true")),
            "unknown": submitted(root / "unknown", "finish", default=ONE, setup=(begin,), modules=("unknown",)),
            "silent": submitted(root / "silent", "finish", default=ONE, setup=(begin,), modules=("silent",)),
            "modules": submitted(
                root / "modules", "tell", default=ONE, setup=(begin, "export MODULEPATH=/ours"), modules=("a/1", "b"),
                container=("env", "IN_CONTAINER=1"),
            ),
        }  # fmt: skip
        for by in GPU_OPTIONS:
            asked = Resources(nodes=1, time_min=5, gpus=f"{GPU_TYPE}:2", gpus_by=by)
            found[by] = submitted(root / by, "tell", default=asked)
        found["no-gpu"] = submitted_training(root / "no-gpu", Resources(nodes=1, gpus=1, cpus_per_task=2))
        (root / "late.sh").write_text(LATE_RANK_0)
        late = ("sh", str(root / "late.sh"))
        found["interface"] = submitted(root / "interface", "finish", interface="lo,ib7", container=late)
        found["percent"] = submitted(root / "100%_of %b", "tell", default=ONE)
        umask = os.umask(0o077)
        found["private"] = submitted(root / "private", "finish", default=ONE)
        os.umask(umask)
        slurm.run(*urgent, "--wrap", "sleep 1")
        found["inside"] = submitted_inside(slurm, root / "inside")
        yield found


@pytest.fixture(autouse=True)
def reached(any_slurm_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in any_slurm_cluster.variables.items():
        monkeypatch.setenv(name, value)


def test_a_job_is_launched_from_inside_an_allocation(
    any_slurm_cluster: SlurmCluster, crowd: dict[str, Submitted]
) -> None:
    it = crowd["inside"]
    assert it.state(any_slurm_cluster) == "COMPLETED" and it.verdicts() == ["done"]


def test_what_a_shell_holds_neither_changes_a_job_nor_reaches_it(
    any_slurm_cluster: SlurmCluster, crowd: dict[str, Submitted], monkeypatch: pytest.MonkeyPatch
) -> None:
    it = crowd["hostile"]
    assert it.state(any_slurm_cluster) == "COMPLETED", it.output()
    asked = any_slurm_cluster.run("squeue", "-h", "--states=all", "-j", it.record.ids[0], "-o", "%P %D %i")
    assert asked.split() == ["main", "1", it.record.ids[0]]
    own = {path: path.read_bytes() for path in it.folder.rglob("*") if path.is_file()}
    files = {**own, **any_slurm_cluster.files()}
    environments = [files[it.folder / name] for name in ("own-0", "parent-0")]
    assert all(b"SLURM_PROCID=0" in content for content in environments)
    assert [str(path) for path, content in files.items() if b"leak-canary" in content] == []
    for name, value in HOSTILE.items():
        monkeypatch.setenv(name, value)
    assert read_status(it.job.folder)[0].state == "COMPLETED"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("false", "setup of the site file failed on node1 with exit code 1: false"),
        ("unknown", "mcjepa: module load unknown failed on node1"),
        ("silent", "mcjepa: module load silent loaded nothing on node1"),
    ],
)
def test_a_job_ends_at_once_where_its_setup_or_a_module_fails(
    any_slurm_cluster: SlurmCluster, crowd: dict[str, Submitted], name: str, said: str
) -> None:
    it = crowd[name]
    assert it.state(any_slurm_cluster) == "FAILED"
    assert said in it.output().replace("node3", "node1")
    assert (read_status(it.job.folder)[0].starts, list(it.folder.glob("started-*"))) == (0, [])


def test_setup_comes_before_modules_and_modules_before_the_container(
    any_slurm_cluster: SlurmCluster, crowd: dict[str, Submitted]
) -> None:
    it = crowd["modules"]
    assert it.state(any_slurm_cluster) == "COMPLETED", it.output()
    variables = (it.folder / "own-0").read_bytes().split(b"\0")
    assert {b"LOADEDMODULES=a/1:b", b"LOADED_BY=/ours", b"IN_CONTAINER=1"} <= set(variables)


def test_a_job_that_pre_emption_cancelled_has_ended_and_is_resumed(
    any_slurm_cluster: SlurmCluster, crowd: dict[str, Submitted]
) -> None:
    it, before = crowd["spare"], time.monotonic()
    assert it.state(any_slurm_cluster) == "PREEMPTED" and (it.folder / "saved").read_text() == "1"
    assert not read_status(it.job.folder)[0].active and cancel(it.job.folder) == []
    assert time.monotonic() - before < 60
    again = Submitted(it.job, submit(it.job))
    assert again.state(any_slurm_cluster) == "COMPLETED" and again.record.ids != it.record.ids


def test_a_job_that_is_held_for_its_owner_will_come_back_and_can_be_cancelled(
    any_slurm_cluster: SlurmCluster, crowd: dict[str, Submitted]
) -> None:
    it = crowd["special"]
    job = it.record.ids[0]
    wait_started(it.job)
    any_slurm_cluster.run("scontrol", "requeuehold", "State=SpecialExit", job)
    assert any_slurm_cluster.wait_state(job, "SPECIAL_EXIT") == "SPECIAL_EXIT"
    assert read_status(it.job.folder)[0].active
    assert cancel(it.job.folder) == [job]
    assert read_status(it.job.folder)[0].state == "CANCELLED"


def test_a_waiting_array_is_seen_element_by_element(
    any_slurm_cluster: SlurmCluster, crowd: dict[str, Submitted], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make_job(tmp_path, "finish", default=dataclasses.replace(ONE, options={"hold": True}))
    job = dataclasses.replace(one, elements=one.elements * 4)
    ids = submit(job).ids
    assert [status.state for status in read_status(job.folder)] == ["PENDING"] * 4
    if any_slurm_cluster.accounting:  # the same when only the database knows the jobs
        (tmp_path / "squeue").write_text("#!/bin/sh\nexit 0\n")
        (tmp_path / "squeue").chmod(0o755)
        with monkeypatch.context() as patch:
            patch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
            done = crowd["hostile"].record.ids[0]
            deadline = time.monotonic() + 20
            while {state for state, _ in job_states(ids).values()} != {"PENDING"}:
                assert time.monotonic() < deadline, any_slurm_cluster.run("sacct", "-X")
                time.sleep(0.5)
            assert job_states([done])[done][0] == "COMPLETED"
    assert cancel(job.folder) == ids
    assert [status.state for status in read_status(job.folder)] == ["CANCELLED"] * 4


def test_what_a_job_noted_counts_where_the_scheduler_has_forgotten_it(
    any_slurm_cluster: SlurmCluster, crowd: dict[str, Submitted], tmp_path: Path
) -> None:
    it = crowd["hostile"]
    assert it.state(any_slurm_cluster) == "COMPLETED"
    folder, forgotten = tmp_path / "jobs", str(int(it.record.ids[0]) + 100_000)
    shutil.copytree(it.job.folder, folder)
    record = read_record(folder)
    record.jobs[-1]["ids"] = [forgotten]
    write_record(folder, record)
    assert read_status(folder)[0].state == "GONE"
    (folder / "states" / f"{it.record.ids[0]}.json").rename(folder / "states" / f"{forgotten}.json")
    assert read_status(folder)[0].state == "COMPLETED"
    JobState(folder, forgotten).end(1, "requeue", time.time())
    assert read_status(folder)[0].state == "GONE"


@pytest.mark.parametrize("by", GPU_OPTIONS)
def test_each_rank_has_a_gpu_of_its_own_however_they_are_asked_for(
    any_slurm_cluster: SlurmCluster, crowd: dict[str, Submitted], by: GpuOption
) -> None:
    it, taken = crowd[by], []
    assert it.state(any_slurm_cluster) == "COMPLETED", it.output()
    for rank in range(2):
        own = dict(v.split("=", 1) for v in (it.folder / f"own-{rank}").read_text().split("\0") if v)
        seen = own["CUDA_VISIBLE_DEVICES"].split(",")
        taken.append(seen[gpu_index(int(own["LOCAL_RANK"]), 2, len(seen), own)])
        assert own["MCJEPA_GPUS"] == "2"
    assert sorted(taken) == ["0", "1"]


def test_a_gpu_job_does_not_train_on_the_cpu(any_slurm_cluster: SlurmCluster, crowd: dict[str, Submitted]) -> None:
    it = crowd["no-gpu"]
    assert it.state(any_slurm_cluster) == "FAILED" and it.verdicts() == ["failed"]
    said = it.output()
    assert "torch sees no GPU on node" in said and "expected 1, which the site asks for" in said
    assert "driver is" in said and f"torch {torch.__version__} is built for" in said


@pytest.mark.parametrize(
    ("asked", "topic"),
    [
        ({"partition": "short", "time_min": 600}, "time limit"),
        ({"partition": "short", "nodes": 3, "time_min": 10}, "nodes"),
        ({"nodes": 64}, "nodes"),
        ({"memory_gb": 7}, "node"),
        ({"gpus": "h100:1"}, "node"),
        ({"gpus": f"{GPU_TYPE}:3"}, "node"),
        ({"gpus": f"{GPU_TYPE}:2", "memory_per_cpu_gb": 1.4, "cpus_per_task": 2, "partition": "short"}, ""),
    ],
)
def test_the_preflight_says_what_slurm_would(
    any_slurm_cluster: SlurmCluster, tmp_path: Path, asked: dict[str, Any], topic: str
) -> None:
    site = Site(kind="slurm", default=Resources(**{"time_min": 10, **asked}))
    findings = scheduler_findings(needed(site, "train"), 1, read_slurm())
    assert {f.topic for f in findings if f.severity == "error"} == ({topic} if topic else set())
    job = dataclasses.replace(make_job(tmp_path, "finish"), need=needed(site, "train"), site=site)
    if topic == "time limit":  # sbatch takes such a job, which waits for ever
        waiting = any_slurm_cluster.run("sbatch", "--parsable", "-p", "short", "-t", "600", "--wrap", "true")
        assert any_slurm_cluster.run("squeue", "-h", "-j", waiting, "-o", "%r").startswith("Partition")
        any_slurm_cluster.run("scancel", waiting)
        return
    answer = subprocess.run(
        ["sbatch", "--test-only"], input=job_script(job), capture_output=True, text=True, check=False
    )
    assert (answer.returncode != 0) == bool(topic), answer.stderr


def test_all_files_of_a_job_have_the_rights_of_its_owners_umask(
    any_slurm_cluster: SlurmCluster, crowd: dict[str, Submitted]
) -> None:
    it = crowd["private"]
    assert it.state(any_slurm_cluster) == "COMPLETED"
    files = [path for path in it.job.folder.rglob("*") if path.is_file()]
    assert len(files) > 5 and [str(path) for path in files if path.stat().st_mode & 0o077] == []


def test_a_wrong_interface_is_one_line_and_one_start_whichever_rank_finds_it_first(
    any_slurm_cluster: SlurmCluster, crowd: dict[str, Submitted]
) -> None:
    it = crowd["interface"]
    assert it.state(any_slurm_cluster) == "FAILED" and it.verdicts() == ["failed"]
    said = [line for line in it.output().splitlines() if "ib7" in line]
    assert len(said) == 1 and "no IPv4 address on interface 'ib7' of node" in said[0] and "one of " in said[0]
    assert "Traceback" not in it.output() and not list(it.folder.glob("started-*"))


def test_a_percent_sign_in_a_path_is_itself(any_slurm_cluster: SlurmCluster, crowd: dict[str, Submitted]) -> None:
    it = crowd["percent"]
    assert it.state(any_slurm_cluster) == "COMPLETED" and "tasks ended with exit code 0" in it.output()
    assert [path.name for path in log_files(it.job.folder)] == [f"{it.record.ids[0]}_0_log.out"]
    folder = Path("/data/50%test")
    with pytest.raises(LaunchError, match=r"expected none with %t"):
        job_script(dataclasses.replace(it.job, folder=folder))


def test_a_refused_cancel_does_not_say_that_the_job_is_cancelled(
    any_slurm_cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = submitted(tmp_path / "job", "finish", default=dataclasses.replace(ONE, options={"hold": True}))
    as_nobody = f'#!/bin/sh\nexec setpriv --reuid 65534 --clear-groups {shutil.which("scancel")} "$@"\n'
    (tmp_path / "scancel").write_text(as_nobody)
    (tmp_path / "scancel").chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        with pytest.raises(LaunchError, match=r"scancel .*denied"):
            cancel(it.job.folder)
    assert not read_record(it.job.folder).cancelled and read_status(it.job.folder)[0].state == "PENDING"
    assert cancel(it.job.folder) == it.record.ids and read_record(it.job.folder).cancelled


def test_resuming_a_job_submits_again_what_was_to_follow_it_and_cancelling_reaches_it(
    any_slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    train = submitted(tmp_path / "train", "wait", default=ONE)
    behind = make_job(tmp_path / "behind", "finish", default=ONE)
    submit(dataclasses.replace(behind, after=After("ok", train.job.folder, train.record.ids[0])))
    beside = make_job(tmp_path / "beside", "wait", default=ONE)
    words = (*beside.elements[0].argv, "--follow")
    live = submit(dataclasses.replace(beside, elements=(dataclasses.replace(beside.elements[0], argv=words),)))
    record = read_record(train.job.folder)
    record.followers = [str(behind.folder), str(beside.folder)]
    write_record(train.job.folder, record)
    wait_started(train.job)
    any_slurm_cluster.run("scancel", train.record.ids[0])
    any_slurm_cluster.wait_state(train.record.ids[0], "CANCELLED")
    again, _ = resubmit(train.job.folder)
    assert [job.folder for job, _ in again] == [train.job.folder, behind.folder]
    assert read_status(beside.folder)[0].id == live.ids[0]
    ended = [Submitted(job, record).state(any_slurm_cluster) for job, record in again]
    assert ended == ["COMPLETED", "COMPLETED"] and again[1][0].after
    assert again[1][0].after.job == again[0][1].ids[0]
    running = wait_started(beside)
    assert cancel(train.job.folder) == live.ids
    assert wait_until_ended(running, 10) == []


def test_a_chain_of_jobs_is_taken_whole_or_not_at_all(any_slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    recipe, plain = load_recipe("quickstart", [])
    first = make_job(tmp_path / "first", "wait", default=dataclasses.replace(ONE, options={"hold": True}))
    nowhere = make_job(tmp_path / "second", "finish", default=dataclasses.replace(ONE, partition="nowhere"))
    with pytest.raises(LaunchError, match="invalid partition"):
        submit_launch(Launch(recipe, plain, ((first, ""), (nowhere, "ok"))))
    assert read_status(first.folder)[0].state == "CANCELLED"


def test_logs_are_followed_to_the_end_of_the_job(any_slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    it = submitted(tmp_path, "finish")
    said: dict[str, str] = {}
    for path, text in follow_logs(it.job.folder):  # it has not started
        said[path.name] = said.get(path.name, "") + text + "\n"
    assert read_status(it.job.folder)[0].state == "COMPLETED"
    assert said == {path.name: path.read_text() for path in log_files(it.job.folder)} and len(said) == 2
