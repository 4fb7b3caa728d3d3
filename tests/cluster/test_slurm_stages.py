"""All stages on a real Slurm of two nodes, one recipe and site file, data in a bucket; then a run that is disturbed."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from mlflow.tracking import MlflowClient

from tests.cluster.launch_recipe import STEPS, launch, launch_job, losses, steps_written, write_recipe, write_site
from tests.processes import wait_until_ended
from tests.servers.seaweed import BUCKET, SeaweedServer
from tests.servers.slurm import SlurmCluster

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.alone, pytest.mark.timeout(600)]

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
HOSTILE = {"SBATCH_EXPORT": "ALL", "SBATCH_PARTITION": "urgent", "SRUN_EXPORT_ENV": "ALL"}
SECRETS = {"AWS_SECRET_ACCESS_KEY": "leak-canary-1f0e9c", "MLFLOW_TRACKING_PASSWORD": "leak-canary-77ab31"}


@dataclass(frozen=True)
class Launched:
    """The three stages as they ended."""

    root: Path
    recipe: Path
    site: Path
    slurm: SlurmCluster
    jobs: dict[str, str]
    states: dict[str, str]

    @property
    def run(self) -> Path:
        return self.root / "out" / "run"


@pytest.fixture(scope="module")
def launched(
    slurm_cluster: SlurmCluster, s3_server: SeaweedServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Launched]:
    """Prep on a Ray cluster of two nodes, training on both, evaluation after it; secrets are in our environment."""
    root = tmp_path_factory.mktemp("launched")
    recipe = write_recipe(root, f"s3://{BUCKET}/{root.name}")
    site = write_site(root, s3_server.variables)
    own = {**slurm_cluster.variables, **SECRETS, **HOSTILE, "PYTHONPATH": str(Path(__file__).parents[2])}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in own.items():
            patch.setenv(name, value)
        slurm_cluster.wait_idle()
        told = launch("all", str(recipe), "--site", str(site))
        jobs = dict(re.findall(r"submitted mcjepa-(\w+)-small: job (\d+)", told))
        assert list(jobs) == ["prep", "train", "eval"]
        assert told.splitlines()[-1] == f"the report will be {root}/out/report.html"
        states = {}
        for stage, job in jobs.items():
            states[stage] = slurm_cluster.wait_state(job, *ENDED, within_s=200)
            outputs = [p.read_text(errors="replace")[-3000:] for p in root.rglob("*_log.out")]
            assert states[stage] == "COMPLETED", "\n".join(outputs)
        yield Launched(root, recipe, site, slurm_cluster, jobs, states)


def said(launched: Launched) -> str:
    return "\n".join(p.read_text(errors="replace")[-3000:] for p in launched.root.rglob("*_log.out"))


def test_one_recipe_and_site_prepare_train_and_evaluate(launched: Launched) -> None:
    assert set(launched.states.values()) == {"COMPLETED"}, said(launched)
    assert sorted(losses(launched.run)) == list(range(1, STEPS + 1))
    assert (launched.root / "out" / "report.html").is_file()
    ranks = sorted(p.name for p in (launched.run / "logs" / "jobs").glob("*_log.out"))
    assert ranks == [f"{launched.jobs['train']}_{rank}_log.out" for rank in (0, 1)]


def test_their_mlflow_runs_are_linked_to_each_other_and_to_their_jobs(launched: Launched) -> None:
    client = MlflowClient(f"sqlite:///{launched.root}/out/mlflow.db")
    experiments = [e.experiment_id for e in client.search_experiments()]
    tags = {
        run.data.tags["mcjepa.stage"]: {**run.data.tags, "id": run.info.run_id}
        for run in client.search_runs(experiments)
    }
    assert {stage: tags[stage]["mcjepa.slurm_job"] for stage in tags} == launched.jobs
    assert tags["train"]["mcjepa.prep_run"] == tags["prep"]["id"]
    assert tags["eval"]["mcjepa.train_run"] == tags["train"]["id"]


def test_no_secret_is_in_any_file(launched: Launched, s3_server: SeaweedServer) -> None:
    secrets = [*SECRETS.values(), s3_server.secret_key]
    own = [p for p in launched.root.rglob("*") if p.is_file() and p.name != "profiles"]
    files = {**{p: p.read_bytes() for p in own}, **launched.slurm.files()}
    assert len(files) > 50 and any(p.name == "mlflow.db" for p in files)
    found = [str(p) for p, content in files.items() if any(s.encode() in content for s in secrets)]
    assert found == []


def test_a_ray_cluster_is_gone_with_its_job(launched: Launched) -> None:
    assert not list(Path("/tmp").glob("mcjepa-ray-*"))
    assert wait_until_ended(launched.slurm.processes(), 10) == []
    assert not list((launched.root / "out" / "jobs" / "prep" / "states").glob("*.ray-?"))


def rank_process(slurm: SlurmCluster, rank: int) -> psutil.Process:
    """The training process of a rank."""
    for process in slurm.processes():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("RANK") == str(rank) and "train" in process.cmdline():
                return process
    raise AssertionError(f"no rank {rank}")


def test_a_disturbed_run_ends_with_the_losses_of_an_undisturbed_one(launched: Launched, tmp_path: Path) -> None:
    slurm, run = launched.slurm, launched.root / "disturbed"
    job = launch_job("train", str(launched.recipe), "--site", str(launched.site), f"train.run={run}")

    def wait_steps() -> None:
        """Until the job trains new steps."""
        before, deadline = steps_written(run), time.monotonic() + 120
        while steps_written(run) < before + 2:
            assert time.monotonic() < deadline and slurm.state(job) not in ENDED, launch("logs", str(run))
            time.sleep(0.1)

    def disturb(what: Callable[[], object]) -> None:
        wait_steps()
        what()
        slurm.wait_state(job, "PENDING", within_s=90)

    disturb(lambda: slurm.run("scancel", "--signal=USR2", job))  # as Slurm does before the time limit
    disturb(lambda: slurm.run("scontrol", "requeue", job))
    disturb(lambda: rank_process(slurm, 1).kill())
    disturb(lambda: slurm.kill_node(2))
    slurm.start_node(2)
    wait_steps()
    slurm.kill_daemon(2)
    slurm.start_node(2)
    assert slurm.wait_state(job, *ENDED, within_s=200) == "COMPLETED", launch("logs", str(run))
    assert losses(run) == losses(launched.run)
    # Slurm may end the job once more: what it had asked of the dead node reaches it when it is back
    starts = json.loads(launch("status", str(run), "--json"))[0]["starts"]
    assert 5 <= starts <= 7, launch("status", str(run))
    assert wait_until_ended(slurm.processes(), 10) == []
    runs = MlflowClient(f"sqlite:///{launched.root}/out/mlflow.db").search_runs(
        ["1"], f"tags.`mcjepa.slurm_job` = '{job}'"
    )
    assert len(runs) == 1 and runs[0].info.status == "FINISHED"
