"""A step through DeepSpeed against a bare PyTorch loop: same model, batches, optimizer and clipping, in one process.

    python -m benchmarks.train_overhead [--full] [--stage N]

The model, crops, batch and ZeRO stage are the sample recipe's, with random images; one rank. Both sides take the same
step in turns. The last line is JSON; `ratio` is the median over rounds of DeepSpeed's time over the bare loop's next
to it, `cpu_ratio` that of the processor's time, which other programs disturb less. The bar is 1.05.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from mcjepa.model.mcjepa import MCJEPA
from mcjepa.pipeline.engine.engine import any_rank, build_engine, seed_step, set_learning_rates, start_world, stop_world
from mcjepa.pipeline.engine.parameters import parameter_groups
from mcjepa.pipeline.recipe.recipe import load_recipe
from mcjepa.pipeline.settings.train import TrainConfig
from mcjepa.pipeline.step.schedule import build_schedule
from mcjepa.pipeline.step.step import run_step
from mcjepa.pipeline.stream.batches import PairBatch, StepBatch, ViewBatch

LIMIT_S, LEAST_ROUNDS = 40.0, 7
STEPS_PER_EPOCH = 100


def make_batch(config: TrainConfig, step: int) -> StepBatch:
    """Random images of the recipe's sizes."""
    random = torch.Generator().manual_seed(step)
    height, width = config.stream.augment.pair.crop
    size = config.stream.augment.view.size
    frames = torch.rand(2, config.stream.pair_batch, 3, height, width, generator=random)
    views = torch.rand(2, config.stream.view_batch, 3, size, size, generator=random)
    names = tuple(map(str, range(max(frames.shape[1], views.shape[1]))))
    return StepBatch(step, PairBatch(frames[0], frames[1], names), ViewBatch(views[0], views[1], names))


def bare_loop(model: MCJEPA, config: TrainConfig) -> Callable[[StepBatch, dict[str, float]], float]:
    """A step as one would write it without an engine."""
    settings = config.optimizer
    optimizer = torch.optim.AdamW(parameter_groups(model, settings), betas=settings.betas, fused=True)

    def step(batch: StepBatch, weights: dict[str, float]) -> float:
        assert batch.pairs and batch.views
        pairs, views = (batch.pairs.frame0, batch.pairs.frame1), (batch.views.view0, batch.views.view1)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"]
        loss = model(pairs, views, weights).loss
        if not bool(any_rank(loss.detach().isfinite().float().reshape(1))):
            return float("nan")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimizer.step()
        return float(loss.detach())

    return step


def main() -> None:
    """Time both sides in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="three times as many rounds")
    parser.add_argument("--stage", type=int, choices=range(4), help="another ZeRO stage than the recipe's")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `mcjepa train` sets it
    recipe, _ = load_recipe("sample", ["train.engine.threads=1"])
    config = recipe.train
    assert config is not None
    if arguments.stage is not None:
        config = replace(config, engine=replace(config.engine, zero_stage=arguments.stage))
    world = start_world(config.engine)
    torch.manual_seed(0)
    engine = build_engine(MCJEPA(recipe.model), config, world)
    torch.manual_seed(0)
    bare_model = MCJEPA(recipe.model).train()
    bare = bare_loop(bare_model, config)
    engine.train()
    weights = build_schedule(config, STEPS_PER_EPOCH).weights_at(10**6)

    def ours(batch: StepBatch, weights: dict[str, float]) -> float:
        seed_step(0, batch.step, world.rank)
        set_learning_rates(engine, 1.0)
        return float(run_step(engine, batch, weights, stop_requested=False).output.loss.detach())

    times: dict[str, list[float]] = {"deepspeed": [], "bare": []}
    cpu: dict[str, list[float]] = {"deepspeed": [], "bare": []}
    losses: dict[str, list[float]] = {"deepspeed": [], "bare": []}
    rounds, started, limit_s = 0, time.monotonic(), LIMIT_S * (3 if arguments.full else 1)
    while rounds < LEAST_ROUNDS or time.monotonic() - started < limit_s:  # the first two are not counted
        batch = make_batch(config, rounds % 8)
        sides: list[tuple[str, Any]] = [("deepspeed", ours), ("bare", bare)]
        for name, side in sides if rounds % 2 else sides[::-1]:
            begun, used = time.perf_counter(), time.process_time()
            losses[name].append(side(batch, weights))
            times[name].append(time.perf_counter() - begun)
            cpu[name].append(time.process_time() - used)
        rounds += 1
    stop_world()
    ratio, cpu_ratio = (
        statistics.median(d / b for d, b in zip(all_["deepspeed"][2:], all_["bare"][2:], strict=True))
        for all_ in (times, cpu)
    )
    figures = {f"{name}_ms": round(1e3 * statistics.median(values[2:]), 1) for name, values in times.items()}
    apart = [abs(d - b) / abs(b) for d, b in zip(losses["deepspeed"], losses["bare"], strict=True)]
    more = {"rounds": rounds - 2, "stage": config.engine.zero_stage, "losses_apart_after_3": float(f"{apart[3]:.1e}")}
    ratios = {"ratio": round(ratio, 3), "cpu_ratio": round(cpu_ratio, 3)}
    print(json.dumps({"benchmark": "train_overhead", **ratios, **figures, **more}))


if __name__ == "__main__":
    main()
