"""`mcjepa eval all` on weights that a training leaves behind: once each, whatever is restarted; and side by side."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path

import pytest
import yaml

from mcjepa.data_prep.storage import open_store
from mcjepa.evals.models import read_weights
from mcjepa.pipeline.cli.main import main
from mcjepa.pipeline.tracking.mlflow import open_client


@pytest.fixture(scope="module")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all tests, each has its own experiment: making one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def recipe(moving_photos: Path, tracking_uri: str, tmp_path: Path) -> Path:
    """A recipe that trains in RUN for 20 steps and scores two pairs."""
    content = {
        "out": str(tmp_path / "out"),
        "train": {
            "run": str(tmp_path / "run"),
            "steps": 20,
            "stream": {"pairs": [{"location": str(tmp_path / "none")}]},
        },
        "eval": {
            "flow": {
                "sets": {"moving-photos": str(moving_photos)},
                "max_pairs": 2,
                "pictures": 1,
                "baselines": ["zero"],
            },
            "device": "cpu",
        },
        "tracking": {"uri": tracking_uri, "experiment": tmp_path.name, "artifacts": str(tmp_path / "artifacts")},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def _write_weights(weights_folder: Path, run: Path, step: int) -> Path:
    folder = run / "weights" / f"step-{step:09d}"
    partial = run / "partial"
    shutil.copytree(weights_folder, partial)
    record = json.loads((partial / "config.json").read_text())
    record["lineage"]["step"] = step
    (partial / "config.json").write_text(json.dumps(record))
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial.rename(folder)
    return folder


def _finish(run: Path, steps: int) -> None:
    (run / "train_report.json").write_text(json.dumps({"finished": True, "steps": steps}))


def _eval_runs(recipe: Path) -> list[str]:
    tracking = yaml.safe_load(recipe.read_text())["tracking"]
    client = open_client(tracking["uri"])
    experiment = client.get_experiment_by_name(tracking["experiment"])
    found = client.search_runs([experiment.experiment_id], filter_string="tags.`mcjepa.stage` = 'eval'")
    return [run.info.run_id for run in found]


def _points(recipe: Path) -> dict[str, int]:
    """How often the evaluation's run has been told the flow's error."""
    client = open_client(yaml.safe_load(recipe.read_text())["tracking"]["uri"])
    name = "flow/moving-photos/epe"
    return {name: len(client.get_metric_history(_eval_runs(recipe)[0], name))}


def test_weights_are_scored_once_and_recorded_once_however_often_it_is_restarted(
    recipe: Path, weights_folder: Path, tmp_path: Path
) -> None:
    _write_weights(weights_folder, tmp_path / "run", 10)
    assert main(["eval", "all", str(recipe)]) == 0
    out = tmp_path / "out/eval/step-000000010"
    first = (out / "scores.json").stat().st_mtime_ns
    points = _points(recipe)
    assert main(["eval", "all", str(recipe)]) == 0
    assert _points(recipe) == points == {"flow/moving-photos/epe": 1}
    (out / "mlflow.json").unlink()  # as if killed after MLflow had it and before it was noted
    assert main(["eval", "all", str(recipe)]) == 0
    assert (out / "scores.json").stat().st_mtime_ns == first
    assert len(_eval_runs(recipe)) == 1
    assert main(["eval", "all", str(recipe), "--again"]) == 0
    assert (out / "scores.json").stat().st_mtime_ns > first
    assert len(_eval_runs(recipe)) == 1
    assert main(["eval", "all", str(recipe), "eval.flow.max_pairs=1"]) == 0
    assert len(_eval_runs(recipe)) == 2, "another question is another run"


def test_data_that_changed_in_place_is_scored_again_and_data_that_is_gone_leaves_its_scores(
    recipe: Path, weights_folder: Path, moving_photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = shutil.copytree(moving_photos, tmp_path / "data")
    recipe.write_text(recipe.read_text().replace(str(moving_photos), str(data)))
    _write_weights(weights_folder, tmp_path / "run", 10)
    assert main(["eval", "all", str(recipe)]) == 0
    scores = tmp_path / "out/eval/step-000000010/scores.json"
    first = scores.read_bytes()
    flow = next((data / "heldout").rglob("flow_0000.flo"))
    content = bytearray(flow.read_bytes())
    content[12:16] = b"\0\0\x80\x42"  # u of the first pixel: 64 px, the file is as long as before
    flow.write_bytes(content)
    assert main(["eval", "all", str(recipe)]) == 0
    assert "files of its data have changed" in caplog.text and scores.read_bytes() != first
    last = scores.stat().st_mtime_ns
    shutil.rmtree(data)
    assert main(["eval", "all", str(recipe)]) == 0
    assert scores.stat().st_mtime_ns == last and "a set's folder is not there" in caplog.text


def test_following_scores_what_is_there_and_what_comes_until_the_training_has_finished(
    recipe: Path, weights_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    _write_weights(weights_folder, run, 5)
    _finish(run, 10)  # of an earlier, shorter training: 20 steps are asked for

    def train_on() -> None:
        while not (tmp_path / "out/eval/step-000000005/mlflow.json").is_file():
            time.sleep(0.05)
        _write_weights(weights_folder, run, 20)
        _finish(run, 20)

    trainer = threading.Thread(target=train_on)
    trainer.start()
    assert main(["eval", "all", str(recipe), "--follow", "--poll-s", "0.1", "--patience-s", "60"]) == 0
    trainer.join()
    assert sorted(p.name for p in (tmp_path / "out/eval").iterdir() if not p.name.startswith(".")) == [
        "step-000000005",
        "step-000000020",
    ]
    page = (tmp_path / "out/report.html").read_text()
    assert "Side by side" in page and "step-000000005" in page
    assert len(_eval_runs(recipe)) == 2
    assert main(["eval", "all", str(recipe), "--follow"]) == 0
    assert len(_eval_runs(recipe)) == 2


def test_following_gives_up_when_nothing_comes(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "all", str(recipe), "--follow", "--poll-s", "0.05", "--patience-s", "0.2"]) == 3
    assert "has not finished" in capsys.readouterr().err


def test_a_run_without_weights_and_a_broken_folder_are_named(
    recipe: Path, weights_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "all", str(recipe)]) == 2
    assert "no weights below" in capsys.readouterr().err
    folder = _write_weights(weights_folder, tmp_path / "run", 10)
    (folder / "model.safetensors").write_bytes(b"not tensors")
    assert main(["eval", "all", str(recipe)]) == 3
    assert "is damaged" in capsys.readouterr().err


def test_weights_of_a_run_on_s3_are_brought_here_and_forgotten(
    recipe: Path, weights_folder: Path, tmp_path: Path, s3: str
) -> None:
    folder = _write_weights(weights_folder, tmp_path / "local", 10)
    store = open_store(s3)
    for path in folder.iterdir():
        store.write(f"weights/{folder.name}/{path.name}", path.read_bytes())
    store.write("weights/step-000000020/config.json", b"{}")  # its weights are still on their way
    store.write("run.json", json.dumps({"run_id": "5", "world_size": 1}).encode())
    store.write("train_report.json", json.dumps({"finished": True, "steps": 10, "seconds": 61.5}).encode())
    left = tmp_path / "out/eval/.weights/step-000000010"  # by a killed command, of another run
    shutil.copytree(folder, left)
    (left / "model.safetensors").write_bytes(bytes((folder / "model.safetensors").stat().st_size))
    assert main(["eval", "all", str(recipe), f"train.run={s3}"]) == 0
    assert (tmp_path / "out/eval/step-000000010/scores.json").is_file()
    assert not left.exists()
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["weights"] == f"{s3}/weights/step-000000010" and summary["stage_seconds"]["train"] == 61.5
    assert "eval all" in (page := (tmp_path / "out/report.html").read_text()) and "--weights" not in page


def test_the_report_of_another_runs_weights_is_about_those(recipe: Path, weights_folder: Path, tmp_path: Path) -> None:
    _write_weights(weights_folder, tmp_path / "run", 10)
    _finish(tmp_path / "run", 20)
    (tmp_path / "run/run.json").write_text(json.dumps({"run_id": "5", "world_size": 1}))
    (tmp_path / "run/logs").mkdir()
    (tmp_path / "run/logs/metrics.jsonl").write_text(json.dumps({"step": 20, "loss": 1.5}) + "\n")
    assert main(["eval", "all", str(recipe)]) == 0
    assert "Training curves" in (tmp_path / "out/report.html").read_text()
    other = _write_weights(weights_folder, tmp_path / "other", 3)
    assert main(["eval", "all", str(recipe), "--weights", str(other)]) == 0
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["steps"] == 3 and summary["run_ids"]["train"] is None and summary["stage_seconds"]["train"] is None
    assert summary["dataset_ids"] == {"9be": "9be"} and summary["weights"] == str(other)
    assert "Training curves" not in (tmp_path / "out/report.html").read_text()


def test_scores_that_lack_something_are_taken_again_once_the_set_is_complete(
    recipe: Path, weights_folder: Path, moving_photos: Path, tmp_path: Path
) -> None:
    weights, photos = _write_weights(weights_folder, tmp_path / "run", 10), tmp_path / "photos"
    shutil.copytree(moving_photos, photos)
    flow = sorted(photos.rglob("*.flo"))[0]
    whole = flow.read_bytes()
    flow.write_bytes(whole[:100])
    words = ["eval", "all", str(recipe), "--weights", str(weights), f"eval.flow.sets.moving-photos={photos}"]
    assert main(words) == 4
    flow.write_bytes(whole)
    assert main(words) == 0


def test_one_benchmark_without_a_recipe_has_a_page_and_is_recorded_where_asked(
    recipe: Path, moving_photos: Path, weights_folder: Path, tracking_uri: str, tmp_path: Path
) -> None:
    words = [
        str(weights_folder),
        "--data",
        str(moving_photos),
        "--set",
        "moving-photos",
        "--out",
        str(tmp_path / "one"),
    ]
    where = ["--tracking", tracking_uri, "--experiment", tmp_path.name]
    for _ in range(2):
        assert main(["eval", "flow", *words, *where, "max_pairs=2", "pictures=0"]) == 0
    assert "flow/moving-photos" in (tmp_path / "one/report.html").read_text()
    (run_id,) = _eval_runs(recipe)
    run = open_client(tracking_uri).get_run(run_id)
    assert run.data.tags["mcjepa.weights_digest"] == read_weights(weights_folder).digest
    assert run.data.metrics["flow/moving-photos/epe"] > 0


def test_evaluations_are_compared_and_what_differs_in_protocol_is_named(
    recipe: Path, weights_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (10, 20):
        folder = _write_weights(weights_folder, tmp_path / "run", step)
        assert main(["eval", "all", str(recipe), "--weights", str(folder)]) == 0
    page = tmp_path / "compared.html"
    capsys.readouterr()
    assert main(["eval", "compare", str(tmp_path / "out/eval"), "--out", str(page), "--json"]) == 0
    compared = json.loads(capsys.readouterr().out)
    assert compared["evaluations"] == ["step-000000010", "step-000000020"]
    flow = compared["scores"]["flow/moving-photos"]
    assert flow["differences"] == [] and len(set(flow["metrics"]["epe"])) == 1
    assert "<svg" in page.read_text(), "two steps make a curve"

    fewer = [str(recipe), "eval.flow.max_pairs=1", f"out={tmp_path}/fewer"]
    assert main(["eval", "all", *fewer]) == 0
    words = [f"all={tmp_path}/out/eval/step-000000020", f"fewer={tmp_path}/fewer/eval/step-000000020"]
    assert main(["eval", "compare", *words, "--out", str(page)]) == 0
    printed = capsys.readouterr().out
    assert "not comparable: frame pairs: 2 | 1" in printed and "*" not in printed
    assert main(["eval", "compare", words[0], words[0], "--out", str(page)]) == 2
