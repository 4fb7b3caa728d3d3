"""The paper's table: its columns are scores that our evaluations give."""

from __future__ import annotations

import pytest

from mcjepa.data_prep.corpora import FLOW_SETS, SEGMENTATION_SETS, VOS_SETS
from mcjepa.evals.report.paper_table import COLUMNS, PAPER

SETS = {"flow": FLOW_SETS, "probe": SEGMENTATION_SETS, "finetune": SEGMENTATION_SETS, "vos": VOS_SETS}


@pytest.mark.parametrize("score", [column.score for column in COLUMNS])
def test_a_column_names_a_kind_and_a_set_that_exist(score: str) -> None:
    kind, _, name = score.partition("/")
    assert name in SETS[kind]


def test_rows_have_a_cell_a_column() -> None:
    assert {len(values) for _, values in PAPER} == {len(COLUMNS)}
