"""Real engines on 1, 2 and 4 ranks: every ZeRO stage gives the same losses, holds what the ZeRO paper says, and resumes
the checkpoint of any other stage and world."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from mcjepa.cluster.local import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
TASKS = {
    # Stage 3 replaces torch's `linear` in a whole process, and for good: bits of the others are compared before it.
    2: ["train:0", "train:1", "resume:1:1", "train:2", "train:3", "resume:3:3", "resume:1:3", "resume:3:0", "bf16:2",
        "parts:1:0", "parts:2:0", "parts:2:2"],
    1: ["resume:1:2", "resume:3:0", "few:0"],
    4: ["bytes:1", "bytes:2", "bytes:3", "resume:1:3", "few:0", "few:1", "few:2", "few:3"],
}  # fmt: skip


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What every task has shown, by `TASK-RANKS`; one start for each number of ranks."""
    folder = tmp_path_factory.mktemp("engines")
    for ranks, tasks in TASKS.items():
        code = run_ranks([sys.executable, "-m", "tests.pipeline.engine_driver", str(folder), *tasks], ranks)
        assert code == 0
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def test_all_stages_give_the_same_losses(shown: dict[str, Any]) -> None:
    expected = shown["train:0-2"]["losses"]
    assert len(expected) == 30 and expected[-1] != expected[0]
    for name in ("train:1-2", "train:2-2", "train:3-2"):
        assert shown[name]["losses"] == pytest.approx(expected, rel=1e-4), name


def test_the_gradient_norm_is_told_in_every_stage(shown: dict[str, Any]) -> None:
    expected = shown["train:0-2"]["norm"]
    assert expected > 0
    assert all(shown[f"train:{stage}-2"]["norm"] == pytest.approx(expected, rel=1e-2) for stage in (1, 2, 3))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_branch_that_has_not_begun_counts_no_updates(shown: dict[str, Any], stage: int) -> None:
    """The driver lets the estimator begin at step 4 of 30."""
    updates = shown[f"train:{stage}-2"]["updates"]
    assert {updates[name] for name in ("estimator", "estimator-no-decay")} == {26.0}
    assert {updates[name] for name in ("encoder", "encoder-no-decay", "expander", "expander-no-decay")} == {30.0}


@pytest.mark.parametrize("name", ["train:0-2", "train:1-2", "train:2-2", "train:3-2", "bytes:1-4", "bytes:2-4",
                                  "bytes:3-4"])  # fmt: skip
def test_a_rank_holds_the_bytes_of_the_zero_papers_formulas(shown: dict[str, Any], name: str) -> None:
    """In fp32: 4 bytes a parameter, 4 its gradient, 8 its moments and, in ZeRO, 4 its fp32 copy; cut by stage."""
    stage, ranks = int(name[6]), int(name[-1])
    held = shown[name]["bytes"]
    numbers = held["numbers"]
    formula = {
        "parameters": 4 * numbers / (ranks if stage >= 3 else 1),
        "gradients": 4 * numbers / (ranks if stage >= 2 else 1),
        "optimizer": 12 * numbers / ranks if stage else 8 * numbers,
    }
    total = sum(formula.values())
    assert sum(held[part] for part in formula) == pytest.approx(total, rel=0.1)
    assert held["optimizer"] == pytest.approx(formula["optimizer"], rel=0.1)
    assert held["parameters"] == pytest.approx(formula["parameters"], rel=0.1)


@pytest.mark.parametrize("stage", [1, 3])
def test_the_same_world_and_stage_go_on_bit_for_bit(shown: dict[str, Any], stage: int) -> None:
    assert shown[f"resume:{stage}:{stage}-2"]["losses"] == shown[f"train:{stage}-2"]["losses"][10:]


@pytest.mark.parametrize("name", ["resume:1:3-2", "resume:3:0-2", "resume:1:2-1", "resume:3:0-1", "resume:1:3-4"])
def test_another_world_or_stage_goes_on_with_the_same_losses_for_twenty_steps(shown: dict[str, Any], name: str) -> None:
    assert shown[name]["losses"] == pytest.approx(shown["train:0-2"]["losses"][10:], rel=1e-4)


@pytest.mark.parametrize("stage", [0, 2])
def test_micro_batches_of_a_mean_over_samples_train_as_the_whole_batch(shown: dict[str, Any], stage: int) -> None:
    assert shown[f"parts:2:{stage}-2"]["losses"] == pytest.approx(shown["parts:1:0-2"]["losses"], rel=1e-4)


@pytest.mark.parametrize("name", ["parts:1:0-2", "parts:2:0-2", "parts:2:2-2"])
def test_a_micro_batch_that_is_not_finite_leaves_no_trace(shown: dict[str, Any], name: str) -> None:
    assert shown[name]["finite"] is False and shown[name]["kept"] is True


def test_bf16_trains(shown: dict[str, Any]) -> None:
    losses, exact = shown["bf16:2-2"]["losses"], shown["train:2-2"]["losses"]
    assert losses[0] == pytest.approx(exact[0], rel=0.05) and losses != exact[:5]
    assert all(0 < loss < float("inf") for loss in losses) and len(losses) == 5


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_ranks_without_pairs_leave_losses_and_gradients_what_they_are_on_one_rank(
    shown: dict[str, Any], stage: int
) -> None:
    alone, spread = shown["few:0-1"], shown[f"few:{stage}-4"]
    assert spread["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    for ours, expected in zip(spread["norms"], alone["norms"], strict=True):
        assert min(expected.values()) > 0 and ours == pytest.approx(expected, rel=1e-5)
