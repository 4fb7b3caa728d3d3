"""The examples in the evaluations' docstrings give what they print."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize(
    "module",
    [
        "mcjepa.evals.progress",
        "mcjepa.data_prep.card.charts",
        "mcjepa.evals.report.content",
        "mcjepa.evals.flow.metrics",
        "mcjepa.evals.flow.metrics",
        "mcjepa.evals.flow.pairs",
        "mcjepa.evals.probe.metrics",
        "mcjepa.evals.finetune.data",
        "mcjepa.evals.finetune.model",
        "mcjepa.evals.finetune.train",
        "mcjepa.evals.classification.heads",
        "mcjepa.evals.classification.heads",
        "mcjepa.evals.probe.settings",
        "mcjepa.evals.probe.settings",
        "mcjepa.evals.probe.tiles",
    ],
)
def test_examples_of_the_module_hold(module: str) -> None:
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted > 0 and result.failed == 0
