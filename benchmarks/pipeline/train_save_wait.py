"""How long the training loop waits for a checkpoint of the paper's model, in the background and not.

    python -m benchmarks.train_save_wait [--full] [--recipe NAME]

One rank, fp32, ZeRO 2, the whole model of the paper with its AdamW: 2.8 GB a save, in a folder. Both ways in turns.
In the background the loop is held by the copy, and afterwards by whatever of the writing holds Python's lock: that is
seen as the delay of a thread that wants to work every 2 ms, less its delay while nothing is saved. The last line is
JSON; `ratio` is the wait in the background over that without, medians; `share` is the wait over the time between two
saves of the recipe at 0.4 s a step (assumed): the bar is 0.02.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from dataclasses import replace
from typing import Any

from mcjepa.model.mcjepa import MCJEPA
from mcjepa.pipeline.checkpoint import CheckpointKeeper
from mcjepa.pipeline.engine.engine import build_engine, start_world, stop_world
from mcjepa.pipeline.recipe.recipe import load_recipe
from mcjepa.pipeline.run.folder import RunFolder

STEP_S = 0.4
TICK_S = 0.002


def held_until(done: threading.Event) -> tuple[float, float]:
    """Seconds that a loop in Python was held beyond its ticks, and seconds in all, until `done`."""
    held, begun = 0.0, time.perf_counter()
    while not done.is_set():
        asked = time.perf_counter()
        time.sleep(TICK_S)
        held += time.perf_counter() - asked - TICK_S
    return held, time.perf_counter() - begun


def idle_share(seconds: float) -> float:
    """What such a loop is held anyway, as a share of time."""
    done = threading.Event()
    threading.Timer(seconds, done.set).start()
    held, spent = held_until(done)
    return held / spent


def save(keeper: CheckpointKeeper, engine: Any, step: int) -> tuple[float, float]:
    """Seconds that the call took, and that the loop was held after it until the save was complete."""
    begun = time.perf_counter()
    assert keeper.save(engine, step, lineage={}, metrics={})
    called, done = time.perf_counter() - begun, threading.Event()

    def watch() -> None:
        while keeper.busy:
            time.sleep(0.05)
        done.set()

    threading.Thread(target=watch).start()
    held, spent = held_until(done)
    return called, max(held - idle_share(1.0) * spent, 0.0)


def main() -> None:
    """Save in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="five rounds instead of two")
    parser.add_argument("--recipe", default="paper", help="another model")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = ["train.engine.threads=1", "train.engine.precision=fp32", "train.engine.zero_stage=2"]
    recipe, _ = load_recipe(arguments.recipe, words)
    config = recipe.train
    assert config is not None
    world = start_world(config.engine)
    engine = build_engine(MCJEPA(recipe.model), config, world)
    waits: dict[str, list[float]] = {"foreground": [], "copy": [], "held": []}
    with tempfile.TemporaryDirectory() as name:
        sides = {
            background: CheckpointKeeper(
                replace(config.checkpoint, background=background, keep_last=1),
                world, RunFolder(f"{name}/{background}"), {},
            )
            for background in (False, True)
        }  # fmt: skip
        for number in range((5 if arguments.full else 2) + 1):  # the first is not counted: memory is new
            for background, keeper in sides.items():
                called, held = save(keeper, engine, number + 1)
                if number and background:
                    waits["copy"].append(called)
                    waits["held"].append(held)
                elif number:
                    waits["foreground"].append(called)
        for keeper in sides.values():
            keeper.close()
    stop_world()
    medians = {f"{name}_s": round(statistics.median(found), 3) for name, found in waits.items()}
    waited = medians["copy_s"] + medians["held_s"]
    between_s = config.checkpoint.every_steps * STEP_S
    figures = {"share": round(waited / between_s, 5), "bar": 0.02, "between_s": between_s, **medians}
    parameters = sum(p.numel() for p in engine.module.parameters())
    ratio = waited / medians["foreground_s"]
    print(json.dumps({"benchmark": "train_save_wait", "ratio": round(ratio, 3), **figures, "parameters": parameters}))


if __name__ == "__main__":
    main()
