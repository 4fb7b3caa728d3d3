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
    pairs = (batch.pairs.frame0, batch.pairs.frame1) if batch.pairs else None
    views = (batch.views.view0, batch.views.view1) if batch.views else None
    output: JointLoss = engine(pairs, views, weights)
    bad = 0.0 if bool(torch.isfinite(output.loss.detach())) else 1.0
    flags = any_rank(torch.tensor([bad, float(stop_requested)], device=output.loss.device))
    finite, stop = not bool(flags[0]), bool(flags[1])
    meters: dict[str, Tensor | float] = {"loss": output.loss.detach(), **output.terms, **output.meters}
    if finite:
        engine.backward(output.loss)
        engine.step()
        norm = gradient_norm(engine)
        if norm is not None:
            meters["gradient_norm"] = norm
    return StepResult(finite, stop, output, meters)
