"""`mcjepa eval flow` as a user types it: sources, sets, exit codes, and one clear line for each mistake."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from mcjepa.data_prep.corpora.flow.files import write_flo
from mcjepa.evals.cards import Card, Score
from mcjepa.pipeline.cli import evaluate
from mcjepa.pipeline.cli.commands import COMMANDS
from mcjepa.pipeline.cli.main import main
from mcjepa.pipeline.recipe.benchmarks import (
    classify_settings,
    finetune_settings,
    flow_settings,
    probe_settings,
    vos_settings,
)
from tests.data_prep import layouts
from tests.evals.flow_layouts import kitti_test, write_all


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_all(tmp_path / "data")


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one command."""
    code = main(["eval", "flow", *map(str, words)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_baselines_alone_are_scored_without_weights(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    sets = "chairs-val,middlebury"
    words = ("--data", data, "--set", sets, "--baselines", "zero,farneback", "--out", out, "subset=true", "--json")
    code, printed, _ = run(capsys, *words)
    record = json.loads(printed)
    assert code == 0 and list(record) == ["flow/chairs-val", "flow/middlebury"]
    assert record["flow/middlebury"]["epe_zero"] == 5.0 and "epe_farneback" in record["flow/middlebury"]
    assert record["flow/middlebury"]["complete"] is True and record["flow/middlebury"]["pairs"] == 1
    assert json.loads((out / "scores.json").read_text())["scores"][1]["card"]["model"] == "none: baselines only"


def test_a_ground_truth_without_a_valid_pixel_is_no_score(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in sorted(data.rglob("flow10.flo")):
        write_flo(path, np.full((*layouts.SIZE, 2), 1e10, np.float32))
    words = ("--data", data, "--set", "middlebury", "--baselines", "zero", "--out", tmp_path / "out", "subset=true")
    code, printed, told = run(capsys, *words)
    assert (code, printed) == (3, "") and "the ground truth has no valid pixel; expected some" in told
    assert told.count("; expected") == 1  # one piece of advice


def test_a_model_that_gives_no_numbers_ends_the_command_with_4(capsys: pytest.CaptureFixture[str]) -> None:
    card = Card(data_set="s", split="all", root="/r", frames=1, resolution="8x8", masks="all", aggregation="mean")
    assert evaluate._exit_code([Score(name="flow/s", metrics={"epe": math.nan, "fl_all": 100.0}, card=card)]) == 4
    assert "flow/s has 1 metrics that are no number: epe" in capsys.readouterr().err


def test_device_and_threads_are_options_of_every_benchmark_and_keys_too() -> None:
    general = {"device": "cpu", "threads": 2}
    for config in (
        flow_settings(["middlebury"], "/r", None, [], general),
        probe_settings("camvid", "/r", None, None, [], general),
        vos_settings("davis2017", "/r", "dino", (), [], general),
        finetune_settings("camvid", "/r", [], general),
        classify_settings("imagefolder", "/r", [], general),
    ):
        assert (config.device, config.threads) == ("cpu", 2)
    assert flow_settings(["middlebury"], "/r", None, ["threads=3"], general).threads == 3
    options = {c.name: {name for o in c.options for name in o.names} for c in COMMANDS if c.name.startswith("eval ")}
    for name in ("flow", "probe", "vos", "finetune", "classify"):
        assert {"--device", "--threads"} <= options[f"eval {name}"]


def test_one_flag_scores_all_five_baselines_on_a_real_pair(
    sample_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--baselines", "--data", sample_data / "flow", "--set", "middlebury", "--out", tmp_path, "pictures=0")
    code, printed, _ = run(capsys, *words)
    lines = printed.splitlines()
    assert code == 0 and lines[1].split() == ["zero", "dis-ultrafast", "dis-fast", "dis-medium", "farneback"]
    epe = next(line.split() for line in lines if line.strip().startswith("epe "))
    assert [f"{float(value):.2f}" for value in epe[1:]] == ["1.26", "0.54", "0.44", "0.23", "0.43"]


def test_weights_in_any_place_among_the_options(
    data: Path, weights_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = ("--data", data, "--set", "chairs-val", "--baselines", "zero", "--out", tmp_path / "out", "--json")
    settings = ("device=cpu", "threads=1", "pictures=1", "resize=multiple-of-64")
    results = []
    for words in ((weights_folder, *settings, *shared), (weights_folder, *shared, *settings)):
        code, printed, _ = run(capsys, *words)
        assert code == 0
        results.append(json.loads(printed)["flow/chairs-val"])
    assert results[0] == results[1] and {"epe", "epe_zero"} <= set(results[0])
    card = json.loads((tmp_path / "out/scores.json").read_text())["scores"][0]["card"]
    assert card["model"].startswith("MCJEPA") and len(card["weights_digest"]) == 64
    assert card["config"]["resize"] == "multiple-of-64" and "multiple-of-64" in card["resolution"]
    assert (tmp_path / "out/flow/chairs-val/000.png").is_file()


def test_the_bare_option_for_baselines_does_not_swallow_the_word_behind_it(
    sample_data: Path, weights_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = ("--data", sample_data / "flow", "--set", "middlebury", "--out", tmp_path, "--json")
    code, printed, _ = run(capsys, *shared, "--baselines", "pictures=0", "threads=1")
    assert code == 0 and "epe_farneback" in printed and '"epe":' not in printed
    code, printed, _ = run(capsys, *shared, "--baselines", weights_folder, "pictures=0", "threads=1")
    assert code == 0 and "epe_farneback" in printed and '"epe":' in printed
    assert not any((tmp_path / "flow").rglob("*.png"))


def test_an_incomplete_set_is_said_and_gives_exit_code_4(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "FlyingChairs_release/data/00003_img1.ppm").unlink()
    words = ("--data", data, "--set", "chairs-train", "--baselines", "zero", "--out", tmp_path / "out")
    code, printed, _ = run(capsys, *words)
    assert code == 4
    assert "INCOMPLETE" in printed and "00003: data/00003_img1.ppm is not there" in printed
    assert "1 of the set's 2 are there" in printed
    code, printed, _ = run(capsys, *words, "--json")
    assert code == 4 and json.loads(printed)["flow/chairs-train"]["complete"] is False


def test_estimates_are_scored_instead_of_weights(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = ("--data", data, "--set", "chairs-val", "--baselines", "zero", "--out", tmp_path / "out", "--json")
    code, printed, _ = run(capsys, "--estimates", data / "FlyingChairs_release/data", *shared)
    assert code == 0 and json.loads(printed)["flow/chairs-val"]["epe"] == 0.0


def test_a_submission_is_written_checked_and_can_be_checked_again(
    weights_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = kitti_test(tmp_path / "data/data_scene_flow", "image_2", 200).parent
    for number in range(200):
        path = tmp_path / f"flows/{number:06d}_10.flo"
        layouts.flow(path, number)
    shared = ("--data", data, "--set", "kitti2015-test", "--submission", tmp_path / "k.zip")
    code, printed, _ = run(capsys, "--estimates", tmp_path / "flows", *shared)
    assert code == 0 and "200 flows for kitti2015-test" in printed
    code, printed, _ = run(capsys, *shared, "--json")
    assert code == 0 and json.loads(printed)["files"] == 200
    write_flo(tmp_path / "flows/000007_10.flo", layouts.np.full((*layouts.SIZE, 2), layouts.np.nan, "f4"))
    code, _, error = run(capsys, "--estimates", tmp_path / "flows", *shared)
    assert code == 3 and "000007" in error
    assert run(capsys, *shared)[0] == 0  # the archive from before is still there


MISTAKES = {
    "typo in a set": (("--set", "sintel-claen", "--baselines"), 2, "did you mean 'sintel-clean'?"),
    "no set": (("--set", ",", "--baselines"), 2, "expected names"),
    "a set twice": (("--set", "hd1k,hd1k", "--baselines"), 2, "each once"),
    "nothing to score": (("--set", "hd1k"), 2, "expected WEIGHTS, --estimates DIR or --baselines"),
    "no such weights": (("nowhere", "--set", "hd1k"), 2, "no weights folder nowhere"),
    "unknown baseline": (("--set", "hd1k", "--baselines", "raft"), 2, "'farneback'"),
    "unknown setting": (("--set", "hd1k", "--baselines", "zero", "max_pair=3"), 2, "did you mean 'max_pairs'?"),
    "bad resizing": (("--set", "hd1k", "--baselines", "zero", "resize=half"), 2, "HEIGHTxWIDTH"),
    "unknown device": (("--set", "hd1k", "--baselines", "zero", "device=tpu"), 2, "device"),
    "absent set": (("--set", "kitti2012", "--baselines"), 3, "no folder of the set kitti2012"),
    "test set": (("--set", "sintel-test", "--baselines"), 2, "pass --submission FILE.zip"),
    "training set": (("--set", "hd1k", "--submission", "x.zip"), 2, "kitti2012-test"),
    "two submissions": (("--set", "sintel-test,kitti2015-test", "--submission", "x.zip"), 2, "name one"),
    "baselines for a server": (
        ("--set", "sintel-test", "--baselines", "--submission", "x.zip"),
        2,
        "leave --baselines",
    ),
    "incomplete test set": (("--set", "sintel-test", "--submission", "x.zip"), 3, "the server expects 1104"),
    "two sources": (("w", "--set", "hd1k", "--estimates", "e"), 2, "both WEIGHTS and --estimates"),
    "no estimates": (("--set", "hd1k", "--estimates", "nowhere"), 3, "no folder of estimates nowhere"),
}


@pytest.mark.parametrize("mistake", sorted(MISTAKES))
def test_a_mistake_is_one_line_that_says_what_to_do(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    monkeypatch.chdir(tmp_path)
    words, expected, said = MISTAKES[mistake]
    code, printed, error = run(capsys, *words, "--data", data)
    lines = [line for line in error.splitlines() if line.startswith("mcjepa: ")]
    assert (code, len(lines), printed) == (expected, 1, "") and said in lines[0]
    assert "Traceback" not in error and not (tmp_path / "outputs").exists()
