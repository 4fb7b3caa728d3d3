"""The paper's rank step (an eighth of its batch): eager, compiled, with CUDA graphs; its memory against plan."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.acceptance import Place, require, synchronize
from mcjepa.model.mcjepa import MCJEPA, TERMS
from mcjepa.pipeline.engine.engine import compile_parts
from mcjepa.pipeline.engine.parameters import parameter_groups
from mcjepa.pipeline.launch.step_memory import step_memory
from mcjepa.pipeline.monitor.throughput import FlopCounter, device_name, peak_tflops
from mcjepa.pipeline.recipe.recipe import Recipe, load_recipe, required

RANKS = 8
MEMORY_MAY_DIFFER = 0.1


class _Stepper:
    """One model and its batch; `take` is a whole step."""

    def __init__(self, recipe: Recipe, place: Place, ranks: int) -> None:
        self.config = required(recipe.train, "train", recipe)
        self.device, stream = place.device, self.config.stream
        torch.manual_seed(0)
        self.model = MCJEPA(recipe.model).to(place.device).train()
        groups = parameter_groups(self.model, self.config.optimizer)
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, fused=True)
        crop, side = stream.augment.pair.crop, stream.augment.view.size
        self.pairs = torch.rand(2, stream.pair_batch // ranks, 3, *crop, device=place.device).unbind(0)
        self.views = torch.rand(2, stream.view_batch // ranks, 3, side, side, device=place.device).unbind(0)
        self.weights = dict.fromkeys(TERMS, 1.0)

    def loss(self) -> Tensor:
        """Forward pass in the recipe's precision."""
        torch.compiler.cudagraph_mark_step_begin()
        low = self.config.engine.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=low):
            result: Tensor = self.model(self.pairs, self.views, self.weights).loss
        return result

    def take(self) -> None:
        """Forward, backward, update; gradients stay where they are, as in an engine."""
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)


def _median_s(action: Callable[[], None], device: torch.device, rounds: int) -> float:
    times = []
    for _ in range(rounds):
        synchronize(device)
        started = time.perf_counter()
        action()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _flops(stepper: _Stepper) -> int:
    counter = FlopCounter()
    with counter.forward():
        loss = stepper.loss()
    counter.before_backward(loss)
    loss.backward()
    counter.after_backward()
    return counter.total


def _slowest_kernels(stepper: _Stepper) -> list[str]:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        stepper.take()
        synchronize(stepper.device)
    rows = sorted(profiler.key_averages(), key=lambda row: -row.self_device_time_total)[:10]
    return [f"{row.key[:60]} {row.self_device_time_total / 1e3:.2f} ms x{row.count}" for row in rows]


def _memory(stepper: _Stepper, recipe: Recipe) -> dict[str, float]:
    """Peak of forward and backward beyond weights and moments, as `mcjepa plan` counts it, and measured."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    stepper.take()
    found = torch.cuda.max_memory_allocated() - before
    step = step_memory(stepper.config, recipe.model, RANKS)
    gradients = sum(p.numel() * 4 for p in stepper.model.parameters())  # there before the step, and left out
    planned = step.peak_with_gradients_bytes - gradients
    return {"peak_gib": round(found / 2**30, 2), "planned_gib": round(planned / 2**30, 2)}


def _measure(way: str, recipe: Recipe, place: Place, ranks: int, figures: dict[str, Any]) -> dict[str, Any]:
    """One way's row; the eager one adds what is said once to `figures`."""
    stepper = _Stepper(recipe, place, ranks)
    if way == "eager":
        figures["tflop"] = round(_flops(stepper) / 1e12, 3)
    else:
        compile_parts(stepper.model, **({"mode": "reduce-overhead"} if way == "graphs" else {}))
    started = time.perf_counter()
    for _ in range(3):
        stepper.take()
    synchronize(place.device)
    first_s = time.perf_counter() - started
    seconds = _median_s(stepper.take, place.device, 20 if place.on_gpu else 3)
    row = {"step_s": round(seconds, 4), "first_three_s": round(first_s, 1)}
    if place.on_gpu:
        peak = peak_tflops(device_name(place.device), "bf16", 0.0)
        row["mfu"] = round(figures["tflop"] / seconds / peak, 3) if peak else 0.0
        if way == "eager":
            figures |= _memory(stepper, recipe) | {"kernels": _slowest_kernels(stepper)}
    return row


def step(place: Place) -> dict[str, Any]:
    """Seconds a step and MFU of each way; on a CPU the quickstart's step, and no compiler is asked for."""
    name, ranks, ways = "quickstart", 1, ["eager"]
    if place.on_gpu:
        name, ranks, ways = "paper", RANKS, ["eager", "compile", "graphs"]
    recipe, _ = load_recipe(name, [])
    torch.backends.cudnn.benchmark = True
    rows: dict[str, Any] = {}
    figures: dict[str, Any] = {}
    for way in ways:
        try:
            rows[way] = _measure(way, recipe, place, ranks, figures)
        except RuntimeError as error:  # the others are still worth knowing
            rows[way] = {"error": str(error)[:300]}
        print(way, rows[way], file=sys.stderr, flush=True)
    require(all("step_s" in row for row in rows.values()), f"{rows}")
    if place.on_gpu:
        gap = abs(figures["peak_gib"] / figures["planned_gib"] - 1)
        require(gap <= MEMORY_MAY_DIFFER, f"peak {figures['peak_gib']} GiB, planned {figures['planned_gib']}; {rows}")
    return {"recipe": name, **rows, **figures}
