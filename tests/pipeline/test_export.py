"""Weights out of runs: by the folder beside a checkpoint, or put together from the engine's own files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_datasets import publish

from mcjepa.model import pretrained
from mcjepa.model.config import ModelConfig
from mcjepa.model.mcjepa import MCJEPA
from mcjepa.pipeline.cli.main import main
from mcjepa.pipeline.recipe.files import to_plain
from mcjepa.pipeline.recipe.validation import validate
from mcjepa.pipeline.settings.train import TrainConfig

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL: dict[str, Any] = {
    "encoder": {"stem_channels": [4, 8], "stage_channels": [8, 8, 8, 8], "depths": [1, 1, 1, 1]},
    "flow": {"widths": [8, 8], "context_widths": [8, 8], "context_dilations": [1, 2], "coarsest_stride": 8},
    "expander": {"widths": [16, 16]},
}
LINEAGE = {"run_id": "7c", "step": 3, "dataset_ids": ["9be", "3fa"]}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A weights folder."""
    config = validate(ModelConfig, SMALL, "test")
    pretrained.save(MCJEPA(config).state_dict(), config, tmp_path / "weights", LINEAGE)
    return tmp_path / "weights"


def states_equal(a: Path, b: Path) -> bool:
    left, right = pretrained.read_state(a), pretrained.read_state(b)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_a_weights_folder_is_exported_with_its_configuration_and_lineage(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(weights), "--out", str(tmp_path / "out"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["source"] == "weights" and record["sha256"] == pretrained.weights_digest(weights)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [pretrained.CONFIG_NAME, pretrained.WEIGHTS_NAME]
    assert pretrained.read_config(tmp_path / "out") == pretrained.read_config(weights)
    assert states_equal(tmp_path / "out", weights)


def test_the_encoder_alone_is_exported(weights: Path, tmp_path: Path) -> None:
    assert main(["export", str(weights), "--out", str(tmp_path / "out"), "--only", "encoder"]) == 0
    image, encoder = torch.rand(1, 3, 64, 64), pretrained.load_encoder(tmp_path / "out")
    expected = pretrained.load(weights).forward_pyramid(image)
    assert all(torch.equal(a, b) for a, b in zip(encoder(image), expected, strict=True))
    assert all(name.startswith("encoder.") for name in pretrained.read_state(tmp_path / "out"))


@pytest.mark.parametrize("only", [[], ["--only", "encoder"]], ids=["whole", "encoder"])
def test_the_hub_layout_has_a_card_whose_front_matter_and_example_work(
    only: list[str], weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert main(["export", str(weights), "--out", str(out), "--layout", "hub", "--license", "cc-by-nc-4.0", *only]) == 0
    card = (out / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license"] == "cc-by-nc-4.0" and front["library_name"] == "mcjepa"
    assert ("optical-flow" in front["tags"]) == (not only)
    assert pretrained.weights_digest(out) in card and "9be, 3fa" in card
    example = card.split("```python\n")[1].split("```")[0].replace("FOLDER", str(out))
    assert example.startswith("import mcjepa ") and "from " not in example.split("\n")[0]
    images = {name: torch.rand(1, 3, 64, 64) for name in ("image_B3HW", "frame0_B3HW", "frame1_B3HW")}
    exec(example, images)
    assert len(images["pyramid"]) == 6


def test_what_cannot_be_exported_is_one_line(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    for name in ("cut", "run/weights/step-000000001"):
        shutil.copytree(weights, tmp_path / name)
    (tmp_path / "run" / "recipe.yaml").write_text("base: quickstart\n")
    (tmp_path / "cut" / pretrained.WEIGHTS_NAME).write_bytes(b"xx")
    for source, out, said in [
        ("nowhere", "out", "no folder"), ("empty", "out", "neither a complete checkpoint nor weights"),
        ("cut", "out", "damaged"), ("weights", "weights", "the exported folder itself"),
        ("weights", "full", "mine.txt"), ("weights", "full/mine.txt", "is a file"),
        ("run", "run/weights/step-000000001", "among the weights that a run keeps"),
        ("weights", "run/weights/step-000000009", "among the weights that a run keeps"),
    ]:  # fmt: skip
        assert main(["export", str(tmp_path / source), "--out", str(tmp_path / out)]) == 2
        error = capsys.readouterr().err
        assert said in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def train(root: Path, name: str, *overrides: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    """Trains the small model in the folder `name` below `root`, on small datasets made by the first call."""
    if not (root / "datasets").exists():
        publish(str(root / "datasets" / "clips"), "clip", [6, 5])
        publish(str(root / "datasets" / "images"), "image", [9, 8])
    stream = {"pair_batch": 4, "view_batch": 4, "augment": {"pair": {"crop": [32, 32]}, "view": {"size": 32}}}
    settings = {"steps": 2, "log_every": 1, "checkpoint": {"every_steps": 1}, "stream": stream}
    content = {"base": "quickstart", "out": str(root), "model": SMALL, "train": settings}
    (root / "recipe.yaml").write_text(yaml.safe_dump(content))
    words = [sys.executable, "-m", "mcjepa", "train", "--ranks", str(ranks), str(root / "recipe.yaml")]
    return subprocess.run(
        [*words, f"train.run={root / name}", f"tracking.uri=sqlite:///{root / name}.db", *overrides],
        cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_checkpoint_of_two_ranks_is_put_together_as_the_weights_that_the_run_wrote(
    stage: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = train(tmp_path, "run", f"train.engine.zero_stage={stage}", ranks=2)
    assert done.returncode == 0, done.stderr
    checkpoint, written = (tmp_path / "run" / part / "step-000000002" for part in ("checkpoints", "weights"))
    assert main(["export", str(checkpoint), "--out", str(tmp_path / "beside"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["source"] == "weights"
    shutil.move(written, tmp_path / "written")
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["source"] == "checkpoint" and record["from"] == str(checkpoint)
    assert states_equal(tmp_path / "out", tmp_path / "written")
    ours, theirs = (pretrained.read_config(tmp_path / name) for name in ("out", "written"))
    assert ours == theirs


@pytest.mark.slow
def test_weights_of_another_step_beside_a_checkpoint_are_not_taken_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, "run").returncode == 0
    first, second = (tmp_path / "run" / "weights" / f"step-00000000{step}" for step in (1, 2))
    shutil.copytree(second, tmp_path / "expected")
    shutil.rmtree(second)
    shutil.copytree(first, second)
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["source"] == "checkpoint"
    assert states_equal(tmp_path / "out", tmp_path / "expected")


@pytest.mark.slow
def test_a_new_run_starts_from_given_weights_and_a_continued_one_does_not_read_them(
    weights: Path, tmp_path: Path
) -> None:
    given = tmp_path / "given"
    assert main(["export", str(weights), "--out", str(given), "--only", "encoder"]) == 0
    still = ("train.optimizer.encoder_lr=0.0", "train.optimizer.encoder_weight_decay=0.0", f"train.init_from={given}")
    done = train(tmp_path, "run", *still, "train.steps=1")
    assert done.returncode == 0, done.stderr
    digest = pretrained.weights_digest(given)
    state = pretrained.read_state(tmp_path / "run" / "weights" / "step-000000001")
    assert all(torch.equal(state[name], tensor) for name, tensor in pretrained.read_state(given).items())
    shutil.rmtree(given)
    done = train(tmp_path, "run", *still, "train.steps=2")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["init_from"]["sha256"] == digest
    written = tmp_path / "run" / "weights" / "step-000000002"
    assert pretrained.read_config(written)[1]["init_from"] == digest
    shutil.rmtree(written)
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    assert pretrained.read_config(tmp_path / "out")[1]["init_from"] == digest
    refused = train(tmp_path, "other", f"train.init_from={given}")
    assert refused.returncode == 2 and "train.init_from: no weights at" in refused.stderr


def test_no_weights_are_given_by_default() -> None:
    assert to_plain(TrainConfig(run="r", steps=1))["init_from"] == ""
