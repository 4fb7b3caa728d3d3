"""Sites: typos and secrets are refused, what a stage needs is filled in, and scripts hold what a site says."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from mcjepa.cluster.errors import LaunchError
from mcjepa.cluster.job import After, Element, Job
from mcjepa.cluster.script import lines_before, slurm_parameters
from mcjepa.cluster.site import STAGES, Resources, Site, needed, variables
from mcjepa.cluster.submit import job_script
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.launch.sites import load_site
from mcjepa.pipeline.recipe.files import shipped_recipes

ENVIRONMENT = {"HOME": "/home/a b", "PATH": "/bin", "AWS_SECRET_ACCESS_KEY": "canary", "RAY_AUTH_TOKEN": "canary"}


def write(path: Path, **content: object) -> str:
    path.write_text(yaml.safe_dump({"kind": "slurm", **content}))
    return str(path)


def job_on(site: Site, elements: int = 1, after: After | None = None, nodes: int = 2) -> Job:
    found = tuple(Element(f"e{n}", ("-m", "x", str(n))) for n in range(elements))
    return Job(
        "train",
        "mcjepa-train-x",
        "mcjepa train RUN",
        Path("/jobs/x y"),
        found,
        site,
        needed(site, "train", nodes),
        after,
    )


def test_shipped_sites_are_valid_and_are_no_recipes() -> None:
    kinds = {name: load_site(name).kind for name in ("local", "debug", "slurm")}
    assert kinds == {"local": "local", "debug": "debug", "slurm": "slurm"}
    assert not [name for name in shipped_recipes() if name.startswith("site")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"partition": "gpu"}, "unknown key 'partition'"),
        ({"default": {"partion": "gpu"}}, "did you mean 'default.partition'"),
        ({"default": {"nodes": 0}}, "nodes is 0, expected at least 1"),
        ({"kind": "slrum"}, "'local', 'debug' or 'slurm'"),
        ({"grace_s": 5}, "grace_s is 5, expected more than 10"),
        ({"scratch": "/local/$USER"}, r"scratch is '/local/\$USER'.*no variable.*export TMPDIR in `setup`"),
        ({"scratch": "~/tmp"}, "scratch is '~/tmp', expected the whole path"),
        ({"jobs": "/shared/$USER"}, "jobs is .*no variable is filled in; write it out"),
        ({"shard_cache": "/local/${SLURM_JOB_ID}"}, "shard_cache is .*no variable is filled in; write it out"),
        ({"environment": {"AWS_SECRET_ACCESS_KEY": "x"}}, "looks like a secret.*s3_profile"),
        ({"inherit": ["MLFLOW_TRACKING_PASSWORD"]}, "looks like a secret"),
        ({"environment": {"A B": "x"}}, "no name of a variable"),
    ],
)
def test_a_wrong_site_file_is_one_clear_error(tmp_path: Path, content: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_site(write(tmp_path / "site.yaml", **content))


def test_a_time_of_the_clock_is_refused_where_minutes_are_expected_and_reaches_sbatch_as_text(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text("kind: slurm\ndefault: {time_min: 1:30:00}\n")
    with pytest.raises(UsageError, match=r"default.time_min is '1:30:00', expected minutes as one number"):
        load_site(str(path))
    path.write_text("kind: slurm\ndefault: {time_min: 90, options: {begin: 20:00}}\n")
    assert "#SBATCH --begin=20:00" in job_script(job_on(load_site(str(path))))


def test_an_unknown_site_names_those_that_ship() -> None:
    for name in ("nowhere", "../quickstart", "site/local"):
        with pytest.raises(UsageError, match=r"debug, local, slurm|did you mean 'local'"):
            load_site(name)


def test_a_stage_asks_for_its_own_before_the_default_and_ranks_are_one_a_gpu() -> None:
    site = Site(
        kind="slurm",
        default=Resources(partition="gpu", nodes=3, gpus=8, options={"a": 1}),
        prep=Resources(partition="cpu", gpus=0, options={"b": True}),
    )
    prep, train, evaluation = (needed(site, stage) for stage in STAGES)
    assert (train.tasks, train.partition, train.time_min) == (24, "gpu", 60)
    assert (prep.tasks, prep.partition, prep.gpus_per_node, prep.options) == (3, "cpu", 0, {"a": 1, "b": True})
    assert (evaluation.nodes, evaluation.tasks, evaluation.gpus_per_node) == (1, 1, 8)
    assert needed(site, "train", nodes=5).nodes == 5


@pytest.mark.parametrize(
    ("asked", "lines"),
    [
        ({"gpus": 8}, ["--gpus-per-node=8"]),
        ({"gpus": "a100:8", "gpus_by": "gres", "options": {"gres": "nvme:1"}}, ["--gres=gpu:a100:8,nvme:1"]),
        ({"gpus": "a100:8", "gpus_by": "gpus-per-task", "tasks_per_node": 4}, ["--gpus-per-task=a100:2"]),
        ({"memory_per_cpu_gb": 2}, ["--mem-per-cpu=2048M"]),
        ({"memory_gb": 0}, ["--mem=0M"]),
        ({}, []),
    ],
)
def test_gpus_and_memory_are_asked_for_in_one_way(asked: dict[str, Any], lines: list[str]) -> None:
    job = job_on(Site(kind="slurm", default=Resources(**asked)))
    found = [line.removeprefix("#SBATCH ") for line in job_script(job).splitlines() if line.startswith("#SBATCH ")]
    assert [line for line in found if re.match("--(g|mem)", line)] == lines


def test_memory_for_each_processor_is_counted_for_the_node_and_a_stage_says_it_in_its_own_way() -> None:
    site = Site(
        kind="slurm",
        default=Resources(memory_per_cpu_gb=2, cpus_per_task=3, tasks_per_node=4),
        eval=Resources(memory_gb=5),
    )
    assert needed(site, "train").node_memory_gb == 24
    evaluation = needed(site, "eval")
    assert (evaluation.memory_gb, evaluation.memory_per_cpu_gb, evaluation.node_memory_gb) == (5, None, 5)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"gpus": "a100"}, "a number, or TYPE:NUMBER such as a100:8"),
        ({"options": {"gres": "gpu:a100:4"}}, "gres=gpu:a100:4 would contradict `gpus`"),
        ({"options": {"gpus-per-task": 1}}, "would contradict `gpus`"),
        ({"options": {"mem-per-cpu": "2G"}}, "would contradict `memory_per_cpu_gb`"),
        ({"options": {"--mem": "2G"}}, "begins with a dash"),
        ({"options": {"export": "ALL"}}, "export is set by the launcher"),
        ({"memory_gb": 1, "memory_per_cpu_gb": 1}, "both given"),
    ],
)
def test_what_would_be_said_twice_is_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Resources(**asked)


def test_gpus_by_the_task_are_shared_evenly() -> None:
    site = Site(kind="slurm", default=Resources(gpus=3, gpus_by="gpus-per-task", tasks_per_node=2))
    with pytest.raises(LaunchError, match="3 GPUs a node for 2 tasks"):
        needed(site, "train")


def test_the_script_is_bash_and_holds_the_site_but_no_other_variable_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    site = Site(
        kind="slurm",
        default=Resources(account="lab", qos="high", memory_gb=0.5, exclusive=True, options={"reservation": "night"}),
        modules=("cuda/12.4",),
        setup=("ulimit -n 4096",),
        container=("apptainer", "exec", "/images/x y.sif"),
        python="/opt/python",
        s3_profile="shards",
        interface="ib0",
        scratch="/local",
    )
    script = job_script(job_on(site))
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    for line in (
        "#SBATCH --account=lab", "#SBATCH --mem=512M", "#SBATCH --exclusive", "#SBATCH --reservation=night",
        "#SBATCH --nodes=2", "#SBATCH --export=NIL", "#SBATCH --requeue", "#SBATCH --comment='mcjepa train RUN'",
        "export AWS_PROFILE=shards", "export NCCL_SOCKET_IFNAME=ib0", "export TMPDIR=/local", "load_module cuda/12.4",
        "ulimit -n 4096", "export HOME='/home/a b'",
    ):  # fmt: skip
        assert line in script.splitlines()
    assert "apptainer exec '/images/x y.sif' /opt/python -u -m submitit.core._submit '/jobs/x y'" in script
    assert "--kill-on-bad-exit=1" in script and "canary" not in script


def test_several_elements_are_an_array_and_a_job_may_wait_for_another() -> None:
    site = Site(kind="slurm")
    assert "#SBATCH --array=0-2%3" in job_script(job_on(site, elements=3))
    waiting = job_script(job_on(site, after=After("ok", Path("/jobs/y"), "17")))
    assert "#SBATCH --dependency=afterok:17" in waiting and "#SBATCH --kill-on-invalid-dep=yes" in waiting
    assert "dependency" not in slurm_parameters(job_on(site), {})


def test_the_environment_of_a_script_comes_before_modules_and_setup() -> None:
    site = Site(kind="slurm", modules=("m",), setup=("source secrets",), environment={"A": "1"})
    lines = lines_before(job_on(site), {"HOME": "/h", "OTHER": "x"})
    order = [
        next(n for n, line in enumerate(lines) if word in line)
        for word in ("unset", "HOME=", "A=1", "source", "load_module m", "begin")
    ]
    assert order == sorted(order) and not any("OTHER" in line for line in lines)
    assert variables(site) == {"A": "1"}
