"""From a command to its first result: the first step, the first shard, the first score.

    python -m benchmarks.start_up [--full]

Each command is the user's own, in a process of its own: `mcjepa prep run` that makes clips; `mcjepa train` of the
quickstart's model and batch on them; `mcjepa eval flow` of two pairs by the weights that come with the package. The
clock stops when the result's file is there; processor time is that of the whole tree until then. Beside them: a process
that imports torch and DeepSpeed and nothing else. The last line is JSON; `ratio` is the processor time from the command
to the first step over that of the bare imports, which other programs disturb less than seconds (medians of the rounds),
the bar 1: what DeepSpeed's autotuner, torch's compiler and MLflow cost stays out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml

from mcjepa.data_prep.corpora.moving_photos.generate import generate
from mcjepa.data_prep.settings import MovingPhotosConfig
from mcjepa.pipeline.launch.ranks import program
from mcjepa.pipeline.recipe.recipe import load_recipe

BARE = "import torch, deepspeed"
LOOK_S = 0.005


def used_s(process: psutil.Process) -> float:
    """Processor time so far of a process, of all below it and of those of them that have ended."""
    total = 0.0
    for each in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(each.cpu_times()[:4])  # user, system, and both of ended children
    return total


def until(words: list[str], arrived: Callable[[], bool]) -> tuple[float, float]:
    """Seconds of the clock and of the processors until a command's first result is there; it may end by itself."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started, total = time.perf_counter(), 0.0
    with tempfile.TemporaryFile("w+") as said:
        child = subprocess.Popen(words, env=environment, stdout=said, stderr=said)
        watched = psutil.Process(child.pid)
        while not arrived():
            if child.poll() is not None:
                said.seek(0)
                raise SystemExit(f"{' '.join(words)} ended without a result:\n{said.read()[-2000:]}")
            time.sleep(LOOK_S)
        wall, total = time.perf_counter() - started, used_s(watched)
        child.wait()
    return wall, total


def bare() -> tuple[float, float]:
    """Seconds of the clock and of the processors of the imports alone."""
    before, started = os.times(), time.perf_counter()
    subprocess.run([sys.executable, "-c", BARE], check=True, capture_output=True)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - started, used


def write_recipe(folder: Path) -> Path:
    """The quickstart's training on the packaged clips alone, one step long."""
    _, plain = load_recipe("quickstart", [f"out={folder}"])
    recipe: dict[str, Any] = plain
    clips = {**recipe["prep"]["datasets"]["clips"], "corpora": [{"reader": "packaged-videos"}]}
    recipe["prep"] |= {"moving_photos": None, "datasets": {"clips": clips}}
    recipe["train"]["stream"]["views"] = recipe["train"]["stream"]["pairs"]
    recipe["train"] |= {"steps": 1, "log_every": 1, "run": f"{folder}/run"}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


def measure(folder: Path) -> dict[str, tuple[float, float]]:
    """Every command once, in a folder of its own."""
    folder.mkdir()
    recipe, out = str(write_recipe(folder)), folder / "eval"
    corpus = MovingPhotosConfig(out=str(folder / "corpus"), sequences=1, heldout_sequences=1, frames=3, tiles=1)
    generate(corpus, workers=1)
    shards, metrics, scores = folder / "datasets" / "clips" / "shards", folder / "run" / "logs", out / "scores.json"
    score = [
        "eval",
        "flow",
        "nano",
        "--set",
        "moving-photos",
        "--data",
        corpus.out,
        "--out",
        str(out),
        "--threads",
        "1",
    ]
    return {
        "shard": until(program("prep", "run", recipe), lambda: any(shards.glob("*.json"))),
        "step": until(program("train", recipe), lambda: any(f.stat().st_size for f in metrics.glob("metrics.jsonl"))),
        "bare": bare(),
        "score": until(program(*score), scores.is_file),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="five rounds")
    rounds = 5 if parser.parse_args().full else 1
    with tempfile.TemporaryDirectory() as folder:
        found = [measure(Path(folder, str(number))) for number in range(rounds)]
    figures = {}
    for name, word in (("step", "first_step"), ("shard", "first_shard"), ("score", "first_score"), ("bare", "bare")):
        for place, unit in enumerate(("s", "cpu_s")):
            figures[f"{word}_{unit}"] = round(statistics.median(each[name][place] for each in found), 2)
    ratio = statistics.median(each["step"][1] / each["bare"][1] for each in found)
    print(json.dumps({"benchmark": "start_up", "ratio": round(ratio, 2), "bar": 1.0, **figures, "rounds": rounds}))


if __name__ == "__main__":
    main()
