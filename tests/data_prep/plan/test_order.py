"""The order of inputs is a seeded permutation that depends on names alone, in bounded memory."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from mcjepa.data_prep.corpora.items import Input
from mcjepa.data_prep.plan import order
from mcjepa.data_prep.plan.files import begin_plan, read_plan_inputs
from mcjepa.data_prep.plan.order import ordered_inputs
from mcjepa.data_prep.plan.plan import PlannedInput
from mcjepa.data_prep.settings import CorpusConfig, DatasetConfig
from mcjepa.data_prep.storage import open_store

CONFIG = DatasetConfig(kind="image", corpora=(CorpusConfig(reader="images"),))
INPUTS = [
    PlannedInput(f"0-images/{n // 50}/{n}.jpg", Input(f"{n // 50}/{n}.jpg", f"/c/{n}.jpg", "image", bytes=n), n)
    for n in range(1000)
]


def names(inputs: list[PlannedInput], scratch: Path, config: DatasetConfig = CONFIG) -> list[str]:
    return [p.name for p in ordered_inputs(inputs, config, scratch)]


def test_the_order_is_a_permutation_by_names_and_seed(tmp_path: Path) -> None:
    found = list(ordered_inputs(INPUTS, CONFIG, tmp_path))
    assert sorted(found, key=lambda p: p.bytes) == INPUTS and found != INPUTS
    mixed = random.Random(0).sample(INPUTS, len(INPUTS))
    assert names(mixed, tmp_path) == [p.name for p in found]
    fewer = names(INPUTS[:-7], tmp_path)
    gone = {p.name for p in INPUTS[-7:]}
    assert fewer == [p.name for p in found if p.name not in gone]
    other = DatasetConfig(kind="image", corpora=CONFIG.corpora, order_seed=1)
    assert names(INPUTS, tmp_path, other) != [p.name for p in found]
    listed = DatasetConfig(kind="image", corpora=CONFIG.corpora, order="listed")
    assert names(INPUTS, tmp_path, listed) == [p.name for p in INPUTS]


@pytest.mark.parametrize("most", [1, 3, 100, 999])
def test_sorting_by_files_gives_the_same_order_and_leaves_none(
    most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = names(INPUTS, tmp_path)
    monkeypatch.setattr(order, "MOST_IN_MEMORY", most)
    some = INPUTS if most > 50 else INPUTS[:60]
    kept = {p.name for p in some}
    assert names(some, tmp_path) == [name for name in expected if name in kept]
    assert list(tmp_path.iterdir()) == []


def test_a_plan_has_the_order_and_its_digest_is_that_of_the_list(tmp_path: Path) -> None:
    first = begin_plan(open_store(str(tmp_path / "a")), CONFIG, INPUTS)
    again = begin_plan(open_store(str(tmp_path / "b")), CONFIG, INPUTS)
    assert first == again
    assert (tmp_path / "a/plan.jsonl.gz").read_bytes() == (tmp_path / "b/plan.jsonl.gz").read_bytes()
    stored = list(read_plan_inputs(open_store(str(tmp_path / "a"))))
    assert [p.name for p in stored] == names(INPUTS, tmp_path)
    of_class = [p.name.split("/")[1] for p in stored[:100]]
    assert len(set(of_class)) == 20  # every class of 20 is met at once
