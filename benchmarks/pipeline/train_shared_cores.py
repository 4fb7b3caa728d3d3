"""A training step, a scored pair and an inferred clip beside another job that computes with a thread a core.

    python -m benchmarks.train_shared_cores [--of train,eval,infer] [--full]

Two processes hold the same work and do it in turns, while a third one computes without a pause, as another training
would: one with the threads and the waiting that `mcjepa` settles in its processes (one thread a core), one with a
single thread. Work is `train`: a step of the quickstart's model and batch; `eval`: the flow of a pair of 256x448 px by
the weights that come with the package, as `mcjepa eval flow` asks for it; `infer`: a clip of three such frames to flow
files and pictures, as `mcjepa infer` writes them. The last line is JSON; `ratio` is the largest of the rows' medians of
the first one's time over the second's, the bar 1.3. With `--full`, `spinning_s` is a step of threads that wait as
libgomp does by default.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

LEAST_ROUNDS = 6  # of which the first does not count; the median of two says nothing
BEGIN = """
import sys, tempfile, time, benchmarks
threads, ours = int(sys.argv[1]), sys.argv[2] == "settled"
if ours:
    import mcjepa.__main__  # what every process of the command line settles first
import torch
torch.set_num_threads(threads)
torch.manual_seed(0)
"""
SCORED = """
from mcjepa.evals.models import choose_device, load_model
from mcjepa.model.pretrained import weights_folder
model = load_model(weights_folder("nano"), choose_device("cpu"))
"""
WORK = {
    "train": """
from benchmarks.pipeline.train_overhead import make_batch
from mcjepa.model.mcjepa import MCJEPA
from mcjepa.pipeline.recipe.recipe import load_recipe
recipe, _ = load_recipe("quickstart", [])
model, batch = MCJEPA(recipe.model).train(), make_batch(recipe.train, 0)
pairs, views = (batch.pairs.frame0, batch.pairs.frame1), (batch.views.view0, batch.views.view1)
weights = dict.fromkeys(("regression", "reconstruction", "smoothness", "cycle", "vc", "content"), 0.1)
def work():
    model.zero_grad(set_to_none=True)
    model(pairs, views, weights).loss.backward()
""",
    "eval": f"""{SCORED}
frames = torch.rand(2, 1, 3, 256, 448)
def work():
    model.flow(*frames)
""",
    "infer": f"""{SCORED}
from pathlib import Path
from mcjepa.evals.infer.clip import Clip
from mcjepa.evals.infer.run import infer_clip
from mcjepa.evals.infer.settings import InferConfig
frames = (torch.rand(3, 256, 448, 3) * 255).byte().numpy()
names, read = ("0", "1", "2"), lambda numbers: (frames[number] for number in numbers)
clip = Clip(name="clip", source=("clip",), frames=names, read=read)
folder = tempfile.TemporaryDirectory()
def work():
    infer_clip(model, "digest", clip, InferConfig(write=("flo", "colour")), Path(folder.name), overwrite=True)
""",
}
TURNS = """
print("ready", flush=True)
for _ in sys.stdin:
    begun = time.perf_counter()
    work()
    print(time.perf_counter() - begun, flush=True)
"""
OTHER_JOB = """
import os, torch
torch.set_num_threads(len(os.sched_getaffinity(0)))
image, layer = torch.rand(8, 32, 64, 64), torch.nn.Conv2d(32, 32, 3, padding=1)
while True:
    layer(image).sum().backward()
"""


def start(kind: str, threads: int, waiting: str) -> subprocess.Popen[str]:
    """A process that does its work once a line."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    child = subprocess.Popen(
        [sys.executable, "-c", BEGIN + WORK[kind] + TURNS, str(threads), waiting],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout and child.stdout.readline() == "ready\n"
    return child


def step(child: subprocess.Popen[str]) -> float:
    """Seconds of one piece of work."""
    assert child.stdin and child.stdout
    child.stdin.write("step\n")
    child.stdin.flush()
    return float(child.stdout.readline())


def row(kind: str, limit_s: float) -> dict[str, float]:
    """Times both sides in turns while another job computes."""
    cores = len(os.sched_getaffinity(0))
    sides = {"ours_s": start(kind, cores, "settled"), "one_thread_s": start(kind, 1, "settled")}
    other = subprocess.Popen([sys.executable, "-c", OTHER_JOB])
    times: dict[str, list[float]] = {name: [] for name in sides}
    try:
        time.sleep(3)  # until it computes
        begun, rounds = time.monotonic(), 0
        while time.monotonic() - begun < limit_s or rounds < LEAST_ROUNDS:
            for name in list(sides)[:: 1 if rounds % 2 else -1]:
                times[name].append(step(sides[name]))
            rounds += 1
    finally:
        for child in sides.values():
            child.kill()
        other.kill()
    ratio = statistics.median(a / b for a, b in zip(times["ours_s"][1:], times["one_thread_s"][1:], strict=True))
    medians = {f"{kind}_{name}": round(statistics.median(found[1:]), 3) for name, found in times.items()}
    return {kind: round(ratio, 3), **medians, f"{kind}_rounds": rounds - 1}


def spinning_s() -> float:
    """Seconds of a training step whose threads wait as libgomp does by default."""
    spinning = start("train", len(os.sched_getaffinity(0)), "default")
    other = subprocess.Popen([sys.executable, "-c", OTHER_JOB])
    try:
        time.sleep(3)
        return round(step(spinning), 3)
    finally:
        spinning.kill()
        other.kill()


def main() -> None:
    """Time the rows one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--of", default=",".join(WORK), help="which rows, separated by commas")
    parser.add_argument("--full", action="store_true", help="four times as long, and a step of threads that spin")
    asked = parser.parse_args()
    kinds = asked.of.split(",")
    found = {kind: row(kind, 8.0 * (4 if asked.full else 1)) for kind in kinds}
    more = {"spinning_s": spinning_s()} if asked.full else {}
    figures = {name: value for each in found.values() for name, value in each.items()} | more
    ratio = max(found[kind][kind] for kind in kinds)
    print(json.dumps({"benchmark": "train_shared_cores", "ratio": ratio, "bar": 1.3, **figures}))


if __name__ == "__main__":
    main()
