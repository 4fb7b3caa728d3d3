"""A bad step leaves no trace on any rank, whatever the ZeRO stage; norms of the branches' gradients."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from small_steps import finish_ranks, start_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.parametrize(("precision", "ranks", "parts"), [("fp32", 2, 1), ("bf16", 1, 1), ("fp32", 2, 2)])
def test_bad_steps_are_skipped_by_all_ranks_and_nothing_of_them_stays(precision: str, ranks: int, parts: int) -> None:
    started = start_ranks(Path(__file__).with_name("bad_step_ranks.py"), ranks, precision, str(parts))
    answers = finish_ranks(started, 250)
    assert [process.returncode for process in started] == [0] * ranks, answers[0][1] + answers[-1][1]
    seen = [json.loads(out.splitlines()[-1]) for out, _ in answers]
    for rank in seen:
        for stage, report in rank.items():
            assert report["good"] == "", stage
            for kind in ("batch", "loss", "gradient"):
                assert report[kind] == {"bad": kind, "untouched": True}, (stage, kind)
            assert report["next"]["bad"] == "" and report["next"]["moved"] and report["next"]["finite"], stage
            # On CPUs images are agreed on first; then flags, norm, loss and terms are told at once, behind the update.
            assert report["reads"]["pipeline"] == 2, (stage, report["reads"])
            assert report["collectives"].get("pipeline", 0) == (2 if ranks > 1 else 0), (stage, report["collectives"])
            whole = math.sqrt(sum(norm**2 for norm in report["norms"].values()))
            assert set(report["norms"]) == {"encoder", "estimator", "expander"}
            assert whole == pytest.approx(report["norm"], rel=1e-4), stage
            assert report["norms"] == pytest.approx(rank["0"]["norms"], rel=1e-3 if precision == "fp32" else 0.1)
            # A bf16 number has 8 bits, and the stages add up its gradients in different orders.
            same = 1e-3 if precision == "fp32" else 1e-2
            assert report["next"]["loss"] == pytest.approx(rank["0"]["next"]["loss"], rel=same)
