"""The order of a stream: every sample once, the same for every world size, exact after any seek."""

from __future__ import annotations

import hashlib
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.stream.order import (
    SampleOrder,
    SourceCounts,
    check_world_size,
    epoch_shares,
    fitting_world_sizes,
    lanes_for,
)
from mcjepa.pipeline.stream.seeding import mix64, seeded_permutation, seeded_random, splitmix64

sources = st.lists(
    st.builds(SourceCounts, st.lists(st.integers(1, 30), min_size=1, max_size=5).map(tuple), st.integers(1, 4)),
    min_size=1,
    max_size=4,
)
weighted_sources = st.lists(
    st.builds(
        SourceCounts,
        st.lists(st.integers(1, 30), min_size=1, max_size=5).map(tuple),
        weight=st.floats(0.5, 4, allow_nan=False),
    ),
    min_size=1,
    max_size=4,
).filter(lambda each: min(epoch_shares(each, 1)) > 0)
shard_counts = st.lists(st.integers(1, 40), min_size=1, max_size=12)
batches = st.sampled_from([1, 2, 3, 4, 6, 8, 12, 16, 24, 64, 96, 128])


def order_of(shards: list[int], batch: int, window: int = 16, seed: int = 7, **rule: int) -> SampleOrder:
    return SampleOrder([SourceCounts(tuple(shards))], batch=batch, window=window, seed=seed, **rule)


def epoch_ids(order: SampleOrder, epoch: int, world_size: int = 1) -> np.ndarray:
    """The global order of an epoch, put together from what each of the ranks reads."""
    steps = []
    for step in range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch):
        reads = [order.step_samples(step, rank=rank, world_size=world_size) for rank in range(world_size)]
        assert {read[0] for read in reads} == {epoch}
        steps.append(np.stack([ids for _, ids in reads], axis=1).reshape(-1))
    return np.concatenate(steps)


def test_splitmix64_gives_the_published_values() -> None:
    assert splitmix64(0) == 0xE220A8397B1DCDAF
    assert splitmix64(1234567) == 6457827717110365317


def test_permutation_sorts_the_hashes_of_its_positions() -> None:
    seed = mix64(3, "window")
    expected = sorted(range(50), key=lambda i: splitmix64((i + seed) & (2**64 - 1)))
    assert seeded_permutation(50, 3, "window").tolist() == expected


def test_seeds_depend_on_every_word_and_on_their_order() -> None:
    words = [(1, 2), (2, 1), (1,), (1, 2, 0), ("a", 2), ("b", 2), (0,), ()]
    assert len({mix64(*each) for each in words}) == len(words)
    assert seeded_random(1, "x").random() == seeded_random(1, "x").random()


def test_lanes_are_the_largest_divisor_of_the_batch_up_to_64() -> None:
    batches = (1, 2, 6, 8, 20, 96, 384, 640, 1024, 67)
    assert [lanes_for(batch) for batch in batches] == [1, 2, 6, 8, 20, 48, 64, 64, 64, 1]
    assert [lanes_for(batch, version=1) for batch in batches] == [1, 2, 2, 8, 4, 32, 64, 64, 64, 1]
    with pytest.raises(UsageError, match="global batch is 0"):
        lanes_for(0)


def test_world_size_that_does_not_divide_the_batch_is_refused_with_those_that_do() -> None:
    check_world_size(4, {"pairs": 8, "views": 384})
    check_world_size(4096, {"pairs": 4096, "views": 32_768})
    with pytest.raises(UsageError, match=r"world size 3 .* batch of 8 pairs and 16 views; .*: 1, 2, 4, 8, 16;"):
        check_world_size(3, {"pairs": 8, "views": 16})
    check_world_size(6, {"pairs": 12})
    with pytest.raises(UsageError, match=r"4 lanes \(order 1\); world sizes that fit: 1, 2, 4;"):
        check_world_size(6, {"pairs": 12}, version=1)
    with pytest.raises(UsageError, match="world size 0"):
        check_world_size(0, {"pairs": 8})


def test_ranks_may_be_more_than_the_pairs_beside_views_but_not_more_than_the_views() -> None:
    check_world_size(64, {"pairs": 8, "views": 384})
    check_world_size(12, {"pairs": 8, "views": 384})
    for ranks, batches in ((64, {"pairs": 8}), (6, {"pairs": 8, "views": 384}), (16, {"pairs": 64, "views": 8})):
        with pytest.raises(UsageError, match=f"world size {ranks} does not divide"):
            check_world_size(ranks, batches)
    order = order_of([13, 8], batch=4, window=5)
    [(_, whole)] = [order.step_samples(1)]
    shares = [order.step_samples(1, rank=rank, world_size=6)[1] for rank in range(6)]
    assert [len(share) for share in shares] == [1, 1, 1, 1, 0, 0]
    np.testing.assert_array_equal(np.concatenate(shares), whole)
    with pytest.raises(UsageError, match="world size 3 does not divide"):
        order.step_samples(1, world_size=3)


@settings(max_examples=60, deadline=None)
@given(shards=shard_counts, batch=batches, window=st.integers(1, 50), seed=st.integers(0, 2**63))
def test_every_sample_comes_once_an_epoch_but_for_the_tail(
    shards: list[int], batch: int, window: int, seed: int
) -> None:
    order = order_of(shards, batch, window, seed)
    summary = order.describe()
    total = sum(shards) * summary.passes
    for epoch in (0, 1, 5):
        ids = epoch_ids(order, epoch)
        assert len(ids) == summary.steps_per_epoch * batch
        assert len(np.unique(ids)) == len(ids)
        assert ids.min() >= 0 and ids.max() < total
        assert total - len(ids) == summary.tail < batch


@settings(max_examples=80, deadline=None)
@given(
    shards=shard_counts, batch=st.integers(1, 200), window=st.integers(1, 50), lanes=st.integers(0, 300), data=st.data()
)
def test_global_order_is_the_same_for_every_world_size_and_any_number_of_lanes(
    shards: list[int], batch: int, window: int, lanes: int, data: st.DataObject
) -> None:
    alone = epoch_ids(order_of(shards, batch, window, lanes=lanes), 2)
    assert len(np.unique(alone)) == len(alone)
    world_size = data.draw(st.sampled_from(fitting_world_sizes({"pairs": batch})))
    np.testing.assert_array_equal(epoch_ids(order_of(shards, batch, window, lanes=lanes), 2, world_size), alone)


@settings(max_examples=20, deadline=None)
@given(
    samples=st.integers(4096, 10**6), factor=st.integers(1, 3), lanes=st.integers(1, 5000), first=st.integers(0, 4000),
    world_size=st.sampled_from([1, 3, 64, 96, 512, 1000, 2048, 4096]),
)  # fmt: skip
def test_thousands_of_ranks_share_a_step(samples: int, factor: int, lanes: int, first: int, world_size: int) -> None:
    """Some neighbouring ranks, each with an order of its own, read their part of what one rank reads."""
    shards, batch = [997] * (samples // 997) + [samples % 997 + 1], factor * world_size
    steps = range(2)
    alone = order_of(shards, batch, 64, lanes=lanes)
    whole = [alone.step_samples(step)[1] for step in steps]
    for rank in {first % world_size, (first + 1) % world_size}:
        order = order_of(shards, batch, 64, lanes=lanes)
        for step in steps:
            _, ids = order.step_samples(step, rank=rank, world_size=world_size)
            np.testing.assert_array_equal(ids, whole[step][rank::world_size])
        assert len(order._windows) <= max(lanes // math.gcd(lanes, world_size), 1)  # no other lane was looked at


@settings(max_examples=40, deadline=None)
@given(shards=shard_counts, batch=batches, window=st.integers(1, 50), stop=st.integers(0, 20))
def test_a_fresh_order_at_any_step_continues_the_uninterrupted_one(
    shards: list[int], batch: int, window: int, stop: int
) -> None:
    walked = order_of(shards, batch, window)
    steps = [walked.step_samples(step) for step in range(stop + 3)]
    resumed = order_of(shards, batch, window)
    for step in range(stop, stop + 3):
        epoch, ids = resumed.step_samples(step)
        assert epoch == steps[step][0]
        np.testing.assert_array_equal(ids, steps[step][1])


def global_keys(order: SampleOrder, steps: range, world_size: int) -> list[tuple[int, int]]:
    """(epoch, sample) in the global order of some steps, put together from the ranks'."""
    keys: list[tuple[int, int]] = []
    for step in steps:
        reads = [order.step_samples(step, rank=rank, world_size=world_size) for rank in range(world_size)]
        for ids in zip(*(ids.tolist() for _, ids in reads), strict=True):
            keys += [(reads[0][0], order.sample_indexes(reads[0][0], each)) for each in ids]
    return keys


@settings(max_examples=60, deadline=None)
@given(
    mixed=st.one_of(sources, weighted_sources),
    batch=st.sampled_from([12, 24, 60]),
    window=st.integers(1, 50),
    seed=st.integers(0, 2**63),
    stops=st.tuples(st.integers(0, 12), st.integers(0, 12)),
    worlds=st.tuples(*[st.sampled_from([1, 2, 3, 4, 6, 12])] * 3),
)
def test_a_run_stopped_twice_and_continued_on_other_ranks_has_the_uninterrupted_order(
    mixed: list[SourceCounts],
    batch: int,
    window: int,
    seed: int,
    stops: tuple[int, int],
    worlds: tuple[int, int, int],
) -> None:
    def fresh() -> SampleOrder:
        return SampleOrder(mixed, batch=batch, window=window, seed=seed)

    first, second = sorted(stops)
    parts = (range(0, first), range(first, second), range(second, second + 6))
    resumed = [key for part, world in zip(parts, worlds, strict=True) for key in global_keys(fresh(), part, world)]
    assert resumed == global_keys(fresh(), range(second + 6), 1)


@settings(max_examples=60, deadline=None)
@given(mixed=sources, batch=batches, window=st.integers(1, 50))
def test_every_sample_of_every_source_comes_once_a_pass(mixed: list[SourceCounts], batch: int, window: int) -> None:
    order = SampleOrder(mixed, batch=batch, window=window, seed=3)
    summary = order.describe()
    for epoch in (0, 3):
        ids = range(sum(summary.shares))
        counts = np.bincount([order.sample_indexes(epoch, each) for each in ids])
        expected = [
            summary.passes * source.repeat
            for source in mixed
            for samples in source.shard_samples
            for _ in range(samples)
        ]
        assert counts.tolist() == expected
        assert np.bincount([order.sample_indexes(epoch, i) for i in epoch_ids(order, epoch)]).max() <= max(expected)


@settings(max_examples=60, deadline=None)
@given(mixed=weighted_sources, batch=batches, epochs=st.integers(1, 9))
def test_weighted_sources_have_their_shares_and_equal_samples(
    mixed: list[SourceCounts], batch: int, epochs: int
) -> None:
    order = SampleOrder(mixed, batch=batch, window=8, seed=5)
    summary = order.describe()
    total, weights = sum(summary.shares), sum(source.weight for source in mixed)
    counts = np.zeros(sum(sum(source.shard_samples) for source in mixed), dtype=int)
    for epoch in range(epochs):
        np.add.at(counts, [order.sample_indexes(epoch, each) for each in range(total)], 1)
    first = 0
    for source, share in zip(mixed, summary.shares, strict=True):
        assert abs(share - total * source.weight / weights) < 1
        size = sum(source.shard_samples)
        own = counts[first : first + size]
        assert own.sum() == share * epochs and np.ptp(own) <= 1
        first += size
    ids = epoch_ids(order, 1)
    assert len(np.unique(ids)) == len(ids) and ids.max() < total


def test_shares_of_an_epoch_by_hand() -> None:
    assert epoch_shares([SourceCounts((30, 10)), SourceCounts((5,), repeat=4)], 8) == [40, 20]
    assert epoch_shares([SourceCounts((3,)), SourceCounts((2,), repeat=2)], 20) == [9, 12]
    assert epoch_shares([SourceCounts((900,), weight=1.0), SourceCounts((100,), weight=3.0)], 8) == [250, 750]
    assert epoch_shares([SourceCounts((1,), weight=1.0)] * 3, 4) == [2, 2, 2]
    with pytest.raises(UsageError, match=r"source 1 .* so small a weight"):
        SampleOrder([SourceCounts((9,), weight=1.0), SourceCounts((1,), weight=0.01)], batch=2, window=4, seed=0)


def test_stretches_of_weighted_sources_stay_within_a_shard() -> None:
    order = SampleOrder([SourceCounts((5, 7), weight=1.0), SourceCounts((4,), weight=2.0)], batch=1, window=1, seed=0)
    shard_of = [0] * 5 + [1] * 7 + [2] * 4
    for epoch in range(4):
        indexes = [order.sample_indexes(epoch, each) for each in epoch_ids(order, epoch)]
        breaks = [after != before + 1 for before, after in itertools.pairwise(indexes)]
        assert sum(breaks) <= 8  # 6 of 16 in 2 stretches, 10 in 3 or 4: no sample is torn from its neighbours
        for before, after, broken in zip(indexes, indexes[1:], breaks, strict=False):
            assert broken or shard_of[before] == shard_of[after]


@pytest.mark.parametrize(("lanes", "version"), [(0, 1), (0, 2), (7, 2), (48, 2), (1, 2)])
def test_global_sample_k_comes_from_lane_k_mod_lanes(lanes: int, version: int) -> None:
    order = order_of([30, 34, 40], batch=8, lanes=lanes, version=version)
    ids = epoch_ids(order, 0)
    starts = [order.lane_start(lane) for lane in range(order.lanes + 1)]
    assert starts[0] == 0 and starts[-1] == 104 and np.ptp(np.diff(starts)) <= 1
    lane_of = np.searchsorted(starts, ids, side="right") - 1
    np.testing.assert_array_equal(lane_of, np.arange(len(ids)) % order.lanes)


def test_a_window_of_one_reads_each_stretch_of_a_shard_in_its_own_order() -> None:
    order = order_of([5, 7, 4], batch=1, window=1)
    ids = epoch_ids(order, 0).tolist()
    shards = [list(range(0, 5)), list(range(5, 12)), list(range(12, 16))]
    assert sorted(ids) == list(range(16))
    position = {number: ids.index(shard[0]) for number, shard in enumerate(shards)}
    for number, shard in enumerate(shards):
        assert ids[position[number] : position[number] + len(shard)] == shard


def test_shuffling_stays_within_the_window() -> None:
    order = order_of([100], batch=1, window=10)
    ids = epoch_ids(order, 0)
    np.testing.assert_array_equal(ids // 10, np.arange(100) // 10)
    assert (ids != np.arange(100)).sum() > 50


def test_epochs_and_seeds_differ_and_the_tail_changes() -> None:
    order = order_of([37], batch=16)
    first, second = epoch_ids(order, 0), epoch_ids(order, 1)
    assert order.describe().tail == 5
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, epoch_ids(order_of([37], 16, seed=8), 0))
    seen = set(np.concatenate([epoch_ids(order, epoch) for epoch in range(8)]).tolist())
    assert seen == set(range(37))


def test_a_dataset_smaller_than_the_batch_is_passed_over_until_it_fills_one() -> None:
    order = order_of([7, 3], batch=64)
    summary = order.describe()
    assert (summary.samples, summary.passes, summary.steps_per_epoch, summary.tail) == (10, 7, 1, 6)
    counts = np.bincount(epoch_ids(order, 0) % summary.samples, minlength=10)
    assert counts.sum() == 64 and counts.min() >= 1 and counts.max() <= 7


def test_a_single_sample_is_a_stream() -> None:
    order = order_of([1], batch=1)
    assert [order.step_samples(step)[1].tolist() for step in range(3)] == [[0]] * 3
    assert [order.step_samples(step)[0] for step in range(3)] == [0, 1, 2]


def test_position_is_the_epoch_and_the_index_within_it() -> None:
    order = order_of([10, 11], batch=4)  # 5 steps of 4, tail 1
    assert order.epoch_samples == 20
    assert [order.position(cursor) for cursor in (0, 19, 20, 47)] == [(0, 0), (0, 19), (1, 0), (2, 7)]


@pytest.mark.parametrize(("shards", "window"), [([], 4), ([0], 4), ([3], 0)])
def test_an_empty_stream_or_window_is_refused(shards: list[int], window: int) -> None:
    with pytest.raises(UsageError, match="expected at least 1 of each"):
        order_of(shards, batch=2, window=window, seed=0)


def test_the_order_has_its_golden_digest() -> None:
    """A change of these digests changes the order of every run that is resumed: never let it pass unseen."""
    for version, digest in ((1, "fb3f3115d1de1498"), (2, "acea7d121607f1ee")):
        order = order_of([100, 57, 211], batch=24, window=32, seed=2023, version=version)
        ids = np.concatenate([epoch_ids(order, 0), epoch_ids(order, 3)]).astype("<i8")
        assert hashlib.sha256(ids.tobytes()).hexdigest()[:16] == digest


def test_seeking_far_into_a_large_dataset_takes_no_replay() -> None:
    order = SampleOrder([SourceCounts((10_000,) * 20_000)], batch=384, window=4096, seed=1)  # 200 M samples
    step = 3 * order.steps_per_epoch + 400_000
    epoch, ids = order.step_samples(step)
    assert epoch == 3 and len(np.unique(ids)) == 384
    assert sum(len(kept[2]) for kept in order._windows.values()) == 64 * 4096
