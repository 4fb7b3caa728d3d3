"""What guards and meters add to a step: `run_step` with every instrument against the same engine driven bare.

    python -m benchmarks.train_meters [--full]

Both sides train the quickstart's model on the same made-up batches with the same DeepSpeed engine, alternating in
blocks; the bare side is forward, backward, step. `ratio` is for an ordinary step (guard, spikes, clock, window meters),
`costly_ratio` for one of the costly meters, `ratio_at_100` for one costly step in a hundred.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mcjepa.model.mcjepa import MCJEPA
from mcjepa.pipeline.engine.engine import build_engine, start_world, stop_world
from mcjepa.pipeline.monitor.guards import StepSetting
from mcjepa.pipeline.monitor.instruments import Instruments
from mcjepa.pipeline.monitor.representation import PeriodicMeters
from mcjepa.pipeline.recipe.recipe import load_recipe
from mcjepa.pipeline.step.schedule import build_schedule
from mcjepa.pipeline.step.step import run_step
from mcjepa.pipeline.stream.batches import PairBatch, StepBatch, ViewBatch


def made_up_batch(step: int, pairs: int, views: int) -> StepBatch:
    """Random images of the quickstart's sizes."""
    rng = torch.Generator().manual_seed(step)
    a, b = torch.rand(2, pairs, 3, 96, 96, generator=rng)
    one, other = torch.rand(2, views, 3, 64, 64, generator=rng)
    keys = tuple(map(str, range(max(pairs, views))))
    return StepBatch(step, PairBatch(a, b, keys[:pairs]), ViewBatch(one, other, keys[:views]))


def seconds(act: Callable[[], Any]) -> float:
    """Time of one call."""
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def main() -> None:
    """Measures and prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="many more rounds")
    rounds = 150 if parser.parse_args().full else 16
    recipe, _ = load_recipe("quickstart", [])
    assert recipe.train
    config, world = recipe.train, start_world(replace(recipe.train.engine, threads=1))  # two would wait for each other
    engine = build_engine(MCJEPA(recipe.model), config, world)
    engine.train()
    setting = StepSetting(build_schedule(config, 1).weights_at(0), {"encoder": 1e-3})
    batches = [made_up_batch(step, config.stream.pair_batch, config.stream.view_batch) for step in range(2)]
    with tempfile.TemporaryDirectory() as folder:
        instruments = Instruments(config, world, engine, Path(folder))

        def bare(batch: StepBatch) -> None:
            assert batch.pairs and batch.views
            frames, views = (batch.pairs.frame0, batch.pairs.frame1), (batch.views.view0, batch.views.view1)
            engine.backward(engine(frames, views, setting.weights).loss)
            engine.step()

        def watched(batch: StepBatch) -> None:
            instruments.waits_for_data(batch.step)
            result = run_step(
                engine, batch, setting.weights, stop_requested=False, clock=instruments.clock,
                tap=instruments.begin(batch, setting.weights),
            )  # fmt: skip
            instruments.end(batch, result, setting, 0.0)

        def costly(batch: StepBatch) -> None:
            tap = PeriodicMeters(engine, config.meters)
            run_step(engine, batch, setting.weights, stop_requested=False, clock=instruments.clock, tap=tap)

        for batch in batches:
            bare(batch)
            watched(batch)
            costly(batch)
        times: dict[str, list[float]] = {"bare": [], "watched": [], "costly": []}
        for number in range(rounds):
            batch = batches[number % len(batches)]
            pair = (("bare", bare), ("watched", watched))
            for name, act in pair if number % 2 else reversed(pair):
                times[name].append(seconds(partial(act, batch)))
            if number % 4 == 0:
                times["costly"].append(seconds(partial(costly, batch)))
    stop_world()
    middle = {name: statistics.median(values) for name, values in times.items()}
    ratio, costly_ratio = middle["watched"] / middle["bare"], middle["costly"] / middle["bare"]
    print(
        json.dumps(
            {
                "benchmark": "train_meters",
                "ratio": round(ratio, 4),
                "costly_ratio": round(costly_ratio, 3),
                "ratio_at_100": round(ratio + (costly_ratio - ratio) / 100, 4),
                "seconds": {name: round(value, 4) for name, value in middle.items()},
                "rounds": rounds,
            }
        )
    )


if __name__ == "__main__":
    main()
