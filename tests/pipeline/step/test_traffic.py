"""How much a step says to other ranks and reads on the host, counted at the calls; before in brackets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_steps import finish_ranks, start_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

# Rows of embeddings of all ranks, features, two views and bytes: what is gathered, once and on the way there alone.
ROWS, FEATURES = 4, 64


@pytest.fixture(scope="module", params=[2, 3])
def traffic(request: pytest.FixtureRequest) -> tuple[int, list[dict[str, Any]]]:
    """Number of ranks, and what each of them counted."""
    started = start_ranks(Path(__file__).with_name("traffic_ranks.py"), request.param)
    answers = finish_ranks(started, 250)
    assert [process.returncode for process in started] == [0] * request.param, answers[0][1]
    return request.param, [json.loads(out.splitlines()[-1]) for out, _ in answers]


def test_losses_share_two_sums_and_a_backward_pass_sends_those_of_norms_alone(
    traffic: tuple[int, list[dict[str, Any]]],
) -> None:
    """Collectives of the model: 9 (24 before) with two norms over ranks in the expander, 4 (28) with none."""
    for rank in traffic[1]:
        for stage in range(4):
            assert [name for _, name, _ in rank[f"positions {stage}"]["calls"]] == [
                *["all_reduce"] * 4,  # mean and variance of each norm
                "all_gather_into_tensor",  # VICReg's rows
                *["all_reduce"] * 2,  # all losses; then what is centred
                *["all_reduce"] * 2,  # backward through each norm
            ]
            assert [name for _, name, _ in rank[f"images {stage}"]["calls"]] == [
                "all_gather_into_tensor", "all_reduce", "all_gather_into_tensor", "all_reduce",
            ]  # fmt: skip


def test_embeddings_travel_once(traffic: tuple[int, list[dict[str, Any]]]) -> None:
    """On two ranks 6,596 bytes (11,632 before) and 18,196 (35,296): no gradient of what was gathered is sent."""
    ranks, counts = traffic
    for rank in counts:
        for name, count in rank.items():
            sizes = [size for _, kind, size in count["calls"] if kind == "all_gather_into_tensor"]
            assert sizes[0] == ranks * ROWS * 2 * FEATURES * 4, name
            assert ranks > 2 or count["bytes"]["model"] == (6596 if "positions" in name else 18_196), name


def test_a_step_agrees_once_and_reads_one_row_on_the_host(traffic: tuple[int, list[dict[str, Any]]]) -> None:
    """On CPUs, where images are looked at before the model sees them, once more each; 2 reads (4 two rounds ago)."""
    for rank in traffic[1]:
        for name, count in rank.items():
            assert count["reads"]["pipeline"] == count["collectives"]["pipeline"] == 2, name
            if not name.endswith("3"):  # ZeRO 3 reads what it holds itself, on the host
                assert count["reads"].get("deepspeed", 0) == (0 if name.endswith("0") else 7), name
