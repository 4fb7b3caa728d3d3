"""What is the same by another name, and what is a part of what a run wrote, is no difference and no change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mcjepa.model import pretrained
from mcjepa.model.config import ModelConfig
from mcjepa.model.mcjepa import MCJEPA
from mcjepa.pipeline.cli.main import main
from mcjepa.pipeline.lineage.chain import explain
from mcjepa.pipeline.lineage.difference import compare
from mcjepa.pipeline.recipe.validation import validate

SMALL: dict[str, Any] = {
    "encoder": {"stem_channels": [4, 8], "stage_channels": [8, 8, 8, 8], "depths": [1, 1, 1, 1]},
    "flow": {"widths": [8], "context_widths": [8], "context_dilations": [1], "coarsest_stride": 8},
    "expander": {"widths": [8]},
}


def write_run(run: Path) -> Path:
    """A run with one checkpoint's record and its weights; returns the weights."""
    config = validate(ModelConfig, SMALL, "test")
    weights = run / "weights/step-000000003"
    lineage = {"run_id": "7c", "run": run.name, "step": 3, "dataset_ids": []}
    digest = pretrained.save(MCJEPA(config).state_dict(), config, weights, lineage)
    (run / "checkpoints/step-000000003").mkdir(parents=True)
    (run / "checkpoints/step-000000003/manifest.json").write_text(json.dumps({"weights_sha256": digest}))
    (run / "run.json").write_text(json.dumps({"run_id": "7c"}))
    (run / "recipe.yaml").write_text("train: {stream: {pairs: [], views: []}}\n")
    return weights


def test_an_encoder_that_was_exported_alone_is_no_changed_one(tmp_path: Path) -> None:
    weights, out = write_run(tmp_path / "run"), tmp_path / "encoder"
    assert main(["export", str(weights), "--out", str(out), "--only", "encoder"]) == 0
    *_, run, found = explain(str(out), [str(tmp_path / "run")])
    assert run.kind == "run" and found.changed == [] and found.identity != pretrained.weights_digest(weights)
    assert found.facts["holds"] == f"the encoder alone, of the weights {pretrained.weights_digest(weights)}"
    (tmp_path / "run/checkpoints/step-000000003/manifest.json").write_text('{"weights_sha256": "another"}')
    (changed,) = explain(str(out), [str(tmp_path / "run")])[-1].changed
    assert changed.startswith("they are a part of weights of sha256 ") and changed.endswith("of that step says another")


def write_scores(folder: Path, data_set: str, jf: float) -> str:
    card = {
        "data_set": data_set,
        "frames": 9,
        "config": {"set": data_set, "top_k": 5},
        "weights_digest": "",
        "failed": [],
    }
    folder.mkdir()
    score = {"name": f"vos/{data_set}", "metrics": {"jf": jf}, "card": card}
    (folder / "scores.json").write_text(json.dumps({"scores": [score], "key": folder.name}))
    return str(folder)


def test_a_score_of_a_set_by_its_older_name_is_of_the_same_set(tmp_path: Path) -> None:
    older, newer = (write_scores(tmp_path / name, name, jf) for name, jf in (("davis", 0.5), ("davis2017", 0.6)))
    found = compare(older, newer)
    assert found.differences == [] and found.results == [("vos/davis2017 jf", 0.5, 0.6)]
    assert compare(older, write_scores(tmp_path / "davis2016", "davis2016", 0.5)).differences != []
