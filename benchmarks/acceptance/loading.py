"""The loader on shards of the paper's size, in front of steps that only take time."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

from benchmarks.acceptance import Place, require
from mcjepa.pipeline.recipe.recipe import load_recipe, required
from mcjepa.pipeline.settings.stream import SourceConfig, StreamConfig
from mcjepa.pipeline.stream.loader import build_loader

MOST_WAITING = 0.05
RANKS = 8


def _stream(place: Place, name: str) -> StreamConfig:
    recipe, _ = load_recipe(name, [])
    stream: StreamConfig = required(recipe.train, "train", recipe).stream
    datasets = place.prepared / "large" / "datasets"
    clips, images = (SourceConfig(location=str(datasets / kind)) for kind in ("clips", "images"))
    return replace(stream, pairs=(clips,), views=(images,))


def _step_s(place: Place) -> float:
    """Of the quickest way that the check `step` has measured before this one; 0.05 where it has not."""
    for line in (place.out / "results.jsonl").read_text(encoding="utf-8").splitlines():
        found = json.loads(line)
        if found["check"] == "step" and "recipe" in found:
            return min(row["step_s"] for row in (found.get(way) for way in ("eager", "compile", "graphs")) if row)
    return 0.05


def _waiting(stream: StreamConfig, place: Place, step_s: float, steps: int) -> tuple[float, float]:
    """Share of the time that the steps wait, and samples' steps a second as fast as they come."""
    waited = 0.0
    with build_loader(stream, rank=0, world_size=1, start_step=0, seed=0, device=place.device) as loader:
        next(loader)
        time.sleep(step_s)
        for _ in range(steps):
            started = time.perf_counter()
            next(loader)
            waited += time.perf_counter() - started
            time.sleep(step_s)
        started = time.perf_counter()
        for _ in range(steps):
            next(loader)
        full_s = (time.perf_counter() - started) / steps
    return waited / (waited + steps * step_s), 1 / full_s


def loader(place: Place) -> dict[str, Any]:
    """Share of waiting for every number of workers; one of them must be below the bound.

    On a GPU a rank's eighth of the paper's batch and the step measured before; on a CPU two workers, an eighth of that
    and the four seconds that such a step takes there at least.
    """
    share, counts, step_s, steps = 8 * RANKS, [2], 4.0, 5
    if place.on_gpu:
        share, counts, step_s, steps = RANKS, [2, 4, 8, 12], _step_s(place), 40
    stream = _stream(place, "paper")
    stream = replace(stream, pair_batch=max(stream.pair_batch // share, 1), view_batch=stream.view_batch // share)
    figures: dict[str, Any] = {"step_s": step_s}
    for workers in counts:
        waits, rate = _waiting(replace(stream, workers=workers), place, step_s, steps)
        figures[f"workers_{workers}"] = {"waits": round(waits, 3), "steps_per_s": round(rate, 1)}
    least = min(figures[f"workers_{n}"]["waits"] for n in counts)
    require(least < MOST_WAITING, f"waits at least {least:.1%}, expected below {MOST_WAITING:.0%}: {figures}")
    return figures
