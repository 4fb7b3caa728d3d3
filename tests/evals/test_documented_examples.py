"""The examples in the evaluations' docstrings give what they print."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize(
    "module",
    [
        "mcjepa.evals.progress",
        "mcjepa.evals.report_charts",
        "mcjepa.evals.report_content",
        "mcjepa.evals.flow.metrics",
        "mcjepa.evals.flow.regions",
        "mcjepa.evals.flow.resizing",
        "mcjepa.evals.segmentation.metrics",
        "mcjepa.evals.segmentation.finetune_batches",
        "mcjepa.evals.segmentation.finetune_model",
        "mcjepa.evals.segmentation.finetune_train",
        "mcjepa.evals.classification.knn",
        "mcjepa.evals.classification.linear",
        "mcjepa.evals.segmentation.config",
        "mcjepa.evals.segmentation.protocols",
        "mcjepa.evals.segmentation.tiles",
    ],
)
def test_examples_of_the_module_hold(module: str) -> None:
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted > 0 and result.failed == 0
