"""The whole chain through the command line, shortened, and what it leaves read back with the engines' own readers."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.docs.pages import AFTER_QUICKSTART, blocks, commands_of_tables
from tests.processes import wait_until_ended

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
REPOSITORY = Path(__file__).resolve().parents[2]
SHORT = (
    "prep.moving_photos.sequences=8",
    "prep.moving_photos.heldout_sequences=4",
    "prep.moving_photos.tiles=24",
    "prep.datasets.clips.max_samples_per_input=4",
    "prep.datasets.clips.inputs_per_shard=4",
    "prep.datasets.images.inputs_per_shard=12",
    "train.steps=6",
    "train.log_every=2",
    "train.checkpoint.every_steps=3",
    "eval.flow.max_pairs=6",
    "eval.probe.steps=30",
)
EXPECTED_NUMBERS = (
    "epe", "epe_zero", "epe_dis", "probe_miou", "probe_miou_random", "jf", "jf_copy_first", "seconds",
)  # fmt: skip


def _command(*words: str) -> list[str]:
    return [sys.executable, "-m", "mcjepa", *words]


def _environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(_command(*words), cwd=REPOSITORY, env=_environment(), capture_output=True, text=True)


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, photos_of_packages: list[Path], videos_of_packages: list[Path]
) -> Path:
    """A finished short quickstart."""
    out = tmp_path_factory.mktemp("quickstart") / "out"
    done = _run("quickstart", "--out", str(out), *SHORT)
    assert done.returncode == 0, done.stderr
    following = [shlex.split(line) for line in done.stderr.splitlines() if line.startswith("  mcjepa")]
    assert [words[1] for words in following] == ["ui", "infer", "quickstart"]
    return out


@pytest.fixture(scope="module")
def summary(finished: Path) -> dict[str, Any]:
    """Its numbers."""
    document: dict[str, Any] = json.loads((finished / "summary.json").read_text())
    return document


def test_the_summary_has_every_number(summary: dict[str, Any]) -> None:
    assert all(isinstance(summary[name], float) for name in EXPECTED_NUMBERS)
    assert all(summary["run_ids"][stage] for stage in ("prep", "train", "eval"))
    assert len(summary["dataset_id"]) == 64 and set(summary["dataset_ids"]) == {"clips", "images"}
    assert summary["epe_dis"] < summary["epe_zero"]
    assert summary["quarantined"] == []


def test_plain_webdataset_reads_the_shards(finished: Path, summary: dict[str, Any]) -> None:
    import webdataset

    shards = sorted(str(p) for p in (finished / "datasets" / "clips" / "shards").glob("*.tar"))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode("rgb8"))
    assert len(samples) == summary["datasets"]["clips"]["samples"]
    first = samples[0]
    assert first["00.jpg"].shape == first["01.jpg"].shape and first["00.jpg"].shape[2] == 3
    assert len(first["json"]["pts_s"]) == 2


def test_plain_safetensors_reads_the_checkpoint_and_it_equals_the_weights(
    finished: Path, summary: dict[str, Any]
) -> None:
    pieces: dict[str, dict[int, torch.Tensor]] = {}
    for path in (finished / "run" / "checkpoints" / "step-000000006").glob("state-*.safetensors"):
        for title, values in load_file(path).items():
            kind, _, place = title.partition("/")
            if kind == "weight":
                name, _, offset = place.rpartition("@")
                pieces.setdefault(name, {})[int(offset)] = values
    weights = load_file(Path(summary["weights"]) / "model.safetensors")
    assert len(pieces) > 50
    for name, parts in pieces.items():
        assert torch.equal(torch.cat([parts[offset] for offset in sorted(parts)]), weights[name].flatten())


def test_mlflow_links_the_three_runs(finished: Path, summary: dict[str, Any]) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{finished}/mlflow.db")
    runs = {stage: client.get_run(run_id) for stage, run_id in summary["run_ids"].items()}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert {run.data.tags["mcjepa.recipe"] for run in runs.values()} == {"quickstart"}
    assert [run.info.run_name for run in runs.values()] == [
        "prep quickstart out", "train quickstart out", "eval quickstart out step-000000006",
    ]  # fmt: skip
    sets = {stage: {item.dataset.name for item in run.inputs.dataset_inputs} for stage, run in runs.items()}
    assert sets["prep"] == sets["train"] == {"clips", "images"}
    assert all(name.startswith("moving-photos ") for name in sets["eval"]) and sets["eval"]
    assert len({run.data.tags["mcjepa.dataset_ids"] for run in runs.values()}) == 1
    assert runs["train"].data.tags["mcjepa.prep_run"] == summary["run_ids"]["prep"]
    assert runs["eval"].data.tags["mcjepa.train_run"] == summary["run_ids"]["train"]
    assert runs["eval"].data.tags["mcjepa.weights_digest"] == summary["weights_digest"]
    curve = client.get_metric_history(summary["run_ids"]["train"], "loss/reconstruction")
    assert [point.step for point in curve] == [2, 4, 6]
    assert "report.html" in {item.path for item in client.list_artifacts(summary["run_ids"]["eval"])}


def test_the_report_loads_nothing_from_elsewhere(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert "data:image/" in page
    for mark in ('src="http', 'href="http', "@import", "<link", "url(http"):
        assert mark not in page


def test_a_second_preparation_gives_the_same_datasets(tmp_path: Path, summary: dict[str, Any]) -> None:
    done = _run("prep", "run", "quickstart", f"out={tmp_path / 'again'}", "--json", *SHORT)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert {name: d["dataset_id"] for name, d in record["datasets"].items()} == summary["dataset_ids"]


def test_the_audit_passes_and_finds_a_flipped_byte(finished: Path, tmp_path: Path) -> None:
    assert _run("prep", "audit", "quickstart", f"out={finished}").returncode == 0
    shutil.copytree(finished / "datasets", tmp_path / "datasets")
    shard = next((tmp_path / "datasets" / "images" / "shards").glob("*.tar"))
    damaged = bytearray(shard.read_bytes())
    damaged[3000] ^= 1
    shard.write_bytes(damaged)
    done = _run("prep", "audit", "quickstart", f"out={tmp_path}")
    assert done.returncode == 3 and shard.stem in done.stdout


def test_an_interrupted_run_leaves_no_process_and_a_rerun_names_bad_inputs(
    tmp_path: Path, photos_of_packages: list[Path], videos_of_packages: list[Path]
) -> None:
    photos, videos, out = tmp_path / "photos", tmp_path / "videos", tmp_path / "out"
    photos.mkdir()
    videos.mkdir()
    for photo in photos_of_packages:
        shutil.copy(photo, photos)
    shutil.copy(min(videos_of_packages, key=lambda path: path.stat().st_size), videos)
    (photos / "torn.png").write_bytes(photos_of_packages[0].read_bytes()[:900])
    (videos / "torn.mp4").write_bytes(b"\x00\x00\x00\x18ftypmp42 this is no video")
    words = ["quickstart", "--out", str(out), "--videos", str(videos), "--images", str(photos), *SHORT]
    child = subprocess.Popen(_command(*words), cwd=REPOSITORY, env=_environment(), stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    for line in child.stderr:
        if "plan" in line:
            break
    time.sleep(4.0)  # into the start of Ray
    family = psutil.Process(child.pid).children(recursive=True)
    asked = time.monotonic()
    child.send_signal(signal.SIGINT)
    assert child.wait(timeout=20) == 130
    assert time.monotonic() - asked < 10
    assert wait_until_ended(family, within_s=2) == []

    done = _run(*words)
    assert done.returncode == 4, done.stderr
    numbers = json.loads((out / "summary.json").read_text())
    named = " ".join(record["uri"] for record in numbers["quarantined"])
    assert "torn.mp4" in named and "torn.png" in named
    assert "torn.mp4" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "code", "mark"),
    [
        (("quickstart", "--videos", "nowhere"), 2, "no such folder"),
        (("train", "quickstart", "train.stepps=3"), 2, "did you mean 'train.steps'"),
        (("train", "no-such-recipe"), 2, "shipped recipe"),
        (("explain", "nowhere"), 2, "no folder nowhere"),
        (("elaborate", "outputs/quickstart/run"), 2, "no command 'elaborate'"),
        (("launch", "train", "quickstart", "--site", "nowhere"), 2, "no site 'nowhere'"),
        (("eval", "flow", "nowhere", "--data", "x", "--set", "chairs"), 2, "no weights folder"),
    ],
)
def test_a_mistake_is_one_line_and_no_traceback(words: tuple[str, ...], code: int, mark: str) -> None:
    done = _run(*words)
    assert done.returncode == code
    assert mark in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr


def test_training_without_datasets_says_what_to_do(tmp_path: Path) -> None:
    done = _run("train", "quickstart", f"out={tmp_path}")
    assert done.returncode == 3 and "Traceback" not in done.stderr and "manifest.json" in done.stderr


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = _run("quickstart", "--out", str(tmp_path / "out"), "--videos", str(tmp_path / "empty"))
    assert done.returncode == 3 and "empty" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.timeout(900)
def test_the_readme_can_be_pasted_after_a_quickstart(finished: Path, tmp_path: Path) -> None:
    """Its table's commands, cut as short as the quickstart was, and its marked Python, in the order of the page."""
    page = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    commands = commands_of_tables(page)
    programs = [block.text for block in blocks("README.md", page) if block.mark == AFTER_QUICKSTART]
    assert len(commands) >= 8 and len(programs) == 1
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "quickstart").symlink_to(finished, target_is_directory=True)
    for command in commands:
        words = shlex.split(command.replace("step-000000700", "step-000000006"))
        if "quickstart" in words:  # a recipe: the last of several values of a key holds
            words += [*SHORT, "train.steps=2" if "train.steps=20" in words else "train.steps=6", f"out={finished}"]
        done = subprocess.run(
            _command(*words[1:]), cwd=tmp_path, env=_environment(), capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    for program in programs:
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stderr
    made = ("outputs/second/weights", "outputs/flow", "outputs/hub/model.safetensors", "outputs/eval/scores.json")
    assert [name for name in made if not (tmp_path / name).exists()] == []
