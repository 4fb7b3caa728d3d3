"""Interleaving of the two streams: a pure function of the step that leaves no step of either stream out."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcjepa.pipeline.settings.stream import SourceConfig, StreamConfig
from mcjepa.pipeline.stream.interleaving import Sampling, StreamInterleaving

modes = st.sampled_from(["combined", "alternate-batch", "alternate-epoch"])
epochs = st.fixed_dictionaries({"pairs": st.integers(1, 9), "views": st.integers(1, 9)})


@settings(max_examples=80, deadline=None)
@given(mode=modes, epoch_steps=epochs)
def test_a_streams_own_step_counts_the_steps_in_which_it_took_part(
    mode: Sampling, epoch_steps: Mapping[str, int]
) -> None:
    taken = {"pairs": 0, "views": 0}
    interleaving = StreamInterleaving(mode, epoch_steps)
    for step in range(60):
        for name, own in interleaving.at(step).items():
            assert own == taken[name]
            taken[name] += 1
    assert sum(taken.values()) == (120 if mode == "combined" else 60)
    assert interleaving.at(37) == StreamInterleaving(mode, epoch_steps).at(37)  # no state


def test_batches_alternate_from_views_on() -> None:
    interleaving = StreamInterleaving("alternate-batch", {"pairs": 4, "views": 4})
    assert [interleaving.at(step) for step in range(4)] == [{"views": 0}, {"pairs": 0}, {"views": 1}, {"pairs": 1}]


def test_pairs_have_as_many_steps_as_an_epoch_of_the_views() -> None:
    interleaving = StreamInterleaving("alternate-epoch", {"pairs": 2, "views": 3})
    names = [next(iter(interleaving.at(step))) for step in range(10)]
    assert names == ["views"] * 3 + ["pairs"] * 3 + ["views"] * 3 + ["pairs"]


@pytest.mark.parametrize("mode", ["alternate-batch", "alternate-epoch"])
def test_turns_of_a_single_stream_are_refused(mode: Sampling) -> None:
    with pytest.raises(ValueError, match=r"sampling is alternate.* pair_batch is 0 .* expected samples in both"):
        StreamConfig(pair_batch=0, view_batch=4, sampling=mode)


def test_weights_of_some_sources_only_and_weights_with_repetitions_are_refused() -> None:
    some = (SourceConfig(location="a", weight=2.0), SourceConfig(location="b"))
    with pytest.raises(ValueError, match=r"stream.views: some sources have a weight"):
        StreamConfig(views=some)
    with pytest.raises(ValueError, match="either weight or repeat"):
        SourceConfig(location="a", weight=2.0, repeat=3)
    with pytest.raises(ValueError, match="at least 0"):
        SourceConfig(location="a", weight=-1.0)
