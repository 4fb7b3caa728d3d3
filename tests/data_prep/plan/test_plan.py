"""Plans are pure: the digest follows names, sizes and parameters, not places or limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mcjepa.data_prep.corpora.items import Input
from mcjepa.data_prep.plan.plan import (
    PlanDigest,
    PlannedInput,
    PlanSummary,
    corpus_prefix,
    differing_inputs,
    differing_parameters,
    input_from_line,
    input_to_line,
    sample_key,
    split_into_shards,
)
from mcjepa.data_prep.settings import CorpusConfig, CutFilter, DatasetConfig, FiltersConfig

CONFIG = DatasetConfig(kind="clip", corpora=(CorpusConfig(reader="videos", path="/a"),), inputs_per_shard=2)


def planned(name: str, size: int = 10, root: str = "/a") -> PlannedInput:
    return PlannedInput(f"0-videos/{name}", Input(name, f"{root}/{name}", "video"), size)


def plan(config: DatasetConfig, *inputs: PlannedInput, decoder: str = "decord 1") -> PlanSummary:
    digest = PlanDigest(config, decoder, "jpeg 1")
    for item in inputs:
        digest.add(item)
    return digest.summary()


def test_consecutive_inputs_make_a_shard() -> None:
    shards = list(split_into_shards([planned(n) for n in "abcde"], CONFIG))
    assert [s.name for s in shards] == ["clip-000000", "clip-000001", "clip-000002"]
    assert [[i.item.name for i in s.inputs] for s in shards] == [["a", "b"], ["c", "d"], ["e"]]
    assert plan(CONFIG, *(planned(n) for n in "abcde")).shards == 3


def test_the_digest_does_not_depend_on_places_or_limits() -> None:
    elsewhere = replace(CONFIG, corpora=(CorpusConfig(reader="videos", path="/b"),), timeout_s=9, memory_cap_mib=99)
    assert plan(CONFIG, planned("a")) == plan(elsewhere, planned("a", root="/b"))


@pytest.mark.parametrize(
    "other",
    [
        plan(CONFIG, planned("b")),
        plan(CONFIG, planned("a", size=11)),
        plan(CONFIG, planned("a"), planned("b")),
        plan(CONFIG),
        plan(replace(CONFIG, quality=90), planned("a")),
        plan(replace(CONFIG, inputs_per_shard=3), planned("a")),
        plan(CONFIG, planned("a"), decoder="decord 2"),
    ],
)
def test_the_digest_depends_on_names_sizes_parameters_and_versions(other: PlanSummary) -> None:
    assert other.plan_digest != plan(CONFIG, planned("a")).plan_digest


def test_frames_have_no_meaning_for_images() -> None:
    images = replace(CONFIG, kind="image")
    assert plan(images).plan_digest == plan(replace(images, frames=5, frame_step=3)).plan_digest


def test_differences_are_said_in_words() -> None:
    old, new = plan(CONFIG, planned("a")), plan(replace(CONFIG, quality=90), planned("a"), decoder="decord 2")
    assert differing_parameters(old, new) == ["decoder version: decord 1 -> decord 2", "quality: 95 -> 90"]
    cut = replace(CONFIG, filters=FiltersConfig(cut=CutFilter(mode="drop")))
    assert differing_parameters(old, plan(cut, planned("a"))) == ["filters.cut.mode: off -> drop"]
    a, b, c = planned("a"), planned("b"), planned("c")
    assert differing_inputs([a, b], [a, b]) == ""
    assert differing_inputs([a, b], [a, c]) == "input 2 was 0-videos/b, now is 0-videos/c"
    assert differing_inputs([a], [a, c]) == "the list ended before input 2, now there is 0-videos/c"
    assert differing_inputs([a, b], [a]) == "input 2 was 0-videos/b, now the list ends there"
    assert differing_inputs([a], [planned("a", 11)]) == "0-videos/a had 10 bytes, now has 11"


def test_keys_are_unique_by_input_and_sorted_by_number() -> None:
    names = [f"{corpus_prefix(c, 'videos', r)}/a.mp4" for c in (0, 1) for r in (0, 1)]
    keys = [sample_key(name, n) for name in names for n in range(3)]
    assert len(set(keys)) == 12 and keys[:3] == sorted(keys[:3])
    assert all("." not in key and "/" not in key for key in keys)


def test_an_input_survives_its_line() -> None:
    item = PlannedInput("0-davis/dog", Input("dog", "/d/dog", "frames", ("0.jpg", "1.jpg")), 77)
    again = input_from_line(input_to_line(item))
    assert (again.name, again.bytes, again.item.uri, again.item.members) == (
        "0-davis/dog",
        77,
        "/d/dog",
        item.item.members,
    )
