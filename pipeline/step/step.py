"""One training step: forward, agreement of all ranks on whether it counts, backward, update.

The engine's module is called once and gives one scalar, as sharded engines need; with gradient accumulation once a
micro-batch.

A step is bad where on any rank an image, the loss, or after the backward pass the gradient is not finite. Nothing of
a bad step stays: parameters, moments and running statistics are those from before it, on all ranks. One sum of four
numbers decides on images and loss; on CPUs, where the model refuses such images, the images are agreed on before it
sees them, because an error on one rank would leave the others waiting in a sum. The averaged gradient's norm is the
same on every rank; ZeRO 1 to 3 look at it inside `engine.step` and leave out the update themselves, for ZeRO-0 it is
looked at here.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from mcjepa.model.inputs import all_finite
from mcjepa.model.mcjepa import JointLoss
from mcjepa.pipeline.engine.engine import any_rank, gradient_norm
from mcjepa.pipeline.engine.parameters import whole_gradient_norm
from mcjepa.pipeline.step.clock import StepClock
from mcjepa.pipeline.step.micro_batches import mean_output, split_batch
from mcjepa.pipeline.stream.batches import StepBatch


class StepTap(Protocol):
    """What looks into a step while it runs, of several micro-batches into the last; see `periodic_meters`."""

    def forward(self) -> AbstractContextManager[None]:
        """Held around the forward pass."""
        ...

    def before_backward(self, loss: Tensor) -> None:
        """Called with the loss while its graph is whole."""
        ...

    def after_backward(self) -> None:
        """Called when gradients are averaged, before the update."""
        ...


@dataclass(frozen=True)
class StepResult:
    """What a step gave."""

    bad: str
    """What was not finite on some rank: `batch`, `loss` or `gradient`; empty for a good step. `scale`: the loss scaler
    of fp16 left out an update to lower its scale, as it does now and then."""
    stop: bool
    """Whether any rank was asked to stop."""
    alarm: bool
    """Whether a guard of any rank ends the run; nothing was updated."""
    output: JointLoss
    meters: dict[str, Tensor | float]
    state: dict[str, Tensor]
    """Random state before the step, for its flight record."""

    @property
    def finite(self) -> bool:
        """Whether the step counts."""
        return not self.bad


def random_state(device: torch.device) -> dict[str, Tensor]:
    """State of this process's generators, a few kB on the host."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Brings the generators back to a state of `random_state`."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def run_step(
    engine: Any,
    batch: StepBatch,
    weights: Mapping[str, float],
    *,
    stop_requested: bool,
    alarm: bool = False,
    clock: StepClock | None = None,
    tap: StepTap | None = None,
) -> StepResult:
    """Trains on one batch; all ranks call it.

    Args:
        engine: the DeepSpeed engine around the joint model.
        batch: this rank's share of the step.
        weights: weight of every loss term in this step.
        stop_requested: whether this rank was asked to stop.
        alarm: whether a guard of this rank wants the run to end before this update.
        clock: told where the step is.
        tap: meters that look into this step; the same on all ranks.

    Returns:
        The loss, whether it counted, and the meters.
    """
    clock = clock or StepClock()
    state, statistics = random_state(engine.device), _copy_statistics(engine.module)
    sound = _sound_images(batch)
    clock.enter("agreement", batch.step)
    if engine.device.type == "cpu" and bool(any_rank((~sound).float())):
        _, _, stop, ended = _agree(sound, torch.zeros(()), stop_requested, alarm)
        return StepResult("batch", stop, ended, _nothing(), {}, state)
    clock.enter("forward")
    output, last = _forward(engine, batch, weights, tap)
    clock.enter("agreement")
    bad_batch, bad_loss, stop, ended = _agree(sound, output.loss, stop_requested, alarm)
    bad = "batch" if bad_batch else "loss" if bad_loss else ""
    meters: dict[str, Tensor | float] = {"loss": output.loss.detach(), **output.terms, **output.meters}
    if not bad and not ended:
        clock.enter("backward")
        if tap:
            tap.before_backward(last)
        engine.backward(last)
        if tap:
            tap.after_backward()
        clock.enter("update")
        bad = _update(engine, meters)
    elif bad and engine.gradient_accumulation_steps() > 1:
        _drop_earlier(engine, last)
    if bad or ended:
        _restore_statistics(engine.module, statistics)
    return StepResult(bad, stop, ended, output, meters, state)


def _forward(
    engine: Any, batch: StepBatch, weights: Mapping[str, float], tap: StepTap | None
) -> tuple[JointLoss, Tensor]:
    """The whole step's output, and the last micro-batch's loss, whose backward pass is still to come."""
    parts = split_batch(batch, engine.gradient_accumulation_steps())
    outputs: list[JointLoss] = []
    for part in parts:
        pairs = (part.pairs.frame0, part.pairs.frame1) if part.pairs else None
        views = (part.views.view0, part.views.view1) if part.views else None
        last = len(outputs) == len(parts) - 1
        with tap.forward() if tap and last else contextlib.nullcontext():
            outputs.append(engine(pairs, views, weights))
        if not last:
            engine.backward(outputs[-1].loss)
            engine.step()  # no update yet: it counts the micro-batch
    return mean_output(outputs), outputs[-1].loss


def _drop_earlier(engine: Any, last: Tensor) -> None:
    """Ends a step whose earlier micro-batches have left gradients, without an update on any rank.

    ZeRO drops what it has gathered when a gradient is not finite, so the last one is made so.
    """
    engine.backward(last * math.nan)
    _drop_plain_gradients(engine)
    engine.step()


def _drop_plain_gradients(engine: Any) -> None:
    """Without ZeRO nothing is then left to update with; sharded gradients are dropped by the engine itself."""
    if engine.zero_optimization_stage() == 0:
        for parameter in engine.module.parameters():
            parameter.grad = None


def _nothing() -> JointLoss:
    """What a step that was not computed gives."""
    return JointLoss(torch.tensor(float("nan")), {}, {})


def _sound_images(batch: StepBatch) -> Tensor:
    """Whether every pixel of this rank's images is finite, on their device."""
    return all_finite(*(x for part in (batch.pairs, batch.views) if part for x in part.as_dict().values()))


def _agree(sound: Tensor, loss: Tensor, stop_requested: bool, alarm: bool) -> list[bool]:
    """Whether on any rank an image or the loss is not finite, a stop was asked for, or a guard ends the run."""
    finite = torch.stack([sound, loss.detach().isfinite()])
    wishes = torch.tensor([float(stop_requested), float(alarm)]).to(loss.device, non_blocking=True)
    return [bool(flag) for flag in any_rank(torch.cat(((~finite).float(), wishes))).tolist()]


def _update(engine: Any, meters: dict[str, Tensor | float]) -> str:
    """Takes the step unless the gradient is not finite; says what was bad and adds `gradient_norm`."""
    plain = engine.zero_optimization_stage() == 0 and not engine.fp16_enabled()
    norm: Tensor | float | None = None
    if plain:
        norm = whole_gradient_norm(engine)
        if not bool(norm.isfinite()):
            _drop_plain_gradients(engine)
            engine.step()  # it counts the step
            meters["gradient_norm"] = norm
            return "gradient"
    engine.step()
    norm = norm if plain else gradient_norm(engine)
    if norm is not None:
        meters["gradient_norm"] = norm
    if engine.was_step_applied():
        return ""
    return "scale" if engine.fp16_enabled() else "gradient"


def _copy_statistics(module: torch.nn.Module) -> list[Tensor]:
    """Running statistics of norms, which a forward pass changes: a NaN would stay in them for ever."""
    return [x.clone() for x in module.buffers() if x.is_floating_point()]


def _restore_statistics(module: torch.nn.Module, values: list[Tensor]) -> None:
    with torch.no_grad():
        for buffer, value in zip((x for x in module.buffers() if x.is_floating_point()), values, strict=True):
            buffer.copy_(value)
