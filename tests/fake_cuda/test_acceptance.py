"""The checks of the first GPU go on after one that fails, hangs or is skipped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.pipeline import gpu_acceptance

pytestmark = pytest.mark.slow


def test_a_check_that_fails_or_hangs_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = {"environment": ("environment", 0.1), "operations": ("operations", 60), "no_waiting": ("model", 60)}
    monkeypatch.setattr(gpu_acceptance, "LIMITS_S", checks)
    summary = gpu_acceptance.run_all(tmp_path, tmp_path / "nothing-prepared", "cpu")
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    hung, failed, skipped = lines
    assert "did not end within 1 s" in hung["error"] and "FileNotFoundError" in failed["error"]
    assert skipped["status"] == "skipped" and "needs a GPU" in skipped["reason"]
    assert summary["failed"] == ["environment", "operations"] and summary["ratio"] == 0.0
