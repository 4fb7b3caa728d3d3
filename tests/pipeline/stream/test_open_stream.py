"""`mcjepa.open_stream`: the stream of a training run for loops of other people."""

from __future__ import annotations

import doctest
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import mcjepa
from mcjepa.data_prep.errors import DataError
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.settings.stream import AugmentConfig, PairAugmentConfig, ShardStoreConfig, StreamConfig
from mcjepa.pipeline.stream import loader
from tests.pipeline.small_datasets import publish

SETTINGS = StreamConfig(
    pair_batch=4, view_batch=8, workers=0, augment=AugmentConfig(pair=PairAugmentConfig(crop=(32, 32)))
)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> str:
    location = str(tmp_path_factory.mktemp("open") / "clips")
    publish(location, "clip", [10, 9, 7])
    return location


def test_the_example_in_its_docstring_holds(clips: str) -> None:
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner()
    tests = [t for t in finder.find(mcjepa.open_stream, globs={**vars(loader), "CLIPS": clips}) if t.examples]
    assert tests
    for test in tests:
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0


def test_two_ranks_that_go_on_from_the_integer_of_one_see_what_one_would_have_seen(clips: str) -> None:
    with mcjepa.open_stream(clips, clips, settings=SETTINGS) as stream:
        steps = [next(stream) for _ in range(3)]
        assert stream.next_step == 3
    halves = []
    for rank in range(2):
        with mcjepa.open_stream(clips, clips, start_step=2, rank=rank, world_size=2, settings=SETTINGS) as stream:
            halves.append(next(stream))
    whole = steps[2]
    assert whole.pairs and all(half.pairs for half in halves)
    keys = sorted(key for half in halves if half.pairs for key in half.pairs.keys)
    assert keys == sorted(whole.pairs.keys)
    frames = {
        key: frame
        for half in halves
        if half.pairs
        for key, frame in zip(half.pairs.keys, half.pairs.frame0, strict=True)
    }
    assert all(torch.equal(frames[key], frame) for key, frame in zip(whole.pairs.keys, whole.pairs.frame0, strict=True))


def test_a_side_without_datasets_is_left_out(clips: str) -> None:
    with mcjepa.open_stream(views=clips, settings=SETTINGS) as stream:
        step = next(stream)
    assert step.pairs is None and step.views is not None


def test_shards_that_are_not_the_manifests_are_refused_as_in_training(tmp_path: Path) -> None:
    publish(location := str(tmp_path / "clips"), "clip", [4, 4])
    shard = sorted((tmp_path / "clips" / "shards").glob("*.tar"))[0]
    content = shard.read_bytes()
    shard.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(DataError, match="as in the manifest: it is not what the dataset id names"):
        mcjepa.open_stream(views=location, settings=SETTINGS)
    unchecked = replace(SETTINGS, store=ShardStoreConfig(check="none"))
    mcjepa.open_stream(views=location, settings=unchecked).close()


def test_no_dataset_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither pairs nor views name a dataset"):
        mcjepa.open_stream()
