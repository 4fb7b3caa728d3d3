"""What `prep plan` says before any work: counts, a forecast by a timed probe, and what would be reused."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcjepa.data_prep.plan.forecast import InputSampler, plan_prep
from mcjepa.data_prep.plan.listing import list_inputs
from mcjepa.data_prep.settings import CorpusConfig, FiltersConfig, LeakageFilter, PrepConfig


def test_a_probe_of_all_inputs_knows_the_samples_and_writes_nothing(videos: Path, clips_of, tmp_path: Path) -> None:
    config = PrepConfig(root=str(tmp_path / "d"), datasets={"clips": clips_of(videos)})
    plan = plan_prep(config, probe=True)[0]
    assert (plan.state, plan.summary.inputs, plan.summary.shards, plan.reused_shards) == ("new", 3, 2, 0)
    assert plan.estimate is not None
    assert (plan.estimate.probed, plan.estimate.samples) == (3, 5 + 8 + 11)
    assert plan.estimate.bytes > 1000 and plan.estimate.seconds > 0
    assert not (tmp_path / "d").exists()


def test_finished_shards_of_a_begun_dataset_are_counted_as_reused(
    videos: Path, clips_of, build, tmp_path: Path
) -> None:
    settings = clips_of(videos, inputs_per_shard=1)
    build(tmp_path / "d" / "clips", settings)
    config = PrepConfig(root=str(tmp_path / "d"), datasets={"clips": settings})
    assert plan_prep(config, probe=True)[0].estimate is None
    (tmp_path / "d" / "clips" / "manifest.json").unlink()
    (tmp_path / "d" / "clips" / "shards" / "clip-000001.json").unlink()
    plan = plan_prep(config)[0]
    assert (plan.state, plan.reused_shards, plan.estimate) == ("begun", 2, None)


def test_a_guarded_dataset_can_be_probed_before_its_index_is_made(videos: Path, clips_of, tmp_path: Path) -> None:
    guarded = LeakageFilter(mode="drop", sets=(CorpusConfig(reader="videos", path=str(videos)),))
    settings = clips_of(videos, filters=FiltersConfig(leakage=guarded))
    (plan,) = plan_prep(PrepConfig(root=str(tmp_path / "d"), datasets={"clips": settings}), probe=True)
    assert plan.estimate is not None and plan.estimate.samples == 5 + 8 + 11


@pytest.mark.parametrize("wanted", [1, 2, 8])
def test_the_sampler_passes_all_inputs_on_and_keeps_the_same_few(videos: Path, clips_of, wanted: int) -> None:
    kept = []
    for _ in range(2):
        sampler = InputSampler(wanted)
        inputs = list(list_inputs(clips_of(videos)))
        assert list(sampler.watch(iter(inputs))) == inputs
        kept.append([planned.name for planned in sampler.kept])
    assert kept[0] == kept[1] and len(kept[0]) == min(wanted, 3)
