"""What a person reads of a running stage: lines by time with the time that is left, columns, scores in groups."""

from __future__ import annotations

import pytest

from mcjepa.evals.cards import Card, Score
from mcjepa.pipeline.cli import output
from mcjepa.pipeline.cli.evaluate import score_table


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    found = _Clock()
    monkeypatch.setattr(output.time, "perf_counter", found)
    return found


def test_slow_steps_are_told_by_time_with_what_is_left(clock: _Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """Twelve steps of 20 s: the first line in the first second, then one every 20 s, none without the time left."""
    with output.StageProgress("train") as progress:
        for step in range(13):
            progress.update("steps", step, 12, columns={"loss": f"{step / 10:.3f}", "s/step": "20.00"} if step else {})
            clock.now += 20.0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "[    0 s] train  steps 0/12"
    assert lines[1].split() == ["loss", "s/step"]
    assert lines[2].split() == ["[", "20", "s]", "train", "steps", "1/12", "0.100", "20.00", "4", "min", "left"]
    assert lines[-2].endswith("20 s left") and lines[-1].split()[-3:] == ["12/12", "1.200", "20.00"]
    assert len(lines) == 14
    ends = {line.index(word) + len(word) for line, word in zip(lines[2:4], ("0.100", "0.200"), strict=True)}
    assert ends == {lines[1].index("loss") + len("loss")}


def test_quick_steps_are_not_all_told(clock: _Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with output.StageProgress("prep") as progress:
        for step in range(1001):
            progress.update("shards", step, 1000)
            clock.now += 0.1
    lines = capsys.readouterr().err.splitlines()
    assert 10 <= len(lines) <= 12 and lines[1].endswith("90 s left") and lines[-1].endswith("1000/1000")


def test_scores_are_shown_in_groups_beside_their_baselines() -> None:
    card = Card(data_set="s", split="val", root="/s", frames=42, unit="pairs", resolution="", masks="", aggregation="")
    own = {"epe": 2.0, "epe_s0_10": 1.5, "fl_all": 20.0}
    metrics = {**own, **{f"{name}_zero": 2 * value for name, value in own.items()}, "epe_dis_medium": 1.0}
    score = Score(name="flow/s", metrics=metrics, card=card, rivals=("zero", "dis_medium"))
    lines = score_table(score, brief=True).splitlines()
    assert lines[0] == "flow/s: 42 pairs (val)"
    assert lines[1].split() == ["model", "zero", "dis-medium"]
    assert lines[2].split() == ["epe", "2.0000", "4.0000", "1.0000"]
    assert lines[3].split() == ["fl_all", "20.0000", "40.0000", "-"]
    assert lines[4] == "  and 1 more in the report" and len(lines) == 5
    assert len(score_table(score, brief=False).splitlines()) == 5
