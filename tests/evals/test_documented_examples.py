"""The examples in the evaluations' docstrings give what they print."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize(
    "module",
    [
        "evals.progress",
        "evals.report_charts",
        "evals.report_content",
        "evals.flow.metrics",
        "evals.flow.regions",
        "evals.flow.resizing",
        "evals.segmentation.metrics",
        "evals.segmentation.finetune_batches",
        "evals.segmentation.finetune_model",
        "evals.segmentation.finetune_train",
        "evals.classification.knn",
        "evals.classification.linear",
        "evals.segmentation.config",
        "evals.segmentation.protocols",
        "evals.segmentation.tiles",
    ],
)
def test_examples_of_the_module_hold(module: str) -> None:
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted > 0 and result.failed == 0
