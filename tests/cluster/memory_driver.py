"""One rank of real training steps in a process of its own: prints how much memory they took, as JSON.

    python memory_driver.py rss|tensors RECIPE [key=value …]

`rss` is the process's memory, `tensors` the bytes of all tensors held at a time.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path

import torch

from mcjepa.model.mcjepa import MCJEPA
from mcjepa.pipeline.engine.engine import build_engine, set_learning_rates, start_world, stop_world
from mcjepa.pipeline.launch.step_memory import LiveBytes
from mcjepa.pipeline.recipe.recipe import load_recipe
from mcjepa.pipeline.settings.train import TrainConfig
from mcjepa.pipeline.step.step import run_step
from mcjepa.pipeline.stream.batches import PairBatch, StepBatch, ViewBatch
from mcjepa.pipeline.world import World

STEPS = 3


def memory_bytes(name: str) -> int:
    """VmRSS (now) or VmHWM (the most ever) of this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) << 10


def random_batch(config: TrainConfig, world: World, step: int) -> StepBatch:
    """A rank's share of a step, with random images."""
    stream = config.stream
    pairs, views = stream.pair_batch // world.size, stream.view_batch // world.size
    frames = torch.rand(2, max(pairs, 1), 3, *stream.augment.pair.crop)
    images = torch.rand(2, max(views, 1), 3, stream.augment.view.size, stream.augment.view.size)
    names = tuple(map(str, range(max(pairs, views))))
    return StepBatch(
        step,
        PairBatch(frames[0], frames[1], names) if pairs else None,
        ViewBatch(images[0], images[1], names) if views else None,
    )


def main() -> None:
    """Take some steps."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    recipe, _ = load_recipe(sys.argv[2], sys.argv[3:])
    config = recipe.train
    assert config is not None
    world = start_world(config.engine)
    probe = torch.rand(1, 3, 8, 8, requires_grad=True)
    torch.nn.functional.conv2d(probe, torch.rand(4, 3, 3, 3)).sum().backward()  # what libraries allocate once
    live = LiveBytes()
    with live if sys.argv[1] == "tensors" else contextlib.nullcontext():
        take_steps(MCJEPA(recipe.model), config, world)
    used = live.peak or memory_bytes("VmHWM")
    if world.rank == 0:
        print(json.dumps({"peak_bytes": used}))
    stop_world()


def take_steps(model: MCJEPA, config: TrainConfig, world: World) -> None:
    """Build the engine and take some steps."""
    engine = build_engine(model, config, world)
    engine.train()
    weights = dict.fromkeys(("regression", "reconstruction", "smoothness", "cycle", "vc", "content"), 1.0)
    for step in range(STEPS):
        set_learning_rates(engine, 1.0)
        result = run_step(engine, random_batch(config, world, step), weights, stop_requested=False)
        assert not result.bad


if __name__ == "__main__":
    main()
