"""Kill -9 of every kind of process of a job: the finished dataset is the undisturbed one.

One round a kind here; `benchmarks/data_prep/prep_kill_rounds.py --full` runs twenty.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from mcjepa.data_prep.job import run_prep
from mcjepa.data_prep.settings import PrepConfig
from tests.rounds.kill_rounds import VICTIMS, TwoNodes, dataset, make_corpus, run_round


@pytest.mark.slow
def test_a_killed_job_finishes_with_the_same_dataset(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    whole = run_prep(PrepConfig(root=str(tmp_path / "whole"), datasets={"clips": dataset(corpus)}, workers=1))
    with TwoNodes() as nodes:
        rounds = [run_round(seed, nodes, corpus, tmp_path / str(seed)) for seed in range(len(VICTIMS))]
    assert [r.problems for r in rounds] == [()] * len(rounds)
    assert {r.dataset_id for r in rounds} == {whole.datasets[0].dataset_id}
    assert any(r.killed for r in rounds)
