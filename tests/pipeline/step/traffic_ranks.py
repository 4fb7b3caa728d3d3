"""One step of every term and form on every ZeRO stage, as one of several ranks; prints its traffic as one JSON line."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import torch
from small_steps import WEIGHTS, made_up_batch, small_engine, small_model
from traffic import Traffic

from mcjepa.model.config import ExpanderConfig, ModelConfig
from mcjepa.pipeline.engine.engine import start_world
from mcjepa.pipeline.settings.train import EngineConfig
from mcjepa.pipeline.step.step import run_step

ALL = {**WEIGHTS, "self_supervision": 1.0}
FORMS: dict[str, tuple[dict[str, Any], ExpanderConfig]] = {
    "positions": ({"vc_samples": "positions"}, ExpanderConfig(widths=(16, 16, 64), norm="batch")),
    "images": (
        {"vc_samples": "images", "feature_scale": "relative", "photometric_scales": (1.0, 0.5)},
        ExpanderConfig(widths=(16, 64), norm="layer"),
    ),
}


def config_of(form: str) -> ModelConfig:
    """The small model with the parts of a form, and a student that sees the whole pair."""
    loss, expander = FORMS[form]
    small = small_model().config
    return replace(small, loss=replace(small.loss, student_size=1.0, **loss), expander=expander)


def main() -> None:
    world = start_world(EngineConfig(threads=1))
    seen: dict[str, Any] = {}
    for form in FORMS:
        for stage in range(4):
            engine = small_engine(world, stage, config=config_of(form))
            run_step(engine, made_up_batch(0, world.rank), ALL, stop_requested=False)
            torch.manual_seed(5)
            with Traffic() as traffic:
                result = run_step(engine, made_up_batch(1, world.rank), ALL, stop_requested=False)
            assert result.finite
            seen[f"{form} {stage}"] = {
                "reads": traffic.reads, "collectives": traffic.collectives, "bytes": traffic.bytes,
                "calls": [call for call in traffic.calls if call[0] == "model"],
            }  # fmt: skip
    print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
