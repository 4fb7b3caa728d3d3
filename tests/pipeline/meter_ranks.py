"""Costly meters on every ZeRO stage, as one of several ranks; prints them as one JSON line."""

from __future__ import annotations

import json

from small_steps import TERMS, made_up_batch, small_engine

from pipeline.costly_meters import CostlyMeters
from pipeline.engine import start_world
from pipeline.meters_config import MeterConfig
from pipeline.step import run_step
from pipeline.train_config import EngineConfig


def main() -> None:
    world = start_world(EngineConfig(threads=1))
    seen = {}
    for stage in range(4):
        engine = small_engine(world, stage)
        weights = TERMS.weights_at(0)
        for metered in (False, True):  # a metered step leads to the same weights
            engine = small_engine(world, stage)
            losses = []
            for step in range(3):
                batch = made_up_batch(step, world.rank)
                tap = CostlyMeters(engine, batch, weights, MeterConfig()) if metered else None
                result = run_step(engine, batch, weights, stop_requested=False, tap=tap)
                losses.append(float(result.output.loss))
            seen[f"{stage}-{'metered' if metered else 'plain'}"] = losses
        assert tap
        seen[f"{stage}-values"] = tap.values  # type: ignore[assignment]
    print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    main()
