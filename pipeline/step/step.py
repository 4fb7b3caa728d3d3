"""One training step: forward, backward, update, and what all ranks agree on.

The engine's module is called once and gives one scalar, as sharded engines need; with gradient accumulation once a
micro-batch.

A step is bad where on any rank an image, the loss, or after the backward pass the gradient is not finite. Nothing of
a bad step stays: parameters, moments and running statistics are those from before it, on all ranks. One sum of four
numbers decides on images and loss, and stays on the device: a host that read it there would wait for the whole forward
pass before it queues the backward one. Where it says no, the loss becomes NaN, and so does every gradient; the
update leaves out what is not finite, in ZeRO 1 to 3 by itself, in ZeRO 0 by what `engine` gives the optimizer. One
small copy to the host after the update tells everything. On CPUs, where the model refuses images that are not finite,
they are agreed on before it sees them, because an error on one rank would leave the others waiting in a sum.
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
from mcjepa.model.mcjepa import PAIR_TERMS, JointLoss
from mcjepa.pipeline.engine.engine import any_rank
from mcjepa.pipeline.engine.state import loss_scale_state, set_loss_scale_state
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
    numbers: dict[str, float]
    """Loss and terms, on the host."""
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
        weights: weight of every loss term in this step; where none counts, nothing is updated.
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
        return _without_update("batch", sound, (stop_requested, alarm), state)
    if not _trains(batch, weights):
        return _without_update("", sound, (stop_requested, alarm), state)
    clock.enter("forward")
    output, last = forward_parts(engine, batch, weights, tap)
    flags = _agree(sound, output.loss, stop_requested, alarm)
    vetoed = flags[0] + flags[1] + flags[3] > 0
    tap = None if tap and bool(vetoed) else tap  # what looks in reads numbers anyway, and cannot read such
    clock.enter("backward")
    if tap:
        tap.before_backward(last)
    scaling = loss_scale_state(engine) if engine.fp16_enabled() else {}
    engine.backward(last * torch.where(vetoed, math.nan, 1.0))
    if tap:
        tap.after_backward()
    clock.enter("update")
    engine.step()
    clock.enter("agreement")
    (bad_batch, bad_loss, stop, ended), norm, numbers = _told(engine, flags, output)
    bad = "batch" if bad_batch else "loss" if bad_loss else ""
    if bad or ended:
        if scaling:  # it has taken the NaN for an overflow
            set_loss_scale_state(engine, scaling)
    elif not (engine.was_step_applied() and math.isfinite(norm or 0.0)):
        bad = "scale" if engine.fp16_enabled() else "gradient"
    if bad or ended:
        _restore_statistics(engine.module, statistics)
    meters: dict[str, Tensor | float] = {"loss": output.loss.detach(), **output.terms, **output.meters}
    if norm is not None:
        meters["gradient_norm"] = norm
    return StepResult(bad, stop, ended, output, meters, numbers, state)


def _without_update(bad: str, sound: Tensor, wishes: tuple[bool, bool], state: dict[str, Tensor]) -> StepResult:
    """A step that computes nothing: what it was given is bad, or no term looks at it. All ranks call it."""
    zero = torch.zeros((), device=sound.device)
    _, _, stop, ended = _agree(sound, zero, *wishes).bool().tolist()
    if bad:
        return StepResult(bad, stop, ended, _nothing(), {}, {"loss": math.nan}, state)
    return StepResult("", stop, ended, JointLoss(zero, {}, {}), {"loss": zero}, {"loss": 0.0}, state)


def _trains(batch: StepBatch, weights: Mapping[str, float]) -> bool:
    """Whether a term that counts looks at this step's streams: where they take turns, one's terms may begin later."""
    terms = (*(PAIR_TERMS if batch.pairs else ()), *(("content",) if batch.views else ()))
    return any(weights.get(name, 0.0) for name in terms)


def forward_parts(
    engine: Any, batch: StepBatch, weights: Mapping[str, float], tap: StepTap | None = None
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


def _nothing() -> JointLoss:
    """What a step that was not computed gives."""
    return JointLoss(torch.tensor(float("nan")), {}, {})


def _sound_images(batch: StepBatch) -> Tensor:
    """Whether every pixel of this rank's images is finite, on their device."""
    return all_finite(*(x for part in (batch.pairs, batch.views) if part for x in part.as_dict().values()))


def _agree(sound: Tensor, loss: Tensor, stop_requested: bool, alarm: bool) -> Tensor:
    """Whether on any rank an image or the loss is not finite, a stop was asked for, or a guard ends the run: (4,) of 0
    and 1, on the device."""
    finite = torch.stack([sound, loss.detach().isfinite()])
    wishes = torch.tensor([float(stop_requested), float(alarm)]).to(loss.device, non_blocking=True)
    return any_rank(torch.cat(((~finite).float(), wishes)))


def _told(engine: Any, flags: Tensor, output: JointLoss) -> tuple[list[bool], float | None, dict[str, float]]:
    """Flags, gradient norm (None where the engine does not tell it), loss and terms, by one copy to the host."""
    values, norm = {"loss": output.loss, **output.terms}, engine.get_global_grad_norm()
    rows = [*flags, *(value.detach().float() for value in values.values())]
    if isinstance(norm, Tensor):
        rows.append(norm.to(flags))
    found = torch.stack(rows).tolist()
    if norm is not None:
        norm = found[-1] if isinstance(norm, Tensor) else float(norm)
    return [bool(flag) for flag in found[:4]], norm, dict(zip(values, found[4:], strict=False))


def _copy_statistics(module: torch.nn.Module) -> list[Tensor]:
    """Running statistics of norms, which a forward pass changes: a NaN would stay in them for ever."""
    return [x.clone() for x in module.buffers() if x.is_floating_point()]


def _restore_statistics(module: torch.nn.Module, values: list[Tensor]) -> None:
    with torch.no_grad():
        for buffer, value in zip((x for x in module.buffers() if x.is_floating_point()), values, strict=True):
            buffer.copy_(value)
