"""Evaluations side by side: which end is better, what may be compared, and what is more than chance."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mcjepa.evals.cards import ESTIMATES, Card, Picture, Score, read_scores, write_scores
from mcjepa.evals.finetune.settings import FinetuneConfig
from mcjepa.evals.measures import ITEM_NAMES, measure_of
from mcjepa.evals.models import EvalModel, LoadedModel
from mcjepa.evals.report.comparison import Evaluated, compare_scores
from mcjepa.evals.report.paper_table import our_row
from mcjepa.evals.vos.score import score_vos_estimates, score_vos_set
from mcjepa.evals.vos.settings import VosConfig
from mcjepa.pipeline.cli.main import main
from tests.evals.vos.test_vos_score import _estimates, _write_video

PAIRS = 40
ERRORS = np.random.default_rng(0).gamma(2.0, 1.0, PAIRS)


def flow_score(gain: np.ndarray | float = 0.0, **card: Any) -> Score:
    """A score over 40 pairs whose errors are lower by `gain`."""
    rows = tuple(
        {"pair": f"p{place}", "height_px": 8, "width_px": 8, "valid_pixels": 10 + place, "epe": float(value)}
        for place, value in enumerate(ERRORS - gain)
    )
    weights = np.arange(PAIRS) + 10.0
    config = {"resize": "none", "pictures": 4, **card.pop("config", {})}
    facts: dict[str, Any] = {"data_set": "s", "split": "all", "root": "/r", "frames": PAIRS, "unit": "frame pairs"}
    facts |= {"resolution": "8x8, not resized", "masks": "all", "aggregation": "mean", "config": config} | card
    metrics = {"epe": float(np.average(ERRORS - gain, weights=weights)), "epe_zero": 9.0}
    return Score(name="flow/s", metrics=metrics, card=Card(**facts), rivals=("zero",), table=rows)


def compare(*scores: Score) -> Any:
    (compared,) = compare_scores([Evaluated(label=f"m{n}", scores=(score,)) for n, score in enumerate(scores)])
    return compared


def test_the_larger_spread_of_seeds_is_not_better_and_errors_are_better_when_lower() -> None:
    card = Card(data_set="s", split="v", root="/", frames=1, resolution="", masks="", aggregation="", seeds=(0, 1, 2))
    first = Score(name="probe/s", metrics={"miou": 40.0, "miou_std": 3.0, "iou_car": 2.0}, card=card)
    second = Score(name="probe/s", metrics={"miou": 41.0, "miou_std": 0.1, "iou_car": 1.0}, card=card)
    best = {metric.name: set(metric.best) for metric in compare(first, second).metrics}
    assert best == {"miou": {1}, "miou_std": set(), "iou_car": {0}}
    assert compare(first, second).seeds == (3, 3)
    better = {name: measure_of(name).better for name in ("epe_s40_plus", "fl_bg", "j_decay", "f_recall", "knn10_top5")}
    assert list(better.values()) == ["lower", "lower", "lower", "higher", "higher"]


def test_wording_is_no_difference_and_the_way_a_model_is_run_is_one_between_models_only() -> None:
    model, reworded = flow_score(), flow_score(resolution="8x8 px, as they are", config={"pictures": 0})
    estimates = flow_score(source=ESTIMATES, resolution="estimates as they are", config={"resize": "anything"})
    resized = flow_score(config={"resize": "448x1024"})
    assert compare(model, reworded).differences == compare(model, estimates).differences == ()
    assert compare(model, resized, estimates).differences == ("config.resize: none | 448x1024",)
    assert compare(model, resized).against_first == ()


def test_fine_tunings_whose_batch_normalisation_saw_other_batches_are_not_compared() -> None:
    def fine_tuned(**settings: Any) -> Score:
        card = Card(
            data_set="s", split="v", root="/", frames=1, resolution="", masks="", aggregation="",
            config=dataclasses.asdict(FinetuneConfig(**settings)),
        )  # fmt: skip
        return Score(name="finetune/s", metrics={"miou": 40.0}, card=card)

    assert compare(fine_tuned(), fine_tuned(workers=0, micro_batch=16)).differences == ()  # 0 is the whole batch
    assert compare(fine_tuned(), fine_tuned(micro_batch=4)).differences == ("config.micro_batch: 16 | 4",)


def test_other_items_under_the_same_count_are_a_difference() -> None:
    other = flow_score()
    rows = tuple(row | {"pair": "q0"} if row["pair"] == "p0" else row for row in other.table)
    (said,) = compare(flow_score(), Score(**(vars(other) | {"table": rows}))).differences
    assert said.startswith("items (pair, height_px, width_px, valid_pixels): 1 and 1 differ, such as p0 8 8 10 | q0")


@pytest.mark.parametrize("other", ["in another order", "one of them twice"])
def test_rows_are_set_against_rows_of_the_same_item_only(other: str) -> None:
    """Else the interval of the difference would be that of other pairs, and nobody would see it."""
    score = flow_score(gain=0.5)
    rows = score.table[::-1] if other == "in another order" else (*score.table, score.table[0])
    compared = compare(flow_score(), Score(**(vars(score) | {"table": rows})))
    assert compared.differences == ("items: in another order, or some of them twice",)
    assert compared.against_first == ()


def test_a_steady_gain_is_more_than_chance_and_noise_is_not() -> None:
    noise = np.random.default_rng(1).normal(0.0, 1.0, PAIRS)
    compared = compare(flow_score(), flow_score(gain=0.5 + 0.1 * noise), flow_score(gain=noise - noise.mean()))
    better, same = compared.against_first
    assert better.interval.difference == pytest.approx(-0.5, abs=0.05) and better.interval.is_more_than_chance
    assert not same.interval.is_more_than_chance
    assert better.sentence(["a", "b", "c"]).endswith("over 40 pairs: better by more than chance")
    assert same.sentence(["a", "b", "c"]).startswith("c - a: epe") and same.sentence("abc").endswith("within chance")


def test_scores_under_the_old_name_of_davis_stand_beside_those_under_its_own(tmp_path: Path) -> None:
    """Files of before `davis` became a name of `davis2017` alone."""
    rows = tuple({"sequence": name, "object": 1, "frames": 9, "j_mean": 0.5, "f_mean": 0.4} for name in "abc")
    facts = {"split": "", "root": "", "frames": 27, "resolution": "", "masks": "", "aggregation": ""}
    for name in ("davis", "davis2017"):
        card = Card(data_set=name, config={"set": name, "top_k": 5}, **facts)  # type: ignore[arg-type]
        write_scores([Score(name=f"vos/{name}", metrics={"jf": 0.45}, card=card, table=rows)], tmp_path / name)
    scores = [read_scores(tmp_path / name)[0] for name in ("davis", "davis2017")]
    compared = compare(*scores)
    assert compared.name == "vos/davis2017" and compared.differences == ()
    assert all(math.isfinite(value) for value in compared.metrics[0].values)
    assert [cell.value for cell in our_row(scores[:1]) if math.isfinite(cell.value)] == [45.0]


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_folders_with_scores_json_alone_are_compared_with_intervals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    for name, gain in (("a", 0.0), ("b", 0.5)):
        score = flow_score(gain=gain)
        picture = Picture(caption="p", path=tmp_path / name / "flow/s/000.png", kind="flow")
        write_scores([Score(**(vars(score) | {"pictures": (picture,)}))], tmp_path / name)
        (tmp_path / name / "flow/s/items.csv").unlink()
    page = tmp_path / "compared.html"
    places = [str(tmp_path / "a"), str(tmp_path / "b/scores.json")]
    assert main(["eval", "compare", *places, "--out", str(page), *words]) == 0
    printed = capsys.readouterr().out
    assert "better by more than chance" in page.read_text()
    if not words:
        assert "b - a: epe -0.5, 95 % -0.5 to -0.5 over 40 pairs: better by more than chance" in printed
        return
    found = json.loads(printed)["scores"]["flow/s"]
    assert found["comparable"] and found["better"] == {"epe": "lower"} and found["seeds"] == [1, 1]
    (one,) = found["against_first"]
    assert (one["evaluation"], one["against"], one["metric"]) == ("b", "a", "epe")
    assert one["difference"] == one["low"] == one["high"] == pytest.approx(-0.5) and one["more_than_chance"]


def test_a_model_and_its_own_masks_as_estimates_are_comparable(
    tmp_path: Path, foreign_model: Callable[..., EvalModel]
) -> None:
    config = VosConfig(set="test", stride=8, short_side=0, radius_cells=4, context_frames=3, pictures=0)
    video = _write_video(tmp_path / "in", "blocks")
    _estimates(tmp_path / "estimates", video)
    loaded = LoadedModel(model=foreign_model(), name="m")
    scores = (
        score_vos_set(loaded, tmp_path, [video], config, tmp_path / "out"),
        score_vos_estimates(tmp_path / "estimates", tmp_path, [video], config, tmp_path / "out"),
    )
    compared = compare(*scores)
    assert compared.differences == () and next(m for m in compared.metrics if m.name == "jf").best == {1}
    assert len(compared.metrics) == 7 and all(metric.better != "neither" for metric in compared.metrics)
    assert set(ITEM_NAMES["vos"]) <= set(scores[0].table[0])
