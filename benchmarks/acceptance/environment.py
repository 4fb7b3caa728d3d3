"""The machine: what it is and how fast it copies and multiplies, the device feed, what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import torch

from benchmarks.acceptance import Place, need_gpu, require, synchronize
from mcjepa.pipeline.monitor.throughput import device_name


def _seconds(action: Any, device: torch.device, rounds: int) -> float:
    """Of the quickest of some rounds, after a first one."""
    times = []
    for _ in range(rounds + 1):
        synchronize(device)
        started = time.perf_counter()
        action()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times[1:])


def environment(place: Place) -> dict[str, Any]:
    """Versions, the rate of a copy (read and write) and of a product in bf16."""
    side, count = (8192, 1 << 28) if place.on_gpu else (512, 1 << 23)
    source = torch.zeros(count, device=place.device)
    target = torch.empty_like(source)
    left = torch.randn(side, side, device=place.device).bfloat16()
    copy_s = _seconds(lambda: target.copy_(source), place.device, 5)
    product_s = _seconds(lambda: left @ left, place.device, 5)
    return {
        "device": device_name(place.device),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if place.on_gpu else None,
        "memory_gib": round(torch.cuda.mem_get_info()[1] / 2**30, 1) if place.on_gpu else None,
        "cores": len(os.sched_getaffinity(0)),
        "copy_gb_s": round(2 * source.nbytes / copy_s / 1e9, 1),
        "bf16_tflops": round(2 * side**3 / product_s / 1e12, 2),
    }


def device_feed(place: Place) -> dict[str, Any]:
    """The test of the feed from pinned memory; it must not be skipped."""
    need_gpu(place, "batches are copied from pinned memory")
    words = ["-q", "-p", "no:cacheprovider", "tests/pipeline/stream/test_device_feed.py"]
    done = subprocess.run([sys.executable, "-m", "pytest", *words], capture_output=True, text=True)
    said = done.stdout.strip().rpartition("\n")[2]
    require("passed" in said and "skipped" not in said and "failed" not in said, said)
    return {"said": said}


def refusals(place: Place) -> dict[str, Any]:
    """More ranks than GPUs, and a batch that does not fit: one line each, and no hang."""
    need_gpu(place, "ranks and batches are refused by the GPUs that there are")
    cases = {
        "two_ranks": ("quickstart", ["--ranks", str(torch.cuda.device_count() + 1)], "expected one for each"),
        "large_batch": ("paper", ["train.stream.view_batch=8", "train.stream.augment.view.size=4096"], "of memory"),
    }
    said = {}
    for name, (recipe, words, expected) in cases.items():
        large = place.prepared / "large" / "datasets"
        places = [
            f"train.run={place.out / name}",
            f"out={place.prepared / 'small'}",
            f"tracking.uri=sqlite:///{name}.db",
        ]
        if recipe == "paper":
            places += [f"train.stream.views=[{{location: {large / 'images'}}}]", "train.stream.pairs=[]"]
            places += ["train.stream.pair_batch=0"]
        command = [sys.executable, "-m", "mcjepa", "train", recipe, *words, *places]
        done = subprocess.run(command, cwd=place.out, capture_output=True, text=True, timeout=40)
        lines = [line for line in done.stderr.splitlines() if line.startswith("mcjepa: ")]
        said[name] = lines[-1] if lines else done.stderr[-300:]
        require(done.returncode != 0 and bool(lines) and expected in said[name], f"{name}: {said[name]!r}")
    return said
