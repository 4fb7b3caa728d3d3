"""`mcjepa eval vos` as a user runs it: estimates without weights, presets, a test set, and what it says of mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from mcjepa.data_prep.corpora.image_files import write_id_png
from mcjepa.pipeline.cli.main import main

SIZE = (64, 96)


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    """A small DAVIS: two sequences of five frames; `night` is in the test list and has its first mask only."""
    root = tmp_path / "DAVIS"
    for sequence, masks in (("dog", 5), ("night", 1)):
        for number in range(5):
            ids = np.zeros(SIZE, np.uint8)
            ids[10:30, 10 + 4 * number : 30 + 4 * number] = 1
            ids[40:60, 60 - 4 * number : 80 - 4 * number] = 2
            image = np.array([(30, 90, 40), (220, 40, 30), (40, 60, 230)], np.uint8)[ids]
            paths = [root / kind / "480p" / sequence for kind in ("JPEGImages", "Annotations")]
            for path in paths:
                path.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(paths[0] / f"{number:05d}.jpg"), image)
            if number < masks:
                write_id_png(paths[1] / f"{number:05d}.png", ids)
    for name, sequence in (("2016/val", "dog"), ("2017/val", "dog"), ("2017/test-dev", "night")):
        (root / "ImageSets" / name).with_suffix(".txt").parent.mkdir(parents=True, exist_ok=True)
        (root / f"ImageSets/{name}.txt").write_text(f"{sequence}\n")
    return root


def _vos(*words: object) -> int:
    return main(["eval", "vos", *map(str, words)])


def test_estimates_are_scored_without_weights(davis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = davis / "Annotations/480p"
    words = ("--estimates", truth, "--data", davis, "--out", tmp_path / "out", "--json")
    assert _vos(*words, "--set", "davis2017") == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["vos/davis2017"]["jf"] == 1.0 > scores["vos/davis2017"]["jf_copy_first"]
    document = json.loads((tmp_path / "out/scores.json").read_text())["scores"][0]
    assert len(document["table"]) == 2 and document["card"]["weights_digest"] == ""
    assert _vos(*words, "--set", "davis", "pictures=0") == 0  # another name of the same set
    assert json.loads(capsys.readouterr().out) == scores
    assert _vos(*words, "--set", "davis2016", "pictures=0") == 0
    table = json.loads((tmp_path / "out/scores.json").read_text())["scores"][0]["table"]
    assert [(row["sequence"], row["object"]) for row in table] == [("dog", 1)]


def test_an_incomplete_score_is_said_and_has_its_exit_code(
    davis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (davis / "ImageSets/2017/val.txt").write_text("dog\ncat\n")
    for kind in ("JPEGImages", "Annotations"):
        (davis / kind / "480p/cat").symlink_to(davis / kind / "480p/dog")
    (tmp_path / "estimates").mkdir()
    (tmp_path / "estimates/dog").symlink_to(davis / "Annotations/480p/dog")
    words = ("--estimates", tmp_path / "estimates", "--data", davis, "--set", "davis2017", "--out", tmp_path / "out")
    assert _vos(*words) == 4
    captured = capsys.readouterr()
    assert "is incomplete: cat: 3 of 3 predicted masks are not there" in captured.err
    assert "vos/davis2017" in captured.out
    (tmp_path / "estimates/dog").unlink()
    (tmp_path / "estimates/other").mkdir()
    assert _vos(*words) == 3


@pytest.mark.parametrize("preset", ["dino", "crw", "vfs"])
def test_presets_reach_the_card_and_are_overridden(
    davis: Path, weights_folder: Path, tmp_path: Path, preset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (weights_folder, "--data", davis, "--set", "davis2017", "--preset", preset, "--out", tmp_path / "out")
    assert _vos(*words, "--json") == 0
    card = json.loads((tmp_path / "out/scores.json").read_text())["scores"][0]["card"]
    assert card["config"]["protocol"] == preset and f"({preset})" in card["head"]
    assert card["config"]["context_frames"] == {"dino": 7, "crw": 20, "vfs": 20}[preset]
    assert _vos(*words, "short_side=0", "top_k=3", "--masks", "--overlays") == 0
    card = json.loads((tmp_path / "out/scores.json").read_text())["scores"][0]["card"]
    assert (card["config"]["protocol"], card["config"]["top_k"]) == ("own", 3)
    assert len(list((tmp_path / "out/vos/davis2017/masks/dog").iterdir())) == 5
    assert (tmp_path / "out/vos/davis2017/overlays/dog.mp4").stat().st_size > 0
    assert "overlays are in" in capsys.readouterr().err


def test_a_test_set_is_tracked_for_its_server(
    davis: Path, weights_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        weights_folder,
        "--data",
        davis,
        "--set",
        "davis2017-test-dev",
        "--out",
        tmp_path,
        "--json",
        "short_side=0",
    )
    assert _vos(*words) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"vos/davis2017-test-dev": {}}
    folder = tmp_path / "vos/davis2017-test-dev/masks"
    assert f"masks are in {folder}" in captured.err
    assert [path.name for path in sorted((folder / "night").iterdir())] == [f"{n:05d}.png" for n in range(5)]


def test_mistakes_are_one_clear_line(
    davis: Path, weights_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases: list[tuple[list[object], int, str]] = [
        ([], 2, "neither WEIGHTS nor --estimates"),
        (["top_k=3"], 2, "neither WEIGHTS nor --estimates"),
        ([weights_folder, "--estimates", davis], 2, "both WEIGHTS and --estimates"),
        ([weights_folder, "--preset", "dion"], 2, "--preset is 'dion': did you mean 'dino'?"),
        ([weights_folder, "topk=3"], 2, "unknown key 'topk': did you mean 'top_k'?"),
        ([weights_folder, "stride=12"], 2, "vos.stride is 12"),
        (["--estimates", tmp_path / "none"], 3, "no folder"),
        ([tmp_path / "none"], 2, "no weights folder"),
    ]
    for words, code, said in cases:
        assert _vos(*words, "--data", davis, "--set", "davis2017", "--out", tmp_path / "out") == code
        assert said in capsys.readouterr().err
    assert _vos(weights_folder, "--data", davis, "--set", "davis2018", "--out", tmp_path / "out") == 2
    assert "--set has no data set 'davis2018': did you mean 'davis2017'?" in capsys.readouterr().err
