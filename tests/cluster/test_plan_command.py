"""`mcjepa plan` as a user meets it, and the preflight of `mcjepa launch train`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mcjepa.pipeline.cli.main import main
from mcjepa.pipeline.launch.facts import probe_destination, tracking_finding, write_rate
from tests.cluster.launch_recipe import write_site
from tests.pipeline.small_recipe import write_small_recipe
from tests.servers.slurm import SlurmCluster


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_recipe(tmp_path_factory.mktemp("plan"))


def plan(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """Exit code and findings by topic."""
    code = main(["plan", *words, "--json"])
    findings: dict[str, list[dict[str, Any]]] = {}
    for finding in json.loads(capsys.readouterr().out)["findings"]:
        findings.setdefault(finding["topic"], []).append(finding)
    return code, findings


def errors(findings: dict[str, list[dict[str, Any]]]) -> set[str]:
    return {topic for topic, each in findings.items() for finding in each if finding["severity"] == "error"}


def test_a_run_that_fits_is_passed_with_its_hours_and_bytes(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(recipe.parent.rglob("*"))
    code, findings = plan(capsys, str(recipe), "--ranks", "2", "--step-s", "0.5", "train.steps=7200")
    assert code == 0 and errors(findings) == set()
    assert "7200 steps of 0.5 s: 1.0 h, 2.0 rank-hours" in findings["time"][0]["found"]
    assert "a killed rank or node costs at most 2 steps" in findings["interruption"][0]["found"]
    assert "26 samples in 3 shards" in findings["epoch"][0]["found"]
    assert findings["reading"][0]["severity"] == findings["memory"][0]["severity"] == "ok"
    assert "of a core to load; no loading process a rank" in findings["loading"][0]["found"]
    assert sorted(recipe.parent.rglob("*")) == before  # nothing stays written


def test_the_table_ends_with_the_verdict(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(recipe), "--ranks", "3"]) == 3
    out = capsys.readouterr().out
    assert "ERROR   world size" in out and "a number of ranks that fits: 1, 2, 4" in out
    assert out.strip().splitlines()[-1].endswith("refused")


def test_every_thing_that_cannot_work_is_refused_at_once(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    code, findings = plan(
        capsys, str(recipe), "--memory-gib", "0.1", f"train.run={tmp_path}/file/run",
        "train.stream.views=[{location: /nowhere}]", "train.checkpoint.grace_s=0.0",
    )  # fmt: skip
    assert code == 3 and errors(findings) >= {"memory", "run", "dataset"}
    assert "/nowhere/manifest.json is not there" in findings["dataset"][1]["found"]
    assert "is a file" in findings["run"][0]["found"]
    assert main(["plan", str(recipe), "train.stream.pair_batch=6", "train.stream.view_batch=6", "--ranks", "4"]) == 3


def test_checkpoints_kept_for_good_need_room_but_not_those_that_are_there(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def needed(*words: str) -> str:
        code, findings = plan(capsys, str(recipe), f"train.run={tmp_path}/run", "train.checkpoint.keep_last=2", *words)
        (found,) = findings["run"]
        assert (code == 0) == (found["severity"] == "ok")
        return str(found["found"]).rpartition(", ")[2]

    most, for_good = needed("train.steps=8"), "train.checkpoint.keep_every_steps=2"
    assert needed("train.steps=8", for_good) != most
    for step in (2, 4, 6, 8):
        (tmp_path / "run/checkpoints" / f"step-{step:09d}").mkdir(parents=True)
    assert needed("train.steps=8", for_good) == most
    assert plan(capsys, str(recipe), for_good, "train.steps=1000000000000")[0] == 3


def test_all_runs_of_a_sweep_need_room(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (f"train.run={tmp_path}/run", "train.steps=8", "train.checkpoint.best_metric=''")
    found = [
        plan(capsys, str(recipe), *words, *more)[1]["run"]
        for more in (("train.checkpoint.keep_last=3",), ("train.checkpoint.keep_last=1", "sweep={train.seed: [1, 2]}"))
    ]
    assert found[0][0]["found"].split(", ")[-1] == found[1][0]["found"].split(", ")[-1]


def test_wrong_words_are_usage_errors(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(recipe), "train.stepz=3"]) == 2
    assert "did you mean 'train.steps'" in capsys.readouterr().err
    assert main(["plan", str(recipe), "--site", "nowhere"]) == 2
    assert main(["plan", str(recipe), "--step-s", "-1"]) == 2
    assert main(["plan", str(recipe), "--nodes", "2", "--measure"]) == 2
    assert "--step-s" in capsys.readouterr().err


@pytest.mark.slow
def test_measuring_takes_real_steps_and_leaves_nothing(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    code, findings = plan(capsys, str(recipe), "--measure", "3")
    assert code == 0 and findings["time"][0]["severity"] == "ok" and "4 steps of" in findings["time"][0]["found"]
    assert not list(tmp_path.glob("mcjepa-measure-*")) and not (recipe.parent / "run").exists()


def test_a_launch_is_refused_with_all_errors_but_a_dry_run_shows_them(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["launch", "train", str(recipe), "--site", "local", f"train.run={tmp_path}/run"]
    absent = "train.stream.pairs=[{location: /nowhere}]"
    assert main([*words, absent]) == 3
    assert "not launched" in (said := capsys.readouterr().err) and "/nowhere" in said
    assert not (tmp_path / "run").exists()
    assert main([*words, absent, "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert "error: dataset" in shown.err and "train" in shown.out


def test_places_are_tried_and_left_as_they_were(tmp_path: Path) -> None:
    place = probe_destination("run", str(tmp_path / "not" / "there"), 5)
    assert not place.problem and place.free_bytes and place.needed_bytes == 5
    assert not (tmp_path / "not").exists() and list(tmp_path.iterdir()) == []
    rate = write_rate(str(tmp_path))
    assert rate and rate > 0 and list(tmp_path.iterdir()) == []


def test_a_bucket_is_tried_by_an_object_that_is_removed_again(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mcjepa.data_prep.storage import open_store

    assert probe_destination("run", s3).problem == ""
    assert list(open_store(s3).list("")) == []
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    assert "cannot be written" in probe_destination("run", s3.replace("prefix", "other")).problem


def test_mlflow_that_is_away_is_a_warning_because_training_goes_on() -> None:
    finding = tracking_finding("http://127.0.0.1:9")
    assert finding.severity == "warning" and "RUN/spool" in finding.expected


@pytest.mark.slow
def test_a_partition_that_slurm_does_not_have_is_refused(
    recipe: Path, tmp_path: Path, slurm: SlurmCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    site = write_site(tmp_path, default={"partition": "gup", "nodes": 2, "memory_gb": 8})
    code, findings = plan(capsys, str(recipe), "--site", str(site))
    assert code == 3 and errors(findings) == {"partition"}
    (found,) = findings["partition"]
    assert "main" in found["expected"]
    code, findings = plan(capsys, str(recipe), "--site", str(write_site(tmp_path, default={"partition": "main"})))
    assert code == 0 and findings["slurm"][0]["found"].startswith("version 2")
    assert findings["memory"][0]["severity"] == "warning"  # this site does not say what its nodes have


def test_a_sites_endpoint_is_used_for_the_looks_and_not_kept(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setattr("mcjepa.data_prep.storage.s3_client.PATIENCE_S", 0.2)
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
    site = write_site(tmp_path, {**keys, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, default={"nodes": 1})
    code, findings = plan(capsys, str(recipe), "--site", str(site), "train.run=s3://bucket/run")
    assert code == 3 and "http://127.0.0.1:9" in findings["run"][0]["found"]
    assert "AWS_ENDPOINT_URL" not in os.environ and "AWS_PROFILE" not in os.environ


def test_with_a_wrong_world_size_memory_and_time_are_still_shown(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, findings = plan(capsys, str(recipe), "--ranks", "3", "--step-s", "2")
    assert code == 3 and errors(findings) == {"world size"}
    assert "2 rank(s)" in findings["memory"][0]["found"] and "steps of 2 s" in findings["time"][0]["found"]


def test_a_sweep_is_judged_run_by_run(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = "sweep={train.seed: [1, 2], train.stream.view_batch: [4, 6], train.optimizer.encoder_lr: [0.1, 0.2]}"
    code, findings = plan(capsys, str(recipe), "--ranks", "4", sweep)
    assert code == 3 and errors(findings) == {"world size"}
    (wrong,) = [f["found"] for f in findings["world size"] if f["severity"] == "error"]
    assert wrong.startswith("run seed=1,view_batch=6,encoder_lr=0.1: ")
