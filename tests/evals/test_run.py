"""The whole evaluation on real files with our model: what it writes, repeatability, bad requests."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from mcjepa.data_prep.errors import DataError
from mcjepa.evals.cards import Card, Score, write_scores
from mcjepa.evals.flow.settings import FlowEvalConfig
from mcjepa.evals.probe.settings import ProbeConfig
from mcjepa.evals.progress import nothing_scored, torch_threads
from mcjepa.evals.run import run_evaluation
from mcjepa.evals.settings import EvalConfig
from mcjepa.evals.vos.settings import VosConfig


@pytest.fixture(scope="module")
def settings(moving_photos: Path) -> EvalConfig:
    root = str(moving_photos)
    return EvalConfig(
        flow=FlowEvalConfig(sets={"moving-photos": root}, max_pairs=3, pictures=1),
        probe=ProbeConfig(set="moving-photos", root=root, steps=20, warmup_steps=2, lr=0.02, crop_px=0, pictures=1),
        vos=VosConfig(set="moving-photos", root=root, short_side=0, radius_cells=4, max_sequences=2, pictures=1),
        seed=3,
        device="cpu",
    )


def test_all_evaluations_of_our_weights_are_written_and_repeat_themselves(
    weights_folder: Path, settings: EvalConfig, tmp_path: Path
) -> None:
    phases = set()
    scores = run_evaluation(weights_folder, settings, tmp_path / "a", lambda event: phases.add(event.phase))
    assert [score.name for score in scores] == [
        "flow/moving-photos",
        "probe/moving-photos",
        "vos/moving-photos",
    ]
    assert {"epe", "epe_zero", "epe_dis_medium"} <= set(scores[0].metrics)
    assert {"miou", "miou_random"} <= set(scores[1].metrics)
    assert {"jf", "jf_copy_first"} <= set(scores[2].metrics)
    assert {"pairs", "head", "frames"} <= phases
    for score in scores:
        assert len(score.card.weights_digest) == 64 and score.card.lineage["step"] == 7
        assert score.card.model.startswith("MCJEPA")
    document = json.loads((tmp_path / "a/scores.json").read_text())
    assert document["version"] == 1
    for listed, score in zip(document["scores"], scores, strict=True):
        assert listed["metrics"].keys() == score.metrics.keys()
        assert all((tmp_path / "a" / picture["path"]).is_file() for picture in listed["pictures"])
        with (tmp_path / "a" / score.name / "items.csv").open() as stream:
            assert len(list(csv.DictReader(stream))) == len(score.table)
    again = run_evaluation(str(weights_folder), settings, tmp_path / "b")
    assert [score.metrics for score in again] == [score.metrics for score in scores]
    assert (tmp_path / "a/scores.json").read_bytes() == (tmp_path / "b/scores.json").read_bytes()


def test_parts_that_are_not_asked_for_are_not_run(weights_folder: Path, settings: EvalConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(settings, flow=None, probe=None)
    assert [score.name for score in run_evaluation(weights_folder, config, tmp_path)] == ["vos/moving-photos"]


def test_threads_are_as_before_afterwards(weights_folder: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    broken = EvalConfig(vos=VosConfig(root=str(tmp_path / "nowhere")), threads=before + 1)
    with pytest.raises(DataError):
        run_evaluation(weights_folder, broken, tmp_path)
    assert torch.get_num_threads() == before


def test_unknown_set_and_missing_folder_are_named(weights_folder: Path, settings: EvalConfig, tmp_path: Path) -> None:
    unknown = EvalConfig(flow=FlowEvalConfig(sets={"sintel": str(tmp_path)}))
    with pytest.raises(DataError, match=r"'sintel'.*sintel-clean"):
        run_evaluation(weights_folder, unknown, tmp_path)
    missing = EvalConfig(vos=VosConfig(root=str(tmp_path / "nowhere")))
    with pytest.raises(DataError, match="nowhere"):
        run_evaluation(weights_folder, missing, tmp_path)


def test_numbers_that_are_not_finite_are_null_in_json(tmp_path: Path) -> None:
    card = Card(
        data_set="s",
        split="",
        root="",
        frames=0,
        resolution="",
        masks="",
        aggregation="",
        failed=("x: gone",),
    )
    score = Score(name="flow/s", metrics={"epe": math.nan, "fl_all": 1.0}, card=card, table=({"epe": math.inf},))
    write_scores([score], tmp_path)
    listed = json.loads((tmp_path / "scores.json").read_text())["scores"][0]
    assert listed["metrics"] == {"epe": None, "fl_all": 1.0}
    assert listed["table"] == [{"epe": None}]
    assert listed["card"]["complete"] is False and listed["card"]["failed"] == ["x: gone"]


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (ProbeConfig, {"levels": (0,)}),
        (ProbeConfig, {"levels": ()}),
        (ProbeConfig, {"steps": 100}),
        (ProbeConfig, {"loss_stride_px": 3}),
        (ProbeConfig, {"lr": 0.0}),
        (ProbeConfig, {"batch": 0}),
        (VosConfig, {"stride": 12}),
        (VosConfig, {"temperature": 0.0}),
        (VosConfig, {"top_k": 0}),
        (VosConfig, {"context_frames": -1}),
        (FlowEvalConfig, {"max_pairs": -1}),
    ],
)
def test_settings_outside_their_range_are_refused_by_name(kind: type, wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="(steps|" + "|".join(wrong) + r").*expected"):
        kind(**wrong)


@pytest.mark.parametrize(
    ("failed", "told"),
    [
        (["a.png: is empty; expected a PNG; replace it"], "set x: a.png: is empty; expected a PNG; replace it"),
        (
            ["a.png: is empty; expected a PNG; replace it", "b.png: is away; expected a file; restore it"],
            "set x: none of its 2 items can be scored; the first: a.png: is empty; expected a PNG; replace it",
        ),
        ([], "set x has nothing to score; expected images; check the folder"),
    ],
)
def test_a_set_that_cannot_be_scored_has_one_piece_of_advice(failed: list[str], told: str) -> None:
    assert str(nothing_scored("set x", failed, "images")) == told
