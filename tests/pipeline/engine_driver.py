"""Engines of every ZeRO stage in one world, as processes: `python -m tests.pipeline.engine_driver FOLDER TASK...`.

Tasks are run in order by all ranks; rank 0 writes what each has shown to FOLDER/TASK-W.json. The batches of a step are
the same for every world size: a rank takes its share of them.

    train:STAGE         30 steps with a checkpoint after 10, of stages 0 and 3 in the background; losses, and the bytes
                        that the engine holds
    bytes:STAGE         the bytes alone
    resume:FROM:STAGE   the checkpoint that train:FROM wrote, then 20 steps
    bf16:STAGE          5 steps in bf16
    few:STAGE           3 steps with 2 of the 4 pairs: of 4 ranks two have none; losses and norms of branches' gradients
    parts:N:STAGE       5 steps of the reconstruction term, each in N micro-batches, and one with a NaN among them
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from mcjepa.model.config import EncoderConfig, ExpanderConfig, FlowConfig, LossConfig, ModelConfig
from mcjepa.model.mcjepa import MCJEPA
from mcjepa.pipeline.checkpoint import CheckpointKeeper
from mcjepa.pipeline.checkpoint.resume import find_start
from mcjepa.pipeline.engine.engine import (
    World,
    build_engine,
    gradient_norm,
    seed_step,
    set_learning_rates,
    start_world,
    stop_world,
)
from mcjepa.pipeline.engine.parameters import branch_gradient_norms
from mcjepa.pipeline.engine.state import held_pieces, updates_done
from mcjepa.pipeline.run.folder import RunFolder
from mcjepa.pipeline.settings.train import CheckpointConfig, EngineConfig, OptimizerConfig, TrainConfig
from mcjepa.pipeline.step.step import run_step
from mcjepa.pipeline.stream.batches import PairBatch, StepBatch, ViewBatch

STEPS, SAVED, FEW = 30, 10, 5
WEIGHTS = {"regression": 1.0, "reconstruction": 1.0, "smoothness": 1.0, "cycle": 0.2, "vc": 1.0, "content": 1.0}


def small_model(min_visible_share: float = 0.3) -> MCJEPA:
    """Many small tensors: one that lies across two ranks' partitions is kept whole by both in ZeRO-2."""
    torch.manual_seed(3)
    encoder = EncoderConfig(stem_channels=(8, 8), stage_channels=(24, 24, 24, 24), depths=(2, 2, 3, 2), drop_path=0.0)
    flow = FlowConfig(
        search_range=2,
        widths=(8, 8),
        width_factor=1.0,
        context_widths=(8, 8),
        context_dilations=(1, 2),
        coarsest_stride=32,
    )
    loss = LossConfig(min_visible_share=min_visible_share)
    return MCJEPA(ModelConfig(encoder=encoder, flow=flow, expander=ExpanderConfig(widths=(48,) * 6), loss=loss))


def settings(stage: int, precision: str = "fp32", parts: int = 1) -> TrainConfig:
    # Without the threshold every parameter of so small a model would be kept whole by ZeRO-3.
    options = {"zero_optimization": {"stage3_param_persistence_threshold": 0}} if stage == 3 else {}
    engine = EngineConfig(
        zero_stage=stage,  # type: ignore[arg-type]
        precision=precision,  # type: ignore[arg-type]
        threads=1,
        options=options,
        accumulation_steps=parts,
        split_statistics=True,
    )
    return TrainConfig(run="unused", steps=STEPS, engine=engine, optimizer=OptimizerConfig(warmup_steps=4))


def batch_of(step: int, world: World, pairs: int = 4) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """This rank's share of the first `pairs` of 4 pairs, and of 8 views."""
    random = torch.Generator().manual_seed(1000 + step)
    frame, view, change = (torch.rand(n, 3, 6, 6, generator=random) for n in (4, 8, 8))
    # Smooth images: in noise a rounding may decide whether a pixel counts as visible, and losses jump.
    frame, view, change = (F.interpolate(x, (32, 32), mode="bilinear") for x in (frame, view, change))
    frame = frame[:pairs]
    tensors = (frame, frame.roll(1, 3), view, 0.8 * view + 0.2 * change)
    parts = [t[world.rank :: world.size].contiguous() for t in tensors]
    return (parts[0], parts[1]), (parts[2], parts[3])


def run_steps(engine: Any, world: World, first: int, count: int) -> list[float]:
    """Losses of steps that train as `pipeline.train` does; the estimator stands still for the first four."""
    losses = []
    engine.train()
    for step in range(first, first + count):
        seed_step(7, step, world.rank)
        idle = ("estimator",) if step < 4 else ()
        set_learning_rates(engine, min((step + 1) / 4, 1.0), idle)
        weights = {"content": 1.0} if idle else WEIGHTS
        loss = engine(*batch_of(step, world), weights).loss
        engine.backward(loss)
        engine.step()
        losses.append(float(loss.detach()))
    return losses


def run_few(engine: Any, world: World) -> dict[str, Any]:
    """Steps with fewer pairs than 4 ranks."""
    losses, norms = [], []
    engine.train()
    for step in range(3):
        seed_step(7, step, world.rank)
        set_learning_rates(engine, 1.0)
        loss = engine(*batch_of(step, world, pairs=2), WEIGHTS).loss
        engine.backward(loss)
        norms.append(branch_gradient_norms(engine))
        engine.step()
        losses.append(float(loss.detach()))
    return {"losses": losses, "norms": norms}


def bytes_held(engine: Any, world: World) -> dict[str, int]:
    """Bytes of parameters, gradients and optimizer state that this rank keeps; buffers in passing are not counted.

    Gradients are taken where they are most: in ZeRO 0 and 1 when the backward is done, in 2 and 3 when each rank has
    its part of the sum.
    """
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    seen: dict[str, int] = {}
    place = (engine, "allreduce_gradients") if stage < 2 else (optimizer, "step")
    original = getattr(*place)

    def measure_and_go_on(*args: Any, **kwargs: Any) -> Any:
        seen["gradients"] = storage_bytes(gradients(engine))
        return original(*args, **kwargs)

    setattr(*place, measure_and_go_on)
    run_steps(engine, world, STEPS, 1)
    setattr(*place, original)
    parameters = list(engine.module.parameters())
    seen["parameters"] = sum(t.numel() * t.element_size() for t in (getattr(p, "ds_tensor", p) for p in parameters))
    adamw = optimizer if stage == 0 else optimizer.optimizer
    held = [t for state in adamw.state.values() for t in state.values() if t.numel() > 1]
    if stage in (1, 2):
        held += optimizer.single_partition_of_fp32_groups
    elif stage == 3:
        held += optimizer.fp32_partitioned_groups_flat
    seen["optimizer"] = storage_bytes(held)
    seen["numbers"] = sum(getattr(p, "ds_numel", p.numel()) for p in parameters)
    return seen


def gradients(engine: Any) -> list[torch.Tensor]:
    """What the engine keeps for its update."""
    found = [p.grad for p in engine.module.parameters() if p.grad is not None]
    if engine.zero_optimization_stage() >= 2:
        found += [t for parts in engine.optimizer.averaged_gradients.values() for t in parts or () if t is not None]
    return found


def storage_bytes(tensors: list[torch.Tensor]) -> int:
    """Of the distinct memory behind tensors, views of one counted once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.numel()}.values())


def run_parts(engine: Any, world: World) -> dict[str, Any]:
    """Steps of a term that is a mean over samples, by `pipeline.step.step`; the weights before and after a bad step."""
    losses = []
    engine.train()
    for step in range(FEW):
        set_learning_rates(engine, 1.0)
        result = run_step(engine, step_batch(step, world), {"reconstruction": 1.0}, stop_requested=False)
        losses.append(float(result.output.loss.detach()))
    before = weights_sum(engine)
    bad = step_batch(FEW, world)
    assert bad.pairs
    bad.pairs.frame0[0] = math.nan
    finite = run_step(engine, bad, {"reconstruction": 1.0}, stop_requested=False).finite
    return {"losses": losses, "norm": gradient_norm(engine), "finite": finite, "kept": weights_sum(engine) == before}


def step_batch(step: int, world: World) -> StepBatch:
    (frame0, frame1), (view0, view1) = batch_of(step, world)
    keys = tuple(map(str, range(len(view0))))
    return StepBatch(step, PairBatch(frame0, frame1, keys[: len(frame0)]), ViewBatch(view0, view1, keys))


def weights_sum(engine: Any) -> float:
    return sum(float(piece.values.double().sum()) for piece in held_pieces(engine))


def perform(task: str, folder: Path, world: World) -> dict[str, Any]:
    verb, *words = task.split(":")
    stage = int(words[-1])
    parts = int(words[0]) if verb == "parts" else 1
    # Means over visible pixels are means over samples where all pixels count.
    model = small_model(min_visible_share=2.0 if verb == "parts" else 0.3)
    engine = build_engine(model, settings(stage, "bf16" if verb == "bf16" else "fp32", parts), world)
    try:
        if verb == "parts":
            return run_parts(engine, world)
        if verb == "few":
            return run_few(engine, world)
        if verb == "bytes":
            run_steps(engine, world, 0, 2)
            return {"bytes": bytes_held(engine, world)}
        if verb == "bf16":
            return {"losses": run_steps(engine, world, 0, FEW)}
        run = RunFolder(str(folder / f"run-{words[0]}"))
        keeper = CheckpointKeeper(CheckpointConfig(background=stage in (0, 3)), world, run, {"seed": 7})
        if verb == "resume":
            start = find_start(run.store, world)
            assert start is not None
            keeper.restore(start, engine)
            return {"losses": run_steps(engine, world, SAVED, STEPS - SAVED)}
        losses = run_steps(engine, world, 0, SAVED)
        if world.size == 2:
            lost = "no room for records" if world.rank == 0 else ""  # without them no checkpoint may count, on any rank
            assert not keeper.save(engine, SAVED, lineage={}, metrics={}, problem=lost)
            assert find_start(run.store, world) is None
            keeper.save(engine, SAVED, lineage={}, metrics={"loss": losses[-1]})
        losses += run_steps(engine, world, SAVED, STEPS - SAVED)
        keeper.close()
        shown = {"losses": losses, "norm": gradient_norm(engine), "updates": updates_done(engine)}
        return shown | {"bytes": bytes_held(engine, world)}
    finally:
        engine.destroy()


def main() -> None:
    folder, tasks = Path(sys.argv[1]), sys.argv[2:]
    world = start_world(EngineConfig(threads=1))
    for task in tasks:
        shown = perform(task, folder, world)
        if world.rank == 0:
            (folder / f"{task}-{world.size}.json").write_text(json.dumps(shown))
    stop_world()


if __name__ == "__main__":
    main()
