"""The corpus that the measurements of data preparation share: the packaged clips, or the sample data's, repeated."""

from __future__ import annotations

import os
from pathlib import Path

from mcjepa.data_prep.plan.files import begin_plan
from mcjepa.data_prep.plan.listing import list_inputs
from mcjepa.data_prep.plan.plan import PlanSummary, ShardPlan, split_into_shards
from mcjepa.data_prep.settings import CorpusConfig, DatasetConfig
from mcjepa.data_prep.storage import open_store
from mcjepa.data_prep.workers.shard_maker import ShardWork


def clip_dataset(shards: int, samples_per_input: int = 24) -> DatasetConfig:
    """Clips of the packaged videos (h264, 640x360 to 1280x720), every shard the same three of them."""
    return DatasetConfig(
        kind="clip",
        corpora=(CorpusConfig(reader="packaged-videos", repeat=shards),),
        max_samples_per_input=samples_per_input,
        inputs_per_shard=_inputs_of_a_corpus(),
    )


def plan_into(root: Path | str, config: DatasetConfig) -> tuple[ShardWork, list[ShardPlan], PlanSummary]:
    """Begin a dataset at `root`: what its tasks share, the tasks, and the plan."""
    location = os.path.abspath(root) if "://" not in str(root) else str(root)
    plan = begin_plan(open_store(location), config, list_inputs(config))
    work = ShardWork(location, config, plan.plan_digest)
    return work, list(split_into_shards(list_inputs(config), config)), plan


def _inputs_of_a_corpus() -> int:
    once = DatasetConfig(kind="clip", corpora=(CorpusConfig(reader="packaged-videos"),))
    return sum(1 for _ in list_inputs(once))
