"""The correlation of two maps as banded matrix products, beside the loop over displacements.

    python -m benchmarks.model_correlation [--full] [--device cuda]

Forward and backward (search range 4, 81 displacements) at the sizes of every level that the paper's recipe decodes:
crops of 384 x 832 px, both directions, so two maps a pair. The sides alternate in one process; figures are medians.
The loop is given contiguous maps, in which it is two to three times faster than in the encoder's own layout. On CPUs
one thread runs and its processor time counts, which other programs disturb least; the peak of extra memory is taken
from the allocations that torch's profiler records.

The last line is JSON; `ratio` is the loop's time over ours, the smallest over the sizes (bar: 3), and
`memory_ratio` ours over the loop's peak, the largest over the sizes (bar: below 1). A GPU also runs bf16; that branch
is written and has not been run: no GPU was at hand.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from mcjepa.model.correlation import correlate, correlate_loop

SEARCH_RANGE = 4
CROP_PX = (384, 832)
LEVELS = ((4, 48), (8, 96), (16, 192), (32, 384), (64, 768))  # stride and channels of the decoded levels
Correlation = Callable[[Tensor, Tensor, int], Tensor]
SIDES: dict[str, Correlation] = {"banded": correlate, "loop": correlate_loop}


def level_sizes(pairs: int) -> list[tuple[int, int, int, int]]:
    """(B, C, h, w) of every decoded level, finest first."""
    height, width = CROP_PX
    return [(2 * pairs, channels, -(-height // s), -(-width // s)) for s, channels in LEVELS]


def make_maps(size: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Two random maps (B, C, h, w)."""
    return tuple(torch.randn(size, device=device, dtype=dtype, requires_grad=True) for _ in range(2))


def run_once(correlation: Correlation, left: Tensor, right: Tensor) -> float:
    """Seconds of one forward and backward: of the clock on a GPU, of this process on a CPU."""
    left.grad = right.grad = None
    clock = time.perf_counter if left.is_cuda else time.process_time
    if left.is_cuda:
        torch.cuda.synchronize()
    start = clock()
    correlation(left, right, SEARCH_RANGE).square().sum().backward()
    if left.is_cuda:
        torch.cuda.synchronize()
    return clock() - start


def peak_mib(correlation: Correlation, left: Tensor, right: Tensor) -> float:
    """Most memory held at once beyond the maps, in MiB."""
    left.grad = right.grad = None
    if left.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run_once(correlation, left, right)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        run_once(correlation, left, right)
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak / 2**20


def require_equal(left: Tensor, right: Tensor) -> None:
    """Stops where the sides disagree: their times would mean nothing."""
    with torch.no_grad():
        ours, reference = (side(left.float(), right.float(), SEARCH_RANGE) for side in SIDES.values())
    worst = (ours - reference).abs().max().item()
    if worst > 1e-2:  # products of unit normals; TF32 on GPUs
        raise RuntimeError(f"the sides differ by {worst}, expected at most 1e-2")


def measure_size(size: tuple[int, ...], device: torch.device, dtype: torch.dtype, seconds: float) -> dict[str, float]:
    """Median milliseconds of both sides, alternating for `seconds` and at least 3 times, and their peaks."""
    left, right = make_maps(size, device, dtype)
    require_equal(left, right)
    measured = {f"{name}_mib": round(peak_mib(side, left, right), 1) for name, side in SIDES.items()}
    spent: dict[str, list[float]] = {name: [] for name in SIDES}
    start = time.perf_counter()
    while len(spent["loop"]) < 3 or time.perf_counter() - start < seconds:
        for name, correlation in SIDES.items():
            spent[name].append(1e3 * run_once(correlation, left, right))
    measured |= {f"{name}_ms": round(statistics.median(times), 3) for name, times in spent.items()}
    ratios = [loop / banded for loop, banded in zip(spent["loop"], spent["banded"], strict=True)]
    return {"ratio": round(statistics.median(ratios), 2), "rounds": len(ratios), **measured}


def measure(device: torch.device, pairs: int, seconds: float) -> dict[str, object]:
    """Both sides at every size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    kinds = [torch.float32, torch.bfloat16] if device.type == "cuda" else [torch.float32]
    rows: list[dict[str, object]] = []
    ratios, memory = [], []
    for dtype in kinds:
        for size in level_sizes(pairs):
            row = measure_size(size, device, dtype, seconds)
            name = f"{'x'.join(map(str, size))} {str(dtype).removeprefix('torch.')}"
            print(f"{name:<26}" + "   ".join(f"{key} {value}" for key, value in row.items()), flush=True)
            rows.append({"size": name, **row})
            ratios.append(row["ratio"])
            memory.append(row["banded_mib"] / row["loop_mib"])
    torch.set_num_threads(threads)
    return {
        "benchmark": "model_correlation",
        "ratio": min(ratios),
        "bar": 3.0,
        "memory_ratio": round(max(memory), 2),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "pairs": pairs,
        "sizes": rows,
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="4 pairs, as each of two ranks has them, and more rounds")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    pairs, seconds = (4, 20.0) if arguments.full else (1, 4.0)
    print(json.dumps(measure(torch.device(arguments.device), pairs, seconds)))


if __name__ == "__main__":
    main()
