"""Gradient accumulation: a rank's share of a step in several forwards, one update.

The global batch stays what the stream says. Every micro-batch counts alike, and what the model takes over a batch
(VICReg's statistics, means over visible pixels) it takes over a micro-batch of all ranks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from mcjepa.model.mcjepa import JointLoss
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.settings.stream import StreamConfig
from mcjepa.pipeline.stream.batches import PairBatch, StepBatch, ViewBatch


def check_micro_batches(stream: StreamConfig, world_size: int, parts: int) -> None:
    """Refuses a number of micro-batches that does not divide a rank's share.

    Raises:
        UsageError: it does not.
    """
    for name in ("pair_batch", "view_batch"):
        share = -(-getattr(stream, name) // world_size)  # of more ranks than pairs some have one, the others none
        if share % parts:
            raise UsageError(
                f"train.engine.accumulation_steps is {parts}, expected a divisor of a rank's {share} samples "
                f"(train.stream.{name} {getattr(stream, name)} over {world_size} ranks); change one"
            )


def split_batch(batch: StepBatch, parts: int) -> list[StepBatch]:
    """Cuts a rank's share of a step into equal parts, in order."""
    if parts == 1:
        return [batch]
    pairs = _split_pairs(batch.pairs, parts) if batch.pairs else [None] * parts
    views = _split_views(batch.views, parts) if batch.views else [None] * parts
    return [dataclasses.replace(batch, pairs=p, views=v) for p, v in zip(pairs, views, strict=True)]


def _split_pairs(batch: PairBatch, parts: int) -> list[PairBatch]:
    stacks = (batch.frame0.chunk(parts), batch.frame1.chunk(parts), _chunks(batch.keys, parts))
    return [PairBatch(*stack) for stack in zip(*stacks, strict=True)]


def _split_views(batch: ViewBatch, parts: int) -> list[ViewBatch]:
    stacks = (batch.view0.chunk(parts), batch.view1.chunk(parts), _chunks(batch.keys, parts))
    return [ViewBatch(*stack) for stack in zip(*stacks, strict=True)]


def _chunks(keys: tuple[str, ...], parts: int) -> list[tuple[str, ...]]:
    length = -(-len(keys) // parts)
    return [keys[start : start + length] for start in range(0, len(keys), length)]


def mean_output(outputs: Sequence[JointLoss]) -> JointLoss:
    """The losses, terms and meters of all micro-batches as one, detached but for a single output."""
    if len(outputs) == 1:
        return outputs[0]

    def mean(values: Sequence[Tensor]) -> Tensor:
        return torch.stack([value.detach().float() for value in values]).mean(0)

    return JointLoss(
        mean([output.loss for output in outputs]),
        {name: mean([output.terms[name] for output in outputs]) for name in outputs[0].terms},
        {name: mean([output.meters[name] for output in outputs]) for name in outputs[0].meters},
    )
