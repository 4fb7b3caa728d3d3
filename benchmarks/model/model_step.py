"""The joint training step, beside a straightforward composition of the same modules and losses.

    python -m benchmarks.model_step [--full] [--device cuda]

Ours: one batched pass for both frames and both directions, banded correlation, covariance by the N x N identity, bf16
autocast. Straightforward: each frame encoded and each direction estimated by itself, the loop over 81 displacements,
the D x D covariance, fp32. Forward, backward and AdamW of the paper's `tiny` model with all six terms; the expander
is half as wide. The sides alternate in one process; figures are medians, on CPUs of one thread's processor time.

The last line is JSON; `ratio` is the straightforward step's time over ours (bar: 2). `parts` says how our step's
forward and backward divide among encoder, estimator and the rest. On a GPU it also has the encoder's MFU, peak memory
and the step under torch.compile; that branch is written and has not been run: no GPU was at hand.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import cast
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

import mcjepa.model.flow_estimator
from benchmarks.model_bf16 import WEIGHTS, Batches
from benchmarks.model_covariance import by_features
from mcjepa.model.config import ExpanderConfig, ModelConfig
from mcjepa.model.correlation import correlate_loop
from mcjepa.model.losses.smoothness import smoothness_loss
from mcjepa.model.losses.variance_covariance import variance_covariance_loss
from mcjepa.model.mcjepa import MCJEPA
from mcjepa.model.reduction import run_summing
from mcjepa.model.warp import upsample_flow
from mcjepa.pipeline.monitor.throughput import OperationCounter, device_name, peak_tflops

PAIR_TERMS = ("regression", "reconstruction", "smoothness", "cycle", "vc")


@contextlib.contextmanager
def straightforward_parts() -> Iterator[None]:
    """The loop correlation in the model's place."""
    with mock.patch.object(mcjepa.model.flow_estimator, "correlate", correlate_loop):
        yield


def straightforward_loss(net: MCJEPA, batches: Batches) -> Tensor:
    """The joint loss, image stack by image stack and direction by direction."""
    (a, b), views = batches
    ends = net.encoder(a), net.encoder(b)
    there, back = net.flow_estimator(ends[0], ends[1]), net.flow_estimator(ends[1], ends[0])
    pyramid, others, flows = (
        [torch.cat(both) for both in zip(*halves, strict=True)] for halves in (ends, ends[::-1], (there, back))
    )
    images, form = torch.cat((a, b)), net.config.loss
    full = upsample_flow(flows[0], (images.shape[-2], images.shape[-1]), net.config.flow.finest_stride)
    seen = net._visible(full, flows[0])
    terms = run_summing(net._flow_terms(images, pyramid, others, flows, full, seen, WEIGHTS))
    terms["smoothness"] = smoothness_loss(full, images, form.smoothness_edge, form.smoothness_order)
    variance, covariance = variance_covariance_loss(pyramid, form.vc_variance[::-1], form.vc_covariance[::-1])
    terms["vc"] = variance + covariance
    loss = torch.stack([WEIGHTS[name] * terms[name] for name in PAIR_TERMS]).sum()
    expanded = [net.expander(net.encoder(view)[-1].mean((2, 3))) for view in views]
    hinges = [torch.relu(1 - torch.sqrt(z.var(0) + 1e-4)).mean() / 2 for z in expanded]
    loss = loss + 25 * F.mse_loss(*expanded) + 25 * torch.stack(hinges).sum()
    return loss + torch.stack([by_features(z) for z in expanded]).sum()


def our_loss(net: MCJEPA, batches: Batches) -> Tensor:
    """The model's own forward under bf16 autocast."""
    with torch.autocast(batches[0][0].device.type, torch.bfloat16):
        return net(*batches, WEIGHTS).loss


def seconds_of(action: Callable[[], object], device: torch.device) -> float:
    """Of the clock on a GPU, of this process on a CPU."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = clock()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def make_step(net: MCJEPA, batches: Batches, loss_of: Callable[[MCJEPA, Batches], Tensor]) -> Callable[[], None]:
    """A whole step of an optimizer of its own."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.0, fused=True)  # the same weights in every step of both

    def step() -> None:
        optimizer.zero_grad()
        loss_of(net, batches).backward()
        optimizer.step()

    return step


def encoder_pass(net: MCJEPA, images: Tensor) -> None:
    """Forward and backward of the encoder alone, under bf16 autocast."""
    with torch.autocast(images.device.type, torch.bfloat16):
        torch.stack([x.float().mean() for x in net.encoder(images)]).sum().backward()


def estimator_pass(net: MCJEPA, pyramid: list[Tensor]) -> None:
    """Forward and backward of the estimator alone, both directions, under bf16 autocast."""
    with torch.autocast(pyramid[0].device.type, torch.bfloat16):
        flows = net.flow_estimator(pyramid, [x.roll(len(x) // 2, 0) for x in pyramid])
        torch.stack([flow.mean() for flow in flows]).sum().backward()


def parts_of_step(net: MCJEPA, batches: Batches, step_s: float, device: torch.device) -> dict[str, float]:
    """Share of our step by part, the encoder's FLOPS, and on GPUs their share of the peak."""
    pairs, views = (torch.cat(batch) for batch in batches)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        pyramid = net.encoder(pairs)
    pyramid = [x.detach().requires_grad_() for x in pyramid]
    encoder_s = sum(seconds_of(partial(encoder_pass, net, x), device) for x in (pairs, views))
    estimator_s = seconds_of(lambda: estimator_pass(net, pyramid), device)
    with OperationCounter() as counter:
        for images in (pairs, views):
            encoder_pass(net, images)
    flops = counter.total / encoder_s
    parts = {"encoder": encoder_s / step_s, "estimator": estimator_s / step_s}
    parts = {**parts, "rest": 1 - sum(parts.values()), "encoder_gflops": flops / 1e9}
    if peak := peak_tflops(device_name(device), "bf16", 0.0):
        parts["encoder_mfu"] = flops / 1e12 / peak
    return {name: round(value, 3) for name, value in parts.items()}


def cuda_figures(net: MCJEPA, batches: Batches, device: torch.device) -> dict[str, float]:
    """Peak memory of our step, and its time under torch.compile."""
    torch.cuda.reset_peak_memory_stats()
    seconds_of(make_step(net, batches, our_loss), device)
    peak_gib = torch.cuda.max_memory_allocated() / 2**30
    compiled = make_step(cast(MCJEPA, torch.compile(net)), batches, our_loss)
    for _ in range(3):
        compiled()
    times = [seconds_of(compiled, device) for _ in range(10)]
    return {"peak_gib": round(peak_gib, 2), "compiled_ms": round(1e3 * statistics.median(times), 1)}


def measure(device: torch.device, full: bool) -> dict[str, object]:
    """Both sides, alternating, at least 3 times each."""
    pairs, views, size_px, seconds = (8, 32, 224, 240.0) if full else (1, 8, 128, 15.0)
    if device.type == "cpu":
        torch.set_num_threads(1)
    net = MCJEPA(ModelConfig(expander=ExpanderConfig(widths=(4096, 4096, 4096)))).to(device)
    batches = tuple(tuple(torch.rand(2, n, 3, size_px, size_px, device=device)) for n in (pairs, views))
    ours, plain = make_step(net, batches, our_loss), make_step(net, batches, straightforward_loss)
    spent: dict[str, list[float]] = {"ours": [], "straightforward": []}
    start = time.perf_counter()
    while len(spent["ours"]) < 4 or time.perf_counter() - start < seconds:  # the first round warms up
        spent["ours"].append(1e3 * seconds_of(ours, device))
        with straightforward_parts():
            spent["straightforward"].append(1e3 * seconds_of(plain, device))
    ratios = [plain / ours for plain, ours in zip(spent["straightforward"][1:], spent["ours"][1:], strict=True)]
    medians = {f"{name}_ms": round(statistics.median(times[1:]), 1) for name, times in spent.items()}
    return {
        "benchmark": "model_step",
        "ratio": round(statistics.median(ratios), 2),
        "bar": 2.0,
        **medians,
        "parts": parts_of_step(net, batches, medians["ours_ms"] / 1e3, device),
        **(cuda_figures(net, batches, device) if device.type == "cuda" else {}),
        "pairs": pairs,
        "views": views,
        "size_px": size_px,
        "rounds": len(ratios),
        "device": device_name(device),
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="8 pairs and 32 images of 224 px, for minutes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    print(json.dumps(measure(torch.device(arguments.device), arguments.full)))


if __name__ == "__main__":
    main()
