"""VICReg's covariance term by the N x N identity, beside the D x D matrix of the published form.

    python -m benchmarks.model_covariance [--full] [--device cuda]

Forward and backward at the paper's sizes, N = 384 embeddings of D = 8192 features of two views: sum_{i != j} C_ij^2 / D
from z^T z (as VICReg's paper writes it) and from z z^T (`model.losses.vicreg`). The sides alternate in one process;
figures are medians. The last line is JSON; `ratio` is the D x D form's time over ours (bar: 5). The CUDA branch is
written and has not been run: no GPU was at hand.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from mcjepa.model.losses.vicreg import vicreg_terms

ROWS, WIDTH = 384, 8192


def by_features(z_ND: Tensor) -> Tensor:
    """The published form with its D x D matrix."""
    rows, width = z_ND.shape
    z = z_ND - z_ND.mean(0)
    matrix = (z.T @ z) / (rows - 1)
    return (matrix.square().sum() - matrix.diagonal().square().sum()) / width


SIDES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "identity": lambda z, other: vicreg_terms(z, other)[2],
    "by_features": lambda z, other: by_features(z) + by_features(other),
}


def run_once(side: Callable[[Tensor, Tensor], Tensor], views: list[Tensor]) -> float:
    """Seconds of one forward and backward."""
    z = views[0]
    for view in views:
        view.grad = None
    if z.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    side(*views).backward()
    if z.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def require_equal(views: list[Tensor]) -> None:
    """Stops where the sides disagree in value or gradient."""
    results = []
    for side in SIDES.values():
        term = side(*views)
        results.append((term.detach(), *torch.autograd.grad(term, views)))
    for ours, published in zip(*results, strict=True):
        torch.testing.assert_close(ours, published, rtol=1e-3, atol=1e-6)


def measure(device: torch.device, rounds: int) -> dict[str, object]:
    """Both sides, alternating."""
    views = [torch.randn(ROWS, WIDTH, device=device, requires_grad=True) for _ in range(2)]
    require_equal(views)
    spent: dict[str, list[float]] = {name: [] for name in SIDES}
    for _ in range(rounds):
        for name, side in SIDES.items():
            spent[name].append(1e3 * run_once(side, views))
    ratios = [slow / quick for slow, quick in zip(spent["by_features"], spent["identity"], strict=True)]
    return {
        "benchmark": "model_covariance",
        "ratio": round(statistics.median(ratios), 2),
        "bar": 5.0,
        **{f"{name}_ms": round(statistics.median(times), 2) for name, times in spent.items()},
        "rows": ROWS,
        "width": WIDTH,
        "rounds": rounds,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="more rounds")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    print(json.dumps(measure(torch.device(arguments.device), 31 if arguments.full else 7)))


if __name__ == "__main__":
    main()
