"""The engine's stages and precisions, a run that is stopped and continued, and whether the quickstart learns."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.acceptance import Place, require
from mcjepa.model.mcjepa import MCJEPA, TERMS
from mcjepa.pipeline.engine.engine import World, build_engine, seed_step, set_learning_rates, start_world, stop_world
from mcjepa.pipeline.recipe.recipe import load_recipe, required
from mcjepa.pipeline.run.folder import METRICS
from mcjepa.pipeline.settings.train import EngineConfig
from mcjepa.pipeline.stages.training import run_training
from mcjepa.pipeline.step.step import run_step
from mcjepa.pipeline.stream.batches import PairBatch, StepBatch, ViewBatch

if TYPE_CHECKING:
    from mcjepa.pipeline.train import TrainProgress

ENGINES = {  # name -> precision, ZeRO stage, offload, steps
    **{f"bf16_zero{stage}": ("bf16", stage, "none", 10) for stage in range(4)},
    "bf16_zero2_offload": ("bf16", 2, "optimizer", 10),
    "fp16_zero1": ("fp16", 1, "none", 30),  # its scale begins far too high
}
SINGLE = ("train.engine.threads=1", "train.checkpoint.every_steps=1000")
LATE = 5
"""Steps at the end that fp16's scale must let pass."""


def _batch(world: World, step: int) -> StepBatch:
    random = torch.Generator().manual_seed(step)
    a, b = torch.rand(2, 2, 3, 64, 64, generator=random).to(world.device)
    one, other = torch.rand(2, 8, 3, 32, 32, generator=random).to(world.device)
    names = tuple("abcdefgh")
    return StepBatch(step, PairBatch(a, b, names[:2]), ViewBatch(one, other, names))


def _losses(world: World, precision: str, stage: int, offload: str, steps: int) -> tuple[list[float], list[str]]:
    """The loss of every step and what was bad in it."""
    settings = {"precision": precision, "offload": offload, "zero_stage": stage}
    recipe, _ = load_recipe("quickstart", [f"train.engine.{key}={value}" for key, value in settings.items()])
    torch.manual_seed(0)
    engine = build_engine(MCJEPA(recipe.model), required(recipe.train, "train", recipe), world)
    engine.train()
    losses, bad = [], []
    for step in range(steps):
        seed_step(0, step, world.rank)
        set_learning_rates(engine, 0.1)
        result = run_step(engine, _batch(world, step), dict.fromkeys(TERMS, 1.0), stop_requested=False)
        losses.append(float(result.output.loss.detach()))
        bad.append(result.bad)
    engine.destroy()
    return losses, bad


def engine(place: Place) -> dict[str, Any]:
    """Some steps of every engine: finite, all of bf16 alike, fp16's scale found."""
    world = start_world(EngineConfig(precision="bf16", threads=1))
    figures: dict[str, Any] = {}
    first: list[float] = []
    try:
        for name, (precision, stage, offload, steps) in ENGINES.items():
            if not place.on_gpu and (precision == "fp16" or offload != "none"):
                figures[name] = "skipped: needs a GPU"
                continue
            losses, bad = _losses(world, precision, stage, offload, steps)
            figures[name] = round(losses[-1], 5)
            require(not any(bad[-LATE:]), f"{name}: bad steps {bad}, losses {losses}")
            if precision == "bf16":
                first = first or losses
                apart = max(abs(a - b) / abs(a) for a, b in zip(first, losses, strict=True))
                require(apart < 1e-3, f"{name}: losses {losses}, expected {first} within 1e-3")
    finally:
        stop_world()
    return figures


def _train(place: Place, run: Path, steps: int, stop_after: int = 0) -> list[float]:
    """Trains or continues the quickstart's run there, asked to stop after a step; the losses of all its steps.

    In a process of its own, as DeepSpeed does not begin again in one whose process group has ended.
    """
    process = get_context("fork").Process(target=_train_here, args=(place, run, steps, stop_after))
    process.start()
    process.join()
    require(process.exitcode == 0, f"training {run.name} ended with code {process.exitcode}")
    lines = (run / METRICS).read_text(encoding="utf-8").splitlines()
    return [record["loss"] for record in map(json.loads, lines) if "loss" in record]


def _train_here(place: Place, run: Path, steps: int, stop_after: int) -> None:
    words = [f"out={place.prepared / 'small'}", f"train.run={run}", f"train.steps={steps}", *SINGLE]
    words += ["train.log_every=1"]
    recipe, plain = load_recipe("quickstart", [*words, f"tracking.uri=sqlite:///{place.out}/mlflow.db"])

    def stop(event: TrainProgress) -> None:
        if stop_after and event.step == stop_after - 1:  # the step that it meets is still done
            os.kill(os.getpid(), signal.SIGTERM)

    run_training(recipe, plain, stop)


def resume(place: Place) -> dict[str, Any]:
    """Six steps at a stretch, and three and three."""
    for name in ("whole", "parts"):
        shutil.rmtree(place.out / name, ignore_errors=True)
    whole = _train(place, place.out / "whole", 6)
    stopped = _train(place, place.out / "parts", 6, stop_after=3)
    require(len(stopped) == 3, f"asked to stop at step 3, it took {len(stopped)}")
    parts = _train(place, place.out / "parts", 6)
    apart = max(abs(a - b) / abs(a) for a, b in zip(whole, parts, strict=True))
    require(apart < 1e-3, f"losses {parts}, expected {whole} within 1e-3")
    return {"apart": float(f"{apart:.1e}"), "losses": [round(x, 5) for x in parts]}


def learn(place: Place) -> dict[str, Any]:
    """Trains the quickstart, scores its flow: EPE below a share of zero flow's.

    On a CPU 60 of its steps, which must be better than no flow at all.
    """
    steps, bound = (300, 0.75) if place.on_gpu else (60, 1.0)
    run = place.out / "learned"
    shutil.rmtree(run, ignore_errors=True)
    words = [f"out={place.prepared / 'small'}", f"train.run={run}", f"train.steps={steps}", *SINGLE]
    _command("train", "quickstart", *words, f"tracking.uri=sqlite:///{place.out}/mlflow.db")
    weights = next((run / "weights").glob("step-*"))
    data = place.prepared / "small" / "corpus" / "moving-photos"
    said = _command(
        "eval", "flow", str(weights), "--data", str(data), "--set", "moving-photos", "--baselines", "zero",
        "--out", str(place.out / "learned-scores"), "--device", place.device.type, "--json",
    )  # fmt: skip
    scores = json.loads(said)["flow/moving-photos"]
    epe = {name: scores[name] for name in ("epe", "epe_zero")}
    ratio = epe["epe"] / epe["epe_zero"]
    require(ratio < bound, f"EPE {epe}, expected a ratio below {bound}")
    return {"steps": steps, "epe_ratio": round(ratio, 3)}


def _command(*words: str) -> str:
    """Standard output of `mcjepa WORDS`."""
    done = subprocess.run([sys.executable, "-m", "mcjepa", *words], capture_output=True, text=True)
    sys.stderr.write(done.stderr)
    require(done.returncode == 0, f"mcjepa {words[0]} ended with code {done.returncode}: {done.stderr[-300:]}")
    return done.stdout
