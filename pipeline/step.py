"""One training step: forward, agreement of all ranks on whether it counts, backward, update.

The engine's module is called once and gives one scalar, as sharded engines need.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.mcjepa import JointLoss
from pipeline.batches import StepBatch
from pipeline.engine import any_rank, gradient_norm
from pipeline.micro_batches import mean_output, split_batch


@dataclass(frozen=True)
class StepResult:
    """What a step gave."""

    finite: bool
    """Whether the loss was finite on every rank; otherwise nothing was updated."""
    stop: bool
    """Whether any rank was asked to stop."""
    output: JointLoss
    meters: dict[str, Tensor | float]


def run_step(engine: Any, batch: StepBatch, weights: Mapping[str, float], *, stop_requested: bool) -> StepResult:
    """Trains on one batch; all ranks call it.

    Args:
        engine: the DeepSpeed engine around the joint model.
        batch: this rank's share of the step.
        weights: weight of every loss term in this step.
        stop_requested: whether this rank was asked to stop.

    Returns:
        The loss, whether it counted, and the meters.
    """
    parts = split_batch(batch, engine.gradient_accumulation_steps())
    outputs: list[JointLoss] = []
    for part in parts:
        pairs = (part.pairs.frame0, part.pairs.frame1) if part.pairs else None
        views = (part.views.view0, part.views.view1) if part.views else None
        outputs.append(engine(pairs, views, weights))
        if len(outputs) < len(parts):
            engine.backward(outputs[-1].loss)
            engine.step()  # no update yet: it counts the micro-batch
    output = mean_output(outputs)
    bad = 0.0 if bool(torch.isfinite(output.loss.detach())) else 1.0
    flags = any_rank(torch.tensor([bad, float(stop_requested)], device=output.loss.device))
    finite, stop = not bool(flags[0]), bool(flags[1])
    meters: dict[str, Tensor | float] = {"loss": output.loss.detach(), **output.terms, **output.meters}
    if finite or len(parts) > 1:  # what earlier micro-batches left must go even where nothing counts
        engine.backward(outputs[-1].loss)
        if not finite:
            drop_gradients(engine)
        engine.step()
    if finite:
        norm = gradient_norm(engine)
        if norm is not None:
            meters["gradient_norm"] = norm
    return StepResult(finite, stop, output, meters)


def drop_gradients(engine: Any) -> None:
    """Before an update that must not count: without ZeRO nothing is left to update with.

    With ZeRO the accumulated gradients are not finite where the loss is not, and its update leaves itself out.
    """
    if engine.zero_optimization_stage() == 0:
        for parameter in engine.module.parameters():
            parameter.grad = None
