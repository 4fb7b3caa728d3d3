"""A training step beside another job that computes with as many threads as there are cores.

    python -m benchmarks.train_shared_cores [--full]

Two processes hold the quickstart's model and batch and take a step in turns, while a third one computes without a
pause, as another training would: one with the threads and the waiting that `mcjepa train` settles in its processes
(one thread a core), one with a single thread. The last line is JSON; `ratio` is the median of the first one's time over
the second's, the bar 1.3. `spinning_s` is a step of two threads that wait as libgomp does by default.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

STEP = """
import sys, time, benchmarks
threads, ours = int(sys.argv[1]), sys.argv[2] == "settled"
if ours:
    import mcjepa.__main__  # what every process of the command line settles first
import torch
from benchmarks.pipeline.train_overhead import make_batch
from mcjepa.model.mcjepa import MCJEPA
from mcjepa.pipeline.recipe.recipe import load_recipe
torch.set_num_threads(threads)
recipe, _ = load_recipe("quickstart", [])
torch.manual_seed(0)
model, batch = MCJEPA(recipe.model).train(), make_batch(recipe.train, 0)
pairs, views = (batch.pairs.frame0, batch.pairs.frame1), (batch.views.view0, batch.views.view1)
weights = dict.fromkeys(("regression", "reconstruction", "smoothness", "cycle", "vc", "content"), 0.1)
print("ready", flush=True)
for _ in sys.stdin:
    begun = time.perf_counter()
    model.zero_grad(set_to_none=True)
    model(pairs, views, weights).loss.backward()
    print(time.perf_counter() - begun, flush=True)
"""
OTHER_JOB = """
import os, torch
torch.set_num_threads(len(os.sched_getaffinity(0)))
image, layer = torch.rand(8, 32, 64, 64), torch.nn.Conv2d(32, 32, 3, padding=1)
while True:
    layer(image).sum().backward()
"""


def start(threads: int, waiting: str) -> subprocess.Popen[str]:
    """A process that takes a step a line."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    child = subprocess.Popen(
        [sys.executable, "-c", STEP, str(threads), waiting],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout and child.stdout.readline() == "ready\n"
    return child


def step(child: subprocess.Popen[str]) -> float:
    """Seconds of one step."""
    assert child.stdin and child.stdout
    child.stdin.write("step\n")
    child.stdin.flush()
    return float(child.stdout.readline())


def main() -> None:
    """Time the sides in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="four times as long")
    limit_s = 25.0 * (4 if parser.parse_args().full else 1)
    cores = len(os.sched_getaffinity(0))
    sides = {"ours_s": start(cores, "settled"), "one_thread_s": start(1, "settled")}
    spinning = start(cores, "default")
    other = subprocess.Popen([sys.executable, "-c", OTHER_JOB])
    try:
        time.sleep(3)  # until it computes
        times: dict[str, list[float]] = {name: [] for name in sides}
        begun, rounds = time.monotonic(), 0
        while time.monotonic() - begun < limit_s:
            for name in list(sides)[:: 1 if rounds % 2 else -1]:
                times[name].append(step(sides[name]))
            rounds += 1
        spinning_s = step(spinning)
    finally:
        other.kill()
        for child in (*sides.values(), spinning):
            child.kill()
    ratio = statistics.median(a / b for a, b in zip(times["ours_s"][1:], times["one_thread_s"][1:], strict=True))
    medians = {name: round(statistics.median(found[1:]), 3) for name, found in times.items()}
    more = {"spinning_s": round(spinning_s, 3), "rounds": rounds - 1}
    print(json.dumps({"benchmark": "train_shared_cores", "ratio": round(ratio, 3), **medians, **more}))


if __name__ == "__main__":
    main()
