"""Flight records, bad steps in a row, spikes."""

from __future__ import annotations

import json
import math
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from small_steps import made_up_batch

from mcjepa.model.mcjepa import JointLoss
from mcjepa.pipeline.errors import RunError, UsageError
from mcjepa.pipeline.monitor.flight_record import read_record, state_of
from mcjepa.pipeline.monitor.guards import SpikeDetector, StepGuard, StepSetting
from mcjepa.pipeline.settings.monitor import GuardConfig, SpikeConfig
from mcjepa.pipeline.step.step import StepResult, random_state, restore_random_state

SETTING = StepSetting({"cycle": 0.2}, {"encoder": 1e-3}, {"seed": 7, "world_size": 1})


def outcome(bad: str, loss: float = 1.0, alarm: bool = False) -> StepResult:
    output = JointLoss(torch.tensor(loss), {"cycle": torch.tensor(math.nan if bad else loss)}, {})
    return StepResult(bad, False, alarm, output, {}, {"loss": loss}, random_state(torch.device("cpu")))


def test_bad_steps_are_recorded_and_counted_in_a_row_only(tmp_path: Path) -> None:
    guard = StepGuard(tmp_path, 0, 2)
    batch = made_up_batch(3)
    assert batch.views
    batch.views.view1[2, 0, 1, 1] = math.inf
    guard.check(batch, outcome("batch"), SETTING)
    guard.check(made_up_batch(4), outcome(""), SETTING)
    guard.check(made_up_batch(5), outcome("loss"), SETTING)
    with pytest.raises(RunError, match="2 steps in a row had a non-finite gradient"):
        guard.check(made_up_batch(6), outcome("gradient"), SETTING)
    record = json.loads((tmp_path / "step-000000003-rank-00000.json").read_text())
    assert (record["reason"], record["seed"], record["weights"]) == ("batch", 7, {"cycle": 0.2})
    assert record["samples"]["views"][2] == "s3r0n2" and record["terms"] == {"cycle": "nan"}
    assert record["finite_samples"] == {"pairs": [True, True], "views": [True, True, False, True]}
    assert guard.total == 3


def test_records_wait_for_room_while_the_disk_is_full(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    guard, place = StepGuard(tmp_path / "bad_steps", 0, 9), tmp_path / "bad_steps"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))  # no file may grow: a real failure
    try:
        guard.check(made_up_batch(3), outcome("batch"), SETTING)
        guard.check(made_up_batch(4), outcome(""), SETTING)
        guard.check(made_up_batch(5), outcome("loss"), SETTING)
        assert guard.total == 2 and not list(place.glob("*"))
        StepGuard(tmp_path / "lost", 0, 9).check(made_up_batch(3), outcome("batch"), SETTING)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    guard.check(made_up_batch(6), outcome(""), SETTING)
    assert [path.name[:14] for path in sorted(place.iterdir())] == ["step-000000003", "step-000000005"]
    assert "2 files wait in memory" in caplog.text


def test_skips_of_the_loss_scaler_are_no_bad_steps(tmp_path: Path) -> None:
    guard = StepGuard(tmp_path, 0, 1)
    guard.check(made_up_batch(0), outcome("scale"), SETTING)
    assert (guard.total, guard.scale_skips, list(tmp_path.iterdir())) == (0, 1, [])


def test_the_random_state_of_a_record_draws_the_same_numbers(tmp_path: Path) -> None:
    result = outcome("loss")
    drawn = torch.rand(5)
    StepGuard(tmp_path, 1, 9).check(made_up_batch(3), result, SETTING)
    record = read_record(tmp_path / "step-000000003-rank-00000.json", rank=1)  # names the step; the rank is ours
    restore_random_state(state_of(record), torch.device("cpu"))
    assert torch.equal(torch.rand(5), drawn)


def test_a_file_that_is_no_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(UsageError, match="version None"):
        read_record(tmp_path / "a.json", 0)
    with pytest.raises(UsageError, match="cannot be read"):
        read_record(tmp_path / "b.json", 0)


def test_a_rise_is_a_spike_and_noise_or_a_fall_is_none() -> None:
    rng = np.random.default_rng(0)
    detector = SpikeDetector(SpikeConfig(window=50, least=20, z=8.0))
    for value in 2.0 + 0.1 * rng.standard_normal(100):
        assert detector.look({"loss": value, "vc": 1.0}) == []
    assert detector.look({"loss": 0.01, "vc": 1.0}) == []
    (spike,) = detector.look({"loss": 4.0, "vc": 1.0})
    assert spike.name == "loss" and spike.z == pytest.approx(20, rel=0.4)
    (other,) = detector.look({"loss": 2.0, "vc": 1.1})
    assert other.name == "vc"


def test_the_window_starts_anew_when_a_term_begins() -> None:
    detector = SpikeDetector(SpikeConfig(window=10, least=5, z=8.0))
    for _ in range(10):
        detector.look({"loss": 1.0})
    assert detector.look({"loss": 50.0, "cycle": 1.0}) == []


def test_steps_of_pairs_and_of_views_that_alternate_have_windows_of_their_own() -> None:
    detector = SpikeDetector(SpikeConfig(window=10, least=5, z=8.0))
    pairs, views = {"loss": 1.0, "cycle": 1.0}, {"loss": 30.0, "vc": 30.0}
    for _ in range(6):
        assert detector.look(pairs) == detector.look(views) == []
    assert [spike.name for spike in detector.look({**views, "vc": 60.0})] == ["vc"]
    assert [spike.name for spike in detector.look({"loss": 30.0, "cycle": 1.0})] == ["loss"]


def test_a_spike_leaves_a_record_and_ends_the_run_where_asked(tmp_path: Path) -> None:
    spikes = SpikeConfig(window=10, least=5, z=8.0, action="stop")
    guard = StepGuard(tmp_path, 0, 3, GuardConfig(spikes=spikes))
    for step in range(6):
        guard.check(made_up_batch(step), outcome("", 1.0), SETTING)
    assert not guard.alarm
    guard.check(made_up_batch(6), outcome("", 90.0), SETTING)
    assert "step 6 had a spike" in guard.alarm
    assert json.loads((tmp_path / "step-000000006-rank-00000.json").read_text())["reason"] == "spike"
    with pytest.raises(UsageError, match="step 7 was not taken"):
        guard.check(made_up_batch(7), outcome("", 1.0, alarm=True), SETTING)
