"""`mcjepa launch` without Slurm: dry runs, sweeps, jobs in the background and in the terminal."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import psutil
import pytest
import yaml
from mlflow.tracking import MlflowClient

from mcjepa.cluster.batch import end as end_batch
from mcjepa.cluster.errors import LaunchError
from mcjepa.cluster.job import RECORD, SITE_RECORD, After, Element, Job, Record, read_record, write_json, write_record
from mcjepa.cluster.restarts import JobState
from mcjepa.cluster.site import Resources, Site, needed
from mcjepa.cluster.status import cancel, read_status
from mcjepa.cluster.submit import submit
from mcjepa.cluster.task import SlurmTask
from mcjepa.data_prep.storage import atomic_write, open_store
from mcjepa.pipeline.cli.main import main
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.launch.jobs import build_job, resubmit
from mcjepa.pipeline.launch.sites import load_site
from mcjepa.pipeline.recipe.recipe import load_recipe
from mcjepa.pipeline.recipe.sweep import sweep_runs
from tests.cluster.launch_recipe import launch, losses
from tests.cluster.stage_program import PROGRESS, write_program
from tests.pipeline.small_recipe import write_small_recipe
from tests.processes import wait_until_ended


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_small_recipe(tmp_path)


def test_a_dry_run_prints_the_script_and_writes_nothing(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(recipe.parent.rglob("*"))
    assert main(["launch", "train", str(recipe), "--site", "slurm", "--nodes", "2", "--dry-run"]) == 0
    script = capsys.readouterr().out
    assert (
        script.startswith("#!/bin/bash")
        and "#SBATCH --nodes=2" in script
        and sorted(recipe.parent.rglob("*")) == before
    )
    assert main(["launch", "train", str(recipe), "--site", "slurm", "--dry-run", "--json"]) == 0
    command = json.loads(capsys.readouterr().out)["commands"][0]
    assert "train.checkpoint.grace_s=110" in command and f"train.run={recipe.parent}/run" in command


def test_an_evaluation_beside_the_training_follows_it_and_its_checkpoints_count_as_progress(recipe: Path) -> None:
    settings, _ = load_recipe(str(recipe), [])
    (element,) = build_job("eval", settings, load_site("slurm"), follow=True).elements
    assert element.argv[2:4] == ("eval", "all") and "--follow" in element.argv and "--patience-s" in element.argv
    assert element.progress[2:] == ("launch", "progress", f"{recipe.parent}/run")
    (behind,) = build_job("eval", settings, load_site("slurm")).elements
    assert "--follow" not in behind.argv and behind.progress == ()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--site", "nowhere"], "no site 'nowhere'"),
        (["train", "--site", "slurm", "--nodes", "3"], "world size 3 does not divide"),
        (["train", "--site", "local", "--nodes", "2"], "2 nodes asked of a local site, which has one"),
        (["prep", "--site", "slurm", "sweep={train.seed: [1, 2]}"], "launch prep of a recipe with a sweep"),
        (
            ["train", "--site", "slurm", "--with-eval", "any", "sweep={train.seed: [1, 2]}"],
            "--with-eval with a sweep of 2",
        ),
        (["train", "--site", "slurm", "sweep={train.seed: []}"], "no values of train.seed"),
        (["status"], "nothing was launched for"),
    ],
)
def test_what_cannot_be_launched_is_one_clear_error(
    recipe: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["launch", words[0], str(recipe), *words[1:]]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_without_slurm_here_the_way_out_is_named(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert main(["launch", "train", str(recipe), "--site", "slurm"]) == 2
    assert "no sbatch and srun on the PATH" in capsys.readouterr().err


def test_every_combination_of_a_sweep_is_a_run_of_its_own() -> None:
    runs = sweep_runs({"train.optimizer.encoder_lr": [1e-4, 3e-4], "train.seed": [1, 2]}, "s3://b/run/")
    assert [run.name for run in runs] == [f"encoder_lr={lr},seed={s}" for lr in (1e-4, 3e-4) for s in (1, 2)]
    assert runs[3].overrides == (
        "train.optimizer.encoder_lr=0.0003", "train.seed=2", "sweep=null", "train.run=s3://b/run/sweep-003",
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"1000000 runs, expected lists of values and at most 1000"):
        sweep_runs({"a": list(range(1000)), "b": list(range(1000))}, "r")


def test_a_recipe_with_a_sweep_is_not_trained_as_one_run(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(recipe), "sweep={train.seed: [1]}"]) == 2
    assert "has a sweep over train.seed, expected one run" in capsys.readouterr().err


class _Mlflow(BaseHTTPRequestHandler):
    """Answers one user alone."""

    seen: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.seen.append(self.headers.get("Authorization", ""))
        known = self.seen[-1] == f"Basic {base64.b64encode(b'ada:p@ss-canary').decode()}"
        self.send_response(200 if known else 401)
        self.end_headers()
        self.wfile.write(b'{"experiments": []}')

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def mlflow_with_password(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URI of a server, with user and password in it."""
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")
    with ThreadingHTTPServer(("127.0.0.1", 0), _Mlflow) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://ada:p%40ss-canary@127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_password_in_the_uri_of_mlflow_works_and_is_neither_printed_nor_written(
    recipe: Path, mlflow_with_password: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = f"tracking.uri={mlflow_with_password}"
    main(["plan", str(recipe), place, "--json"])
    said = capsys.readouterr()
    tracking = [f for f in json.loads(said.out)["findings"] if f["topic"] == "tracking"]
    assert tracking[0]["severity"] == "ok" and "canary" not in said.out + said.err
    settings, plain = load_recipe(str(recipe), [place])
    assert "canary" not in json.dumps(plain) and settings.tracking.uri.startswith("http://127.0.0.1")
    assert MlflowClient(tracking_uri=settings.tracking.uri).search_experiments() == []
    main(["launch", "train", str(recipe), place, "--site", "slurm", "--dry-run"])
    said = capsys.readouterr()
    assert "MLflow's password is yours alone" in said.err and "canary" not in said.out + said.err
    assert not [p for p in recipe.parent.rglob("*") if p.is_file() and b"canary" in p.read_bytes()]
    assert main(["plan", str(recipe), "tracking.uri=mysql://ada:canary@host/db"]) == 2
    said = capsys.readouterr()
    assert "names a user for mysql://host" in said.err and "canary" not in said.err


def test_files_of_a_job_have_the_rights_that_the_umask_leaves(tmp_path: Path) -> None:
    for umask, rights in ((0o022, 0o644), (0o077, 0o600), (0o002, 0o664)):
        before = os.umask(umask)
        try:
            write_json(tmp_path / "job.json", {})
            atomic_write(tmp_path / "recipe.yaml", b"")
        finally:
            os.umask(before)
        assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {rights}


def background_job(folder: Path, after: After | None = None) -> Job:
    """Two ranks of the small program in the background of this machine."""
    write_program(folder)
    (folder / "jobs").mkdir()
    (folder / "jobs" / "recipe.yaml").write_text("base: quickstart\n")
    site = Site(kind="local", default=Resources(tasks_per_node=2), grace_s=20)
    element = Element("one", (str(folder / "program.py"), str(folder), "wait"), ("-c", PROGRESS, str(folder)))
    return Job("train", "test", "a test", folder / "jobs", (element,), site, needed(site, "train"), after)


def ranks_of(folder: Path, start: int) -> list[psutil.Process]:
    """The programs of the n-th start, when they run."""
    places, deadline = [folder / f"started-{rank}-{start}" for rank in (0, 1)], time.monotonic() + 60
    while not all(place.exists() and place.read_text() for place in places):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return [psutil.Process(int(place.read_text().split()[0])) for place in places]


def wait_ended(folder: Path) -> str:
    deadline = time.monotonic() + 60
    while (status := read_status(folder)[0]).active:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return status.state


@pytest.mark.slow
def test_a_job_in_the_background_is_cancelled_and_resumed_by_the_command_line(tmp_path: Path) -> None:
    job = background_job(tmp_path)
    submit(job)
    running = ranks_of(tmp_path, 0)
    launch("resume", str(job.folder), code=2)  # it is active
    assert "RUNNING" in launch("status", str(job.folder))
    assert "cancelled" in launch("cancel", str(job.folder))
    assert wait_until_ended(running, 5) == [] and (tmp_path / "saved").exists()
    assert read_status(job.folder)[0].state == "CANCELLED"
    launch("resume", str(job.folder))
    assert wait_ended(job.folder) == "COMPLETED"
    assert "_0_log.out <==" in launch("logs", str(job.folder))


def test_a_resume_that_is_refused_forgets_nothing_that_follows(tmp_path: Path) -> None:
    folders = []
    for name in ("first", "then"):
        job = background_job(tmp_path / name)
        (element,) = job.elements
        finish = dataclasses.replace(element, argv=(*element.argv[:2], "finish"))
        job = dataclasses.replace(job, elements=(finish,), site=dataclasses.replace(job.site, kind="debug"))
        assert submit(job).last["code"] == 0
        folders.append(job.folder)
    record = read_record(folders[0])
    record.followers, record.nodes = [str(folders[1])], 2
    write_record(folders[0], record)
    with pytest.raises(LaunchError, match="2 nodes asked of a debug site"):
        resubmit(folders[0])
    record = read_record(folders[0])
    record.nodes = 1
    write_record(folders[0], record)
    again, code = resubmit(folders[0])
    assert [job.folder for job, _ in again] == folders and code == 0


def test_a_launch_that_was_refused_at_first_has_nothing_to_cancel(tmp_path: Path) -> None:
    job = background_job(tmp_path)
    with pytest.raises(LaunchError, match="3 nodes asked"):
        submit(dataclasses.replace(job, need=dataclasses.replace(job.need, nodes=3)))
    assert cancel(job.folder) == []


def test_a_launch_that_is_refused_leaves_the_one_before_as_it_was(tmp_path: Path) -> None:
    job = background_job(tmp_path)
    (element,) = job.elements
    finish = dataclasses.replace(element, argv=(*element.argv[:2], "finish"))
    debug = dataclasses.replace(job.site, kind="debug")
    submit(dataclasses.replace(job, elements=(finish,), site=debug))
    (before,), files = read_status(job.folder), [(job.folder / name).read_bytes() for name in (RECORD, SITE_RECORD)]
    more = dataclasses.replace(job, elements=(element, element), need=dataclasses.replace(job.need, nodes=3))
    with pytest.raises(LaunchError, match="3 nodes asked"):
        submit(more)
    assert read_status(job.folder) == [before] and before.element == "one"
    assert [(job.folder / name).read_bytes() for name in (RECORD, SITE_RECORD)] == files
    record = read_record(job.folder)  # of a launch that was cut off before its jobs had ids
    record.elements = [element, element]
    write_record(job.folder, record)
    assert read_status(job.folder) == [before]


def test_a_sweep_with_other_values_does_not_continue_the_runs_of_the_first(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def launched(rates: str) -> tuple[int, str]:
        words = ["launch", "train", str(recipe), "--site", "debug", "--dry-run"]
        code = main([*words, f"sweep={{train.seed: [1, 2], train.optimizer.encoder_lr: {rates}}}"])
        return code, capsys.readouterr().err

    _, plain = load_recipe(str(recipe), ["train.seed=1", "train.optimizer.encoder_lr=1e-4"])
    run = recipe.parent / "run" / "sweep-000"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text(yaml.safe_dump(plain))
    assert launched("[1e-4]")[0] == 0 and launched("[1.0e-4, 2e-4]")[0] == 0
    code, told = launched("[2e-4, 1e-4]")
    assert code == 2 and "sweep-000 holds the run of train.optimizer.encoder_lr=0.0001, expected that of" in told
    assert "put new values behind the old ones of train.seed" in told


def test_a_scratch_folder_is_made_and_one_that_cannot_be_is_named_with_the_node(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    job = background_job(tmp_path)
    (element,) = job.elements
    written = "import os, tempfile; assert tempfile.gettempdir() == os.environ['TMPDIR']"
    for scratch, code in ((tmp_path / "new" / "tmp", 0), (tmp_path / "program.py" / "tmp", 2)):
        tells = dataclasses.replace(element, argv=("-c", written), environment={"TMPDIR": str(scratch)})
        site = dataclasses.replace(job.site, kind="debug", scratch=str(scratch))
        assert submit(dataclasses.replace(job, elements=(tells,), site=site)).last["code"] == code
        task = SlurmTask("eval", tells, job.folder, 5.0, scratch=str(scratch))
        run = "import base64, pickle, sys; pickle.loads(base64.b64decode(sys.argv[1]))()"
        words = [sys.executable, "-c", run, base64.b64encode(pickle.dumps(task)).decode()]
        assert subprocess.run(words, env={**os.environ, "SLURM_JOB_ID": "7"}, check=False).returncode == code
    name = os.uname().nodename
    assert capfd.readouterr().err.count(f"program.py/tmp cannot be written on {name} (Not a directory)") == 1
    (outcome,) = JobState(job.folder, "7").outcomes()  # the job's script says it
    assert (outcome.code, f"on {name}" in outcome.reason) == (2, True)


@pytest.mark.slow
def test_a_dead_rank_in_the_background_starts_all_again_and_what_follows_waits(tmp_path: Path) -> None:
    first = background_job(tmp_path / "first")
    ids = submit(first).ids
    follower = background_job(tmp_path / "then", After("ok", first.folder, ids[0]))
    submit(follower)
    ranks_of(tmp_path / "first", 0)[1].kill()
    assert wait_ended(first.folder) == "COMPLETED"
    ends = [start["end"] for start in JobState(first.folder, ids[0]).starts]
    assert [(end["code"], end["verdict"]) for end in ends] == [(-9, "requeue"), (0, "done")]
    ranks_of(tmp_path / "then", 0)
    assert cancel(follower.folder)


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_a_sweeps_runs_are_children_of_one_mlflow_run(recipe: Path, tmp_path: Path) -> None:
    said = launch("train", str(recipe), "--site", "debug", "train.steps=2", "sweep={train.seed: [1, 2]}")
    assert "trained 2 steps" in said
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    parent = [r.info.run_id for r in runs if r.data.tags["mcjepa.stage"] == "sweep"]
    children = [r for r in runs if r.data.tags["mcjepa.stage"] == "train"]
    assert len(parent) == 1 and {r.data.tags["mlflow.parentRunId"] for r in children} == set(parent)
    assert sorted(r.data.params["train.seed"] for r in children) == ["1", "2"]
    assert losses(tmp_path / "run" / "sweep-000") != losses(tmp_path / "run" / "sweep-001")


@pytest.mark.slow
def test_the_logs_of_a_run_in_a_bucket_reach_it(recipe: Path, tmp_path: Path, s3: str) -> None:
    settings, _ = load_recipe(str(recipe), [f"train.run={s3}/run"])
    job = build_job("train", settings, load_site("slurm"))
    record = Record(job.stage, job.name, job.comment, 1, list(job.elements), [])
    write_record(job.folder, record)
    JobState(job.folder, "7").begin(None, "node1", 0.0, 1)
    (job.folder / "7_0_log.out").write_text("of rank 0")
    (job.folder / "8_0_log.out").write_text("of another job")
    assert end_batch(job.folder, {"SLURM_JOB_ID": "7"}, 0) == "done"
    assert list(open_store(f"{s3}/run").list("logs/jobs/")) == ["logs/jobs/7_0_log.out"]
    assert open_store(f"{s3}/run").read("logs/jobs/7_0_log.out") == b"of rank 0"
    assert read_record(job.folder).elements == list(job.elements)
