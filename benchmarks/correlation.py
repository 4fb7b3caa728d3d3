"""The correlation of two maps as banded matrix products, beside the loop over displacements.

    python benchmarks/correlation.py [--full] [--device cuda]

Forward and backward at sizes of the pyramid's levels (search range 4, 81 displacements), in the memory layout that
the loop is faster in. The sides alternate; the figures are medians of several rounds, on one thread. `--full` adds
sizes and rounds; a GPU also runs bf16. The last line is JSON; `ratio` is the loop's time over ours,
the geometric mean over sizes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from model.correlation import correlate, correlate_loop

SEARCH_RANGE = 4
SIZES = ((1, 256, 64, 112), (8, 128, 32, 56), (8, 192, 16, 28))
MORE_SIZES = ((8, 48, 96, 96), (1, 48, 96, 208), (8, 384, 8, 14), (8, 768, 4, 7))
Correlation = Callable[[Tensor, Tensor, int], Tensor]
SIDES: dict[str, Correlation] = {"banded": correlate, "loop": correlate_loop}


def make_maps(size: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Two random maps (B, C, h, w), contiguous: the loop is two to three times slower in the encoder's own layout."""
    return tuple(torch.randn(size, device=device, dtype=dtype, requires_grad=True) for _ in range(2))


def run_once(correlation: Correlation, left: Tensor, right: Tensor) -> float:
    """Seconds of one forward and backward."""
    left.grad = right.grad = None
    if left.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    correlation(left, right, SEARCH_RANGE).square().sum().backward()
    if left.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def require_equal(left: Tensor, right: Tensor) -> None:
    """Stops where the sides disagree: their times would mean nothing."""
    with torch.no_grad():
        ours, reference = (side(left.float(), right.float(), SEARCH_RANGE) for side in SIDES.values())
    worst = (ours - reference).abs().max().item()
    if worst > 1e-2:  # products of unit normals; TF32 on GPUs
        raise RuntimeError(f"the sides differ by {worst}, expected at most 1e-2")


def measure_size(size: tuple[int, ...], device: torch.device, dtype: torch.dtype, rounds: int) -> dict[str, float]:
    """Median milliseconds of both sides, alternating, after a warm-up of each."""
    left, right = make_maps(size, device, dtype)
    require_equal(left, right)
    for correlation in SIDES.values():
        run_once(correlation, left, right)
    spent: dict[str, list[float]] = {name: [] for name in SIDES}
    for _ in range(rounds):
        for name, correlation in SIDES.items():
            spent[name].append(1e3 * run_once(correlation, left, right))
    return {name: statistics.median(times) for name, times in spent.items()}


def measure(device: torch.device, full: bool) -> dict[str, object]:
    """Both sides at every size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    sizes, rounds = (SIZES + MORE_SIZES, 15) if full else (SIZES, 5)
    kinds = [torch.float32, torch.bfloat16] if device.type == "cuda" else [torch.float32]
    rows, ratios = [], []
    for dtype in kinds:
        for size in sizes:
            ms = measure_size(size, device, dtype, rounds)
            ratio = ms["loop"] / ms["banded"]
            name = f"{'x'.join(map(str, size))} {str(dtype).removeprefix('torch.')}"
            print(f"{name:<24}banded {ms['banded']:>9.2f} ms   loop {ms['loop']:>9.2f} ms   ratio {ratio:>6.2f}")
            ratios.append(ratio)
            rows.append({"size": name, "ratio": round(ratio, 2), **{f"{k}_ms": round(v, 2) for k, v in ms.items()}})
    torch.set_num_threads(threads)
    return {
        "benchmark": "correlation",
        "ratio": round(statistics.geometric_mean(ratios), 2),
        "lowest_ratio": round(min(ratios), 2),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "rounds": rounds,
        "sizes": rows,
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="more sizes and rounds")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    print(json.dumps(measure(torch.device(arguments.device), arguments.full)))


if __name__ == "__main__":
    main()
