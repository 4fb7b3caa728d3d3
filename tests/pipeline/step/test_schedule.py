"""Rates, term weights and idle branches as pure functions of the step."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from mcjepa.pipeline.settings.train import OptimizerConfig, TermConfig, TermsConfig, TrainConfig
from mcjepa.pipeline.step.schedule import build_schedule, late_terms, rate_factor, term_factor

SILENT = TermConfig(weight=0.0)


def terms(**named: TermConfig) -> TermsConfig:
    """Terms of weight 0 but for those named, no video balance."""
    rest = {name: SILENT for name, _ in TermsConfig().items()}
    return TermsConfig(video_balance=1.0, **(rest | named))


def test_the_rate_rises_then_falls_to_nearly_nothing() -> None:
    factors = [rate_factor(step, 100, 10) for step in range(100)]
    assert factors[:10] == [pytest.approx((k + 1) / 10) for k in range(10)]
    assert max(factors) == 1.0 and factors[-1] < 1e-3
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))


def test_a_warm_up_longer_than_the_run_is_cut() -> None:
    assert rate_factor(4, 5, 100) == 1.0


def test_epochs_become_steps() -> None:
    config = TrainConfig(
        run="r",
        epochs=3.0,
        optimizer=OptimizerConfig(warmup_epochs=0.5),
        terms=terms(vc=TermConfig(weight=2.0, start_epoch=1.0, warmup_epochs=0.4)),
    )
    schedule = build_schedule(config, steps_per_epoch=10)
    assert (schedule.steps, schedule.warmup_steps) == (30, 5)
    assert [schedule.weights_at(step)["vc"] for step in (9, 10, 11, 13, 14)] == [0.0, 0.5, 1.0, 2.0, 2.0]


def test_the_later_of_start_step_and_start_epoch_holds() -> None:
    config = TrainConfig(run="r", steps=99, terms=terms(cycle=TermConfig(weight=1.0, start_step=12, start_epoch=1.0)))
    assert build_schedule(config, 10).term_starts["cycle"] == 12
    assert build_schedule(config, 20).term_starts["cycle"] == 20


def test_the_papers_defaults_are_content_alone_for_ten_epochs_and_one_of_warm_up_for_vc() -> None:
    schedule = build_schedule(TrainConfig(run="r", epochs=100.0), steps_per_epoch=3336)
    before, after = schedule.weights_at(33_359), schedule.weights_at(33_360)
    assert [name for name, weight in before.items() if weight] == ["masks", "content"]
    assert after["smoothness"] == pytest.approx(7.5) and after["vc"] == pytest.approx(0.1 / 3336)
    assert schedule.weights_at(33_360 + 3335)["vc"] == pytest.approx(0.1)
    assert (schedule.steps, schedule.warmup_steps) == (333_600, 33_360)


def test_a_branch_is_idle_until_a_term_reaches_it() -> None:
    config = TrainConfig(
        run="r",
        steps=9,
        terms=terms(content=TermConfig(weight=1.0, start_step=2), cycle=TermConfig(weight=1.0, start_step=5)),
    )
    schedule = build_schedule(config, 1)
    assert [schedule.idle_groups(step) for step in (1, 2, 5)] == [("estimator", "expander"), ("estimator",), ()]


def test_a_terms_weight_jumps_to_its_full_value_without_a_warm_up() -> None:
    assert [term_factor(step, 3, 0) for step in (2, 3)] == [0.0, 1.0]


def test_masks_begin_when_they_are_told_and_no_balance_scales_them() -> None:
    masks = TermConfig(weight=1.0, start_step=4, warmup_epochs=0.2)
    config = TrainConfig(run="r", steps=9, terms=TermsConfig(masks=masks, cycle=TermConfig(weight=1.0)))
    schedule = build_schedule(config, 10)
    assert [schedule.weights_at(step)["masks"] for step in (3, 4, 5)] == [0.0, 0.5, 1.0]
    assert schedule.weights_at(5)["cycle"] == pytest.approx(0.1) and schedule.weights_at(5)["self_supervision"] == 0.0
    late = dataclasses.replace(config, steps=4)
    assert "masks at step 4" in late_terms(build_schedule(late, 10), late)
    alone = dataclasses.replace(config, terms=terms(masks=TermConfig(weight=1.0)))
    assert "estimator" in build_schedule(alone, 10).idle_groups(8)  # masks train nothing
    with pytest.raises(ValueError, match=r"terms\.masks\.weight is 2"):
        TermsConfig(masks=TermConfig(weight=2.0))


def test_steps_or_epochs_must_be_given_and_not_both() -> None:
    with pytest.raises(ValueError, match="one of them above 0"):
        TrainConfig(run="r")
    with pytest.raises(ValueError, match="one of them above 0"):
        TrainConfig(run="r", steps=1, epochs=1.0)


def test_weighted_terms_that_begin_behind_the_last_step_are_named() -> None:
    config = TrainConfig(run="unused", steps=200)
    assert "flow is not trained at all" in late_terms(build_schedule(config, 100), config)
    assert "regression at step 1000" in late_terms(build_schedule(config, 100), config)
    assert late_terms(build_schedule(config, 19), config) == ""
    content_only = dataclasses.replace(config, stream=dataclasses.replace(config.stream, pair_batch=0))
    assert late_terms(build_schedule(content_only, 100), content_only) == ""
    now = TermConfig(weight=1.0)
    late_vc = dataclasses.replace(
        config, terms=TermsConfig(regression=now, reconstruction=now, smoothness=now, cycle=now)
    )
    said = late_terms(build_schedule(late_vc, 100), late_vc)
    assert "vc at step 1000" in said and "not trained at all" not in said
