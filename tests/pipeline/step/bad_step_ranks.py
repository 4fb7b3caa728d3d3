"""Bad steps on every ZeRO stage, as one of several ranks; prints what was seen as one JSON line."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from small_steps import WEIGHTS, made_up_batch, small_engine
from traffic import Traffic

from mcjepa.pipeline.engine.engine import start_world
from mcjepa.pipeline.engine.parameters import branch_gradient_norms
from mcjepa.pipeline.monitor.guards import StepGuard, StepSetting
from mcjepa.pipeline.settings.train import EngineConfig
from mcjepa.pipeline.step.step import run_step


def held_state(engine: Any) -> list[torch.Tensor]:
    """All that a step may change on this rank: weights, moments, statistics."""
    optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    moments = [v for state in optimizer.state.values() for v in state.values() if torch.is_tensor(v)]
    if engine.zero_optimization_stage() == 3:
        weights = [*engine.optimizer.fp32_partitioned_groups_flat, *(p.ds_tensor for p in engine.module.parameters())]
    else:
        weights = list(engine.module.parameters())
    return [x.detach().clone() for x in [*weights, *moments, *engine.module.buffers()]]


class NormTap:
    """Keeps the branches' gradient norms; on one rank it spoils the gradient that the encoder gets."""

    def __init__(self, engine: Any, spoil: bool = False) -> None:
        self.engine, self.spoil, self.norms = engine, spoil, None

    def forward(self) -> Any:
        import contextlib

        return contextlib.nullcontext()

    def before_backward(self, loss: torch.Tensor) -> None:
        if self.spoil:
            loss.register_hook(lambda gradient: gradient * math.nan)

    def after_backward(self) -> None:
        self.norms = branch_gradient_norms(self.engine)


def main(precision: str, parts: str) -> None:
    world = start_world(EngineConfig(threads=1))
    seen: dict[str, Any] = {}
    for stage in range(4):
        engine = small_engine(world, stage, precision, int(parts))
        weights = dict(WEIGHTS)
        tap = NormTap(engine)
        first = run_step(engine, made_up_batch(0, world.rank), weights, stop_requested=False, tap=tap)
        report: dict[str, Any] = {
            "good": first.bad, "norms": tap.norms, "norm": float(first.meters.get("gradient_norm", math.nan)),
        }  # fmt: skip
        before = held_state(engine)
        for kind in ("batch", "loss", "gradient"):
            batch = made_up_batch(1, world.rank)
            if kind == "batch" and world.rank == world.size - 1:
                assert batch.views
                batch.views.view1[1, 0, 3, 3] = math.nan
            spoil = NormTap(engine, spoil=kind == "gradient" and world.rank == world.size - 1)
            used = {**weights, "content": 1e39} if kind == "loss" else weights
            result = run_step(engine, batch, used, stop_requested=False, tap=spoil)
            same = all(torch.equal(a, b) for a, b in zip(before, held_state(engine), strict=True))
            report[kind] = {"bad": result.bad, "untouched": same}
        guard = StepGuard(Path("unused"), world.rank, 9)
        with Traffic() as traffic:
            batch = made_up_batch(2, world.rank)
            after = run_step(engine, batch, weights, stop_requested=False)
            guard.check(batch, after, StepSetting({}, {}))
        moved = any(not torch.equal(a, b) for a, b in zip(before, held_state(engine), strict=True))
        finite = all(bool(x.isfinite().all()) for x in held_state(engine))
        report["next"] = {"bad": after.bad, "moved": moved, "finite": finite, "loss": float(after.output.loss)}
        report |= {"reads": traffic.reads, "collectives": traffic.collectives}
        seen[str(stage)] = report
    print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
