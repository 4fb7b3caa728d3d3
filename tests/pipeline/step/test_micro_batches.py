"""Gradient accumulation: how a step is cut, and that the update is that of the whole batch."""

from __future__ import annotations

import pytest
import torch

from mcjepa.model.mcjepa import JointLoss
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.settings.stream import StreamConfig
from mcjepa.pipeline.step.micro_batches import check_micro_batches, mean_output, split_batch
from mcjepa.pipeline.stream.batches import PairBatch, StepBatch, ViewBatch


def make_batch(pairs: int, views: int) -> StepBatch:
    frames, images = torch.rand(2, pairs, 3, 4, 4), torch.rand(2, views, 3, 4, 4)
    keys = tuple(map(str, range(max(pairs, views))))
    return StepBatch(
        5,
        PairBatch(frames[0], frames[1], keys[:pairs]) if pairs else None,
        ViewBatch(images[0], images[1], keys[:views]) if views else None,
    )


def test_parts_hold_every_sample_once_in_order() -> None:
    batch = make_batch(4, 6)
    parts = split_batch(batch, 2)
    assert [part.step for part in parts] == [5, 5]
    assert batch.pairs and batch.views
    assert torch.equal(torch.cat([p.pairs.frame1 for p in parts if p.pairs]), batch.pairs.frame1)
    assert torch.equal(torch.cat([p.views.view0 for p in parts if p.views]), batch.views.view0)
    assert [part.views.keys for part in parts if part.views] == [("0", "1", "2"), ("3", "4", "5")]


def test_a_branch_that_is_absent_stays_absent_and_one_part_is_the_batch_itself() -> None:
    batch = make_batch(0, 4)
    assert [part.pairs for part in split_batch(batch, 4)] == [None] * 4
    assert split_batch(batch, 1) == [batch]


def test_parts_that_do_not_divide_a_ranks_share_are_refused() -> None:
    stream = StreamConfig(pair_batch=8, view_batch=32)
    check_micro_batches(stream, 2, 4)
    with pytest.raises(UsageError, match="a rank's 4 samples"):
        check_micro_batches(stream, 2, 3)


def test_outputs_are_averaged() -> None:
    outputs = [JointLoss(torch.tensor(x), {"cycle": torch.tensor(2 * x)}, {}) for x in (1.0, 3.0)]
    mean = mean_output(outputs)
    assert (mean.loss.item(), mean.terms["cycle"].item()) == (2.0, 4.0)
