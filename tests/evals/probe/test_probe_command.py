"""`mcjepa eval probe`: results, exit codes and errors of the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from mcjepa.data_prep.corpora.image_files import write_id_png
from mcjepa.pipeline.cli.main import main
from tests.evals.labelled_sets import write_items

QUICK = ("steps=3", "warmup_steps=0", "loss_stride_px=8", "levels=[3,6]", "pictures=1", "knn_cells=64", "knn_k=3")


def write_camvid(folder: Path) -> Path:
    """A small set in CamVid's layout: the root it was written to."""
    root = folder / "CamVid"
    for split, count in (("train", 4), ("val", 2)):
        items = write_items(root / split, [(64, 80)] * count)
        (root / f"{split}annot").mkdir()
        for item in items:
            Path(item.labels).rename(root / f"{split}annot" / f"{item.name}.png")
        lines = [f"CamVid/{split}/{item.name}.png CamVid/{split}annot/{item.name}.png\n" for item in items]
        (root / f"{split}.txt").write_text("".join(lines))
    return root


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    """A set in CamVid's layout."""
    return write_camvid(tmp_path)


def probe(weights: Path, root: Path, *words: str) -> int:
    """Exit code of the command."""
    fixed = ["--data", str(root), "--set", "camvid", "--out", str(root.parent / "out"), "--threads", "1"]
    return main(["eval", "probe", str(weights), *fixed, *words])


def test_both_heads_share_the_features_and_are_told_apart(
    weights_folder: Path, camvid: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert probe(weights_folder, camvid, "--json", *QUICK, "seeds=[0,1]") == 0
    linear = json.loads(capsys.readouterr().out)["probe/camvid"]
    assert 0 <= linear["miou"] <= 100 and {"miou_std", "miou_random", "miou_std_random"} <= set(linear)
    made = sorted(path.name for path in (camvid.parent / "features").glob("*/"))
    assert probe(weights_folder, camvid, "--json", "--head", "knn", *QUICK) == 0
    assert "probe-knn/camvid" in json.loads(capsys.readouterr().out)
    assert sorted(path.name for path in (camvid.parent / "features").glob("*/")) == made
    assert (camvid.parent / "out/probe-knn/camvid/confusion.csv").is_file()


def test_an_incomplete_score_ends_with_4_and_names_the_file(
    weights_folder: Path, camvid: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_id_png(camvid / "valannot/1.png", np.full((64, 80), 12, np.uint8))
    assert probe(weights_folder, camvid, *QUICK) == 4
    said = capsys.readouterr()
    assert re.search(r"incomplete: 1\.png: .*valannot/1\.png has the label ids \[12\]; expected 0\.\.11", said.err)
    assert "miou" in said.out
    card = json.loads((camvid.parent / "out/scores.json").read_text())["scores"][0]["card"]
    assert card["complete"] is False and len(card["failed"]) == 1 and card["frames"] == 1


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("stepss=3",), 2, "did you mean 'steps'"),
        (("--protocol", "vicregl-vok"), 2, "did you mean 'vicregl-voc'"),
        (("--head", "knn", "--protocol", "cached"), 2, "expected one of its own: knn"),
        (("window_px=64", "window_stride_px=99"), 2, "window_stride_px is 99; expected at most"),
        (("train_split=trian",), 3, "trian.txt is not there"),
        (("cache_gib=1e-9",), 3, "raise probe.cache_gib"),
    ],
)
def test_a_mistake_is_one_line(
    weights_folder: Path,
    camvid: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    code: int,
    said: str,
) -> None:
    assert probe(weights_folder, camvid, *QUICK, *words) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mcjepa: ")]
    assert len(lines) == 1 and said in lines[0]
