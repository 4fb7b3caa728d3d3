"""Kill -9 of a rank during a step and during an upload; a stop signal, then another world size.

`benchmarks/pipeline/train_kill_rounds.py --full` runs ten rounds.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.rounds.train_kills import STEPS, KillRound, TrainingRun, make_recipe, run_round

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> TrainingRun:
    """An uninterrupted run."""
    root = tmp_path_factory.mktemp("kills")
    run = TrainingRun(make_recipe(root), str(root / "whole"), root / "whole-files")
    assert run.finish() == 0, run.log.read_text()
    assert sorted(run.losses()) == list(range(1, STEPS + 1))
    return run


def round_that_hits(whole: TrainingRun, moment: str, place: str, files: Path) -> KillRound:
    """A round in which a rank was killed: a save of so small a model may be over before it is noticed."""
    for seed in range(4, 8):
        shown = run_round(seed, TrainingRun(whole.recipe, f"{place}/{seed}", files / str(seed)), moment)
        assert shown.problem == "" and shown.losses == whole.losses()
        if shown.killed_rank >= 0 and shown.starts >= 2:
            return shown
    raise AssertionError(f"no rank was met in its {moment} in four rounds")


def test_a_run_whose_rank_is_killed_while_saving_ends_with_the_same_losses(whole: TrainingRun, tmp_path: Path) -> None:
    round_that_hits(whole, "save", str(tmp_path / "runs"), tmp_path / "files")


def test_the_same_where_checkpoints_are_written_in_the_background(whole: TrainingRun, tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, checkpoint={"background": True})
    own = TrainingRun(recipe, whole.location, tmp_path / "files")
    own.losses = whole.losses  # type: ignore[method-assign]
    round_that_hits(own, "save", str(tmp_path / "runs"), tmp_path / "files")


def test_a_run_on_s3_moves_to_another_machine_when_a_rank_is_killed_while_uploading(
    whole: TrainingRun, tmp_path: Path, s3: str
) -> None:
    round_that_hits(whole, "upload", s3, tmp_path / "files")


def test_a_stop_signal_to_one_rank_saves_and_another_world_and_stage_go_on(whole: TrainingRun, tmp_path: Path) -> None:
    run = TrainingRun(whole.recipe, str(tmp_path / "run"), tmp_path / "files")
    run.start("train.checkpoint.every_steps=100")
    assert run.wait_for(lambda: run.steps_logged() >= 2, 0.02)
    run.ranks()[1].send_signal(signal.SIGUSR1)
    assert run.wait() == 130, run.log.read_text()
    done = len(run.losses())
    assert 2 <= done < STEPS and "the same command continues it" in run.log.read_text()
    assert run.finish("train.engine.zero_stage=3", ranks=1) == 0, run.log.read_text()
    assert f"from step {done}" in run.log.read_text()
    found, expected = run.losses(), whole.losses()
    assert all(found[step] == pytest.approx(expected[step], rel=1e-4) for step in expected)
