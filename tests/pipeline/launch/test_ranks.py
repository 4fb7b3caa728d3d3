"""How many ranks a command starts, and where a planned run is to be."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.launch.preflight import AskedSetting, measured, setting_of
from mcjepa.pipeline.launch.ranks import fitting_ranks
from mcjepa.pipeline.launch.sites import load_site
from mcjepa.pipeline.recipe.recipe import load_recipe
from mcjepa.pipeline.settings.train import TrainConfig
from tests.pipeline.small_recipe import write_small_recipe


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    recipe, _ = load_recipe(str(write_small_recipe(tmp_path)), [])
    assert recipe.train is not None
    return recipe.train


def _batches(config: TrainConfig, pairs: int, views: int) -> TrainConfig:
    stream = dataclasses.replace(config.stream, pair_batch=pairs, view_batch=views)
    return dataclasses.replace(config, stream=stream)


def test_as_many_ranks_as_divide_both_batches(config: TrainConfig) -> None:
    assert fitting_ranks(_batches(config, 8, 12), most=5) == 4
    assert fitting_ranks(_batches(config, 8, 0), most=16) == 8
    assert fitting_ranks(_batches(config, 3, 5), most=2) == 1


def test_the_command_line_comes_before_the_site_and_the_site_before_this_machine() -> None:
    site = load_site("slurm")
    own = setting_of(site, AskedSetting(nodes=3, gpus_per_node=8, memory_gib=80.0, step_s=0.5))
    assert own.cluster.nodes == 3 and own.cluster.gpus_per_node == 8 and own.step_s == 0.5
    assert own.device_bytes == 80 * 2**30 and own.need is not None and own.need.nodes == 3
    here = setting_of(None, AskedSetting(ranks=4))
    assert (here.cluster.nodes, here.cluster.ranks) == (1, 4) and here.site is None


def test_numbers_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError, match="--ranks -1"):
        setting_of(None, AskedSetting(ranks=-1))
    with pytest.raises(UsageError, match="--step-s 0, expected more than 0"):
        setting_of(None, AskedSetting(step_s=0.0))
    with pytest.raises(UsageError, match="the run is for another"):
        measured(setting_of(load_site("slurm"), AskedSetting()), {}, 4)
