"""Periodic meters on every ZeRO stage, as one of several ranks; prints them as one JSON line."""

from __future__ import annotations

import json

import numpy as np
from small_steps import WEIGHTS, made_up_batch, small_engine

from mcjepa.pipeline.engine.engine import start_world
from mcjepa.pipeline.monitor.representation import PeriodicMeters
from mcjepa.pipeline.run.pictures import _look
from mcjepa.pipeline.settings.monitor import MeterConfig
from mcjepa.pipeline.settings.train import EngineConfig
from mcjepa.pipeline.step.step import run_step


def main() -> None:
    world = start_world(EngineConfig(threads=1))
    seen = {}
    for stage in range(4):
        engine = small_engine(world, stage)
        weights = dict(WEIGHTS)
        for metered in (False, True):  # a metered step leads to the same weights
            engine = small_engine(world, stage)
            losses = []
            for step in range(3):
                batch = made_up_batch(step, world.rank)
                tap = PeriodicMeters(engine, MeterConfig()) if metered else None
                result = run_step(engine, batch, weights, stop_requested=False, tap=tap)
                losses.append(float(result.output.loss))
                shown = made_up_batch(99).pairs
                if metered and shown and (world.rank == 0 or stage == 3):  # as pictures of a run look at it
                    flow, features = _look(engine.module, shown.frame0, shown.frame1)
                    assert np.isfinite(flow).all() and features.shape == (2, 8, 4, 4)
            seen[f"{stage}-{'metered' if metered else 'plain'}"] = losses
        assert tap
        seen[f"{stage}-values"] = tap.values  # type: ignore[assignment]
    print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    main()
