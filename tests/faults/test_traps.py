"""Commands run from a folder full of traps: files and folders that must never be imported instead of our code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from tests.evals.probe.test_probe_command import QUICK, write_camvid
from tests.pipeline.small_recipe import write_small_recipe

REPOSITORY = Path(__file__).resolve().parents[2]
MCJEPA = Path(sys.executable).parent / "mcjepa"
TRAPS = ("model", "data_prep", "queue", "copy", "numpy", "torch", "utils", "random", "cv2")
ROOMS = ("cluster", "configs", "data_prep", "evals", "model", "pipeline")


def lay_traps(folder: Path) -> Path:
    """Modules that end whoever imports them, and another checkout whose pictures have inverted colours."""
    for name in TRAPS:
        (folder / f"{name}.py").write_text(f"raise RuntimeError('the trap {name} was imported')\n")
    (folder / "pipeline").mkdir()
    (folder / "pipeline" / "__init__.py").write_text("raise RuntimeError('the trap pipeline was imported')\n")
    package = folder / "mcjepa"
    package.mkdir()
    for path in (REPOSITORY / "mcjepa").glob("*.py"):
        shutil.copy(path, package)
    for room in ROOMS:
        shutil.copytree(REPOSITORY / room, package / room)
    encoders = package / "data_prep" / "decode" / "encoders.py"
    code = encoders.read_text()
    line = "    scale = short_side_px / min(height, width)\n"
    changed = code.replace(line, f"    rgb = 255 - rgb\n{line}")
    assert changed != code
    encoders.write_text(changed)
    return folder


@pytest.fixture(scope="module")
def traps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_traps(tmp_path_factory.mktemp("traps"))


def _prepare(folder: Path, out: Path, corpus: Path) -> dict[str, Any]:
    """Run `mcjepa prep run` in `folder`; the report, or the end of what it said."""
    recipe = {
        "name": "trapped",
        "out": str(out / "out"),
        "prep": {
            "root": str(out / "datasets"),
            "workers": 2,
            "datasets": {
                "images": {"kind": "image", "short_side": 32, "corpora": [{"reader": "images", "path": str(corpus)}]}
            },
        },
    }
    out.mkdir()
    (out / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    answer = subprocess.run(
        [str(MCJEPA), "prep", "run", str(out / "recipe.yaml"), "--json"],
        cwd=folder,
        env={**os.environ, "MLFLOW_TRACKING_URI": str(out / "mlruns")},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    report: dict[str, Any] = json.loads(answer.stdout)
    return report


@pytest.mark.slow
def test_prep_from_a_folder_of_traps_makes_the_same_dataset(traps: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number in range(6):
        picture = np.random.default_rng(number).integers(0, 255, (40, 60, 3), np.uint8)
        cv2.imwrite(str(corpus / f"{number}.png"), picture)
    (tmp_path / "empty").mkdir()
    plain = _prepare(tmp_path / "empty", tmp_path / "a", corpus)
    trapped = _prepare(traps, tmp_path / "b", corpus)
    assert trapped["datasets"]["images"]["dataset_id"] == plain["datasets"]["images"]["dataset_id"]
    assert plain["datasets"]["images"]["ok"] == 6


PATHS = """
import json, sys
from mcjepa.data_prep.workers.ray_job import run_tasks
from mcjepa.data_prep.workers.ray_session import running_ray
from tests.faults.worker_paths import Item, search_path_of_worker
found = []
with running_ray(sys.argv[1], 1):
    run_tasks(search_path_of_worker, None, [Item("a")], workers=1, on_result=found.append)
print(json.dumps(found[0]))
"""


@pytest.mark.slow
def test_ray_workers_have_neither_the_current_folder_nor_that_of_the_script(traps: Path, tmp_path: Path) -> None:
    script = tmp_path / "scripts" / "driver.py"
    script.parent.mkdir()
    script.write_text(PATHS)
    answer = subprocess.run(
        [sys.executable, str(script), ""],
        cwd=traps,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    path = json.loads(answer.stdout)
    assert str(traps) not in path and str(script.parent) not in path and "" not in path


def _run(folder: Path, *words: str) -> None:
    """Run the command line in `folder`."""
    answer = subprocess.run([str(MCJEPA), *words], cwd=folder, capture_output=True, text=True, timeout=280)
    assert answer.returncode == 0, answer.stderr[-2000:]


def _losses(run: Path) -> list[tuple[int, float]]:
    lines = (run / "logs" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [(record["step"], record["loss"]) for record in map(json.loads, lines)]


@pytest.mark.slow
def test_training_evaluation_and_inference_from_a_folder_of_traps_give_the_same(traps: Path, tmp_path: Path) -> None:
    recipe = write_small_recipe(tmp_path)
    camvid = write_camvid(tmp_path)
    frames = sorted((camvid / "val").glob("*.png"))
    (tmp_path / "empty").mkdir()
    found = []
    for folder in (tmp_path / "empty", traps):
        out = tmp_path / f"from-{folder.name}"
        _run(folder, "train", str(recipe), "--ranks", "2", f"train.run={out}/run", "train.stream.workers=1")
        weights = sorted((out / "run" / "weights").iterdir())[-1]
        where = ("--data", str(camvid), "--set", "camvid", "--out", str(out / "eval"), "--threads", "1")
        _run(folder, "eval", "probe", str(weights), *where, *QUICK)
        _run(folder, "infer", str(weights), *map(str, frames), "--out", str(out / "infer"))
        scores = json.loads((out / "eval" / "scores.json").read_text(encoding="utf-8"))["scores"]
        pictures = {
            path.relative_to(out / "infer"): path.read_bytes() for path in sorted((out / "infer").rglob("*.png"))
        }
        found.append((_losses(out / "run"), [score["metrics"] for score in scores], pictures))
    assert found[0] == found[1]
    assert all(found[0])
