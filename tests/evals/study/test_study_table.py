"""Tables of a study from plain data: measures, differences, meters over time, the verdict, what is missing."""

from __future__ import annotations

import json
import math

import pytest

from mcjepa.evals.study.settings import Arm, Measure, StudyConfig
from mcjepa.evals.study.table import StudyTable, build_table, markdown, measure_of, verdict

EPE = Measure(of=("flow/a/epe", "flow/b/epe"), share_of=("flow/a/epe_zero", "flow/b/epe_zero"), better="lower")
MIOU = Measure(of=("probe/c/miou",), better="higher", digits=2)
CONFIG = StudyConfig(
    arms={"joint": Arm(), "flow-only": Arm(), "content-only": Arm()},
    measures={"EPE": EPE, "mIoU": MIOU},
    meters=("cosine",),
)


def scores(epe: float | None, miou: float) -> dict[str, dict[str, float]]:
    flow = {f"flow/{s}": {"epe": epe, "epe_zero": 4.0} for s in "ab"} if epe is not None else {}
    return {**flow, "probe/c": {"miou": miou}}


def full_table(records: dict[str, dict[int, list[dict[str, float]]]] | None = None) -> StudyTable:
    joint, flow = (
        ((1.0, 30.0), (1.1, 31.0), (1.2, 30.5)),
        ((2.0, 30.2), (2.15, 30.7), (2.2, 30.6)),
    )
    found = {
        "joint": {seed: scores(*pair) for seed, pair in enumerate(joint)},
        "flow-only": {seed: scores(*pair) for seed, pair in enumerate(flow)},
        "content-only": {seed: scores(None, miou) for seed, miou in enumerate((20, 21, 22))},
    }
    return build_table("small", 100, CONFIG, found, records or {})


def test_a_share_is_the_ratio_of_sums_and_a_missing_metric_is_nan() -> None:
    assert measure_of(EPE, {"flow/a": {"epe": 1, "epe_zero": 2}, "flow/b": {"epe": 2, "epe_zero": 10}}) == 0.25
    assert math.isnan(measure_of(EPE, {"flow/a": {"epe": 1, "epe_zero": 2}}))
    assert math.isnan(measure_of(EPE, {f"flow/{s}": {"epe": 0.0, "epe_zero": 0.0} for s in "ab"}))


def test_scores_under_an_older_name_of_their_set_are_found() -> None:
    measure = Measure(of=("vos/davis2017/jf",), better="higher")
    assert (
        measure_of(measure, {"vos/davis": {"jf": 0.25}}) == measure_of(measure, {"vos/davis2017": {"jf": 0.25}}) == 0.25
    )
    older = Measure(of=("vos/davis/jf",), better="higher")
    assert measure_of(older, {"vos/davis2017": {"jf": 0.25}}) == 0.25


def test_means_differences_and_their_direction() -> None:
    table = full_table()
    assert table.cells["joint"]["EPE"].spread.mean == pytest.approx(1.1 / 4)
    assert "EPE" not in table.cells["content-only"] and table.missing == ()
    found = {(c.measure, c.arm): c for c in table.comparisons}
    assert set(found) == {("EPE", "flow-only"), ("mIoU", "flow-only"), ("mIoU", "content-only")}
    flow = found["EPE", "flow-only"]
    assert flow.test.difference == pytest.approx(-3.05 / 12) and flow.better and flow.shown
    assert found["mIoU", "content-only"].better and not found["mIoU", "flow-only"].shown


def test_the_verdict_names_what_is_shown_and_what_is_not() -> None:
    said = verdict(full_table())
    assert said.startswith("over 3 seeds, joint is better than flow-only in EPE and not shown to differ from flow-only")
    assert "better than content-only in mIoU" in said


def test_arms_are_paired_by_the_seeds_that_both_have() -> None:
    found = {"joint": {0: scores(1, 30), 2: scores(1, 35)}, "flow-only": {1: scores(2, 1), 2: scores(2, 33)}}
    table = build_table("half", 100, CONFIG, found, {})
    (miou,) = [c for c in table.comparisons if c.measure == "mIoU"]
    assert (miou.test.count, miou.test.difference) == (1, 2.0) and not miou.shown
    assert "joint/seed-1" in table.missing and "content-only/seed-0" in table.missing
    assert "Not scored yet: joint/seed-1, " in markdown(table)


def test_meters_are_means_over_seeds_at_steps_that_all_have() -> None:
    ramp = [{"step": s, "cosine": s / 10} for s in range(10, 110, 10)]
    runs = {0: ramp, 1: [{"step": s, "cosine": 0.0} for s in range(20, 110, 10)]}
    points = full_table({"joint": runs}).meters["joint"]["cosine"]
    assert list(points) == [20, 40, 60, 80, 100]
    assert points[100].mean == 5.0 and points[100].count == 2


def test_markdown_and_json_say_the_same() -> None:
    table = full_table({"joint": {0: [{"step": 5, "cosine": 0.5}]}})
    text, plain = markdown(table), json.loads(json.dumps(table.to_dict(), allow_nan=False))
    assert "| joint | 0.3 ± 0.0 (3) | 30.50 ± 0.50 (3) |" in text and "| content-only | – | 21.00 ± 1.00 (3) |" in text
    assert "## Meters of joint" in text and plain["verdict"] in text
    assert plain["cells"]["joint"]["mIoU"]["by_seed"] == {"0": 30.0, "1": 31.0, "2": 30.5}


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="an arm that stands before"):
        StudyConfig(arms={"frozen": Arm(starts_from="content"), "content": Arm()})
    with pytest.raises(ValueError, match="reference"):
        StudyConfig(arms={"a": Arm()}, reference="b")
    with pytest.raises(ValueError, match="KIND/SET/METRIC"):
        Measure(of=("epe",), better="lower")
    with pytest.raises(ValueError, match="small letters"):
        StudyConfig(arms={"../x": Arm()})
    with pytest.raises(ValueError, match="seeds"):
        StudyConfig(seeds=(1, 1))
