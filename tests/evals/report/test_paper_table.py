"""The paper's table: its columns are scores that our evaluations give."""

from __future__ import annotations

import dataclasses
import json

import pytest

from mcjepa.data_prep.corpora import FLOW_SETS, SEGMENTATION_SETS, VOS_SETS
from mcjepa.evals.cards import Card, Score
from mcjepa.evals.finetune.settings import FinetuneConfig
from mcjepa.evals.probe.settings import ProbeConfig, protocol_settings
from mcjepa.evals.report.paper_table import COLUMNS, PAPER, our_row
from mcjepa.evals.vos.settings import VosConfig
from mcjepa.pipeline.recipe.recipe import load_recipe

SETS = {"flow": FLOW_SETS, "probe": SEGMENTATION_SETS, "finetune": SEGMENTATION_SETS, "vos": VOS_SETS}


@pytest.mark.parametrize("score", [column.score for column in COLUMNS])
def test_a_column_names_a_kind_and_a_set_that_exist(score: str) -> None:
    kind, _, name = score.partition("/")
    assert name in SETS[kind]


def test_the_recipe_of_the_paper_fills_every_column_of_its_kinds() -> None:
    """Segmentation of other sets than VOC, and fine-tuning, are evaluations of their own."""
    settings = load_recipe("paper", [])[0].eval
    assert settings and settings.flow and settings.probe and settings.vos
    given = {f"flow/{name}" for name in settings.flow.sets}
    given |= {f"probe/{settings.probe.set}", f"vos/{settings.vos.set}"}
    apart = ("finetune/", "probe/cityscapes", "probe/ade20k")
    assert {column.score for column in COLUMNS if not column.score.startswith(apart)} <= given


@pytest.mark.parametrize("kind", ["flow", "probe", "vos"])
def test_no_two_names_of_scores_are_of_one_reader(kind: str) -> None:
    """Scores of one set under two names never stand beside each other."""
    readers = [(getattr(r, "func", r), getattr(r, "args", ())) for r in SETS[kind].values()]
    assert all(readers.count(reader) == 1 for reader in readers)


def test_kittis_column_weighs_pairs_equally_as_published_numbers_do() -> None:
    """Two pairs: 1 px over 100 known pixels and 3 px over 300. The field's programs report 2 px, pooled it is 2.5."""
    facts = {"split": "", "root": "", "frames": 200, "resolution": "", "masks": "", "aggregation": ""}
    metrics = {"epe": 2.5, "epe_mean_of_pairs": 2.0}
    card = Card(data_set="kitti2015", **facts)  # type: ignore[arg-type]
    cells = our_row([Score(name="flow/kitti2015", metrics=metrics, card=card)])
    assert [cell.value for cell in cells if cell.value == cell.value] == [2.0]


def _score(name: str, frames: int, config: object) -> Score:
    facts = {"split": "", "root": "", "frames": frames, "resolution": "", "masks": "", "aggregation": ""}
    settings = json.loads(json.dumps(dataclasses.asdict(config)))  # type: ignore[call-overload]  # as read from a file
    card = Card(data_set=name.partition("/")[2], config=settings, **facts)  # type: ignore[arg-type]
    return Score(name=name, metrics={"miou": 50.0, "jf": 0.5}, card=card)


@pytest.mark.parametrize(
    ("name", "frames", "config", "note"),
    [
        ("probe/voc2012", 1449, ProbeConfig(set="voc2012", **protocol_settings("vicregl-voc")), ""),
        (
            "probe/voc2012",
            1449,
            ProbeConfig(set="voc2012", **protocol_settings("cached")),
            "another protocol: augment none, norm statistics, steps 2000, …",
        ),
        (
            "probe/ade20k",
            2000,
            ProbeConfig(set="ade20k", max_train=9, **protocol_settings("vicregl-ade20k")),
            "another protocol: max_train 9",
        ),
        ("finetune/ade20k", 2000, FinetuneConfig(), ""),
        ("vos/davis2017", 1939, VosConfig(), ""),
        ("vos/davis2017", 1939, VosConfig(top_k=9), "another protocol: top_k 9"),
    ],
)
def test_a_number_by_another_protocol_than_the_published_ones_says_so(
    name: str, frames: int, config: object, note: str
) -> None:
    (cell,) = (cell for cell in our_row([_score(name, frames, config)]) if cell.value == 50.0)
    assert cell.note == note


def test_rows_have_a_cell_a_column() -> None:
    assert {len(values) for _, values in PAPER} == {len(COLUMNS)}
