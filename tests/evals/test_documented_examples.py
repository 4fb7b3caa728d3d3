"""The examples in the docstrings of evaluations and of their pages' charts give what they print."""

from __future__ import annotations

import doctest
import importlib

import pytest

from tests.rooms import REPOSITORY

MODULES = [
    ".".join(("mcjepa", *path.relative_to(REPOSITORY).with_suffix("").parts))
    for folder in ("evals", "data_prep/card")
    for path in sorted((REPOSITORY / folder).rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


def test_there_are_examples() -> None:
    assert len(MODULES) >= 12


@pytest.mark.parametrize("module", MODULES)
def test_examples_of_the_module_hold(module: str) -> None:
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted > 0 and result.failed == 0
