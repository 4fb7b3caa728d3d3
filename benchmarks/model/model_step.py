"""The joint training step, beside a straightforward composition of the same modules and losses in the same precision.

    python -m benchmarks.model_step [--full] [--device cuda]

Ours: one batched pass for both frames and both directions, banded correlation, covariance by the N x N identity.
Straightforward: each frame and view encoded and each direction estimated by itself, the loop over 81 displacements,
the D x D covariance, torch's own 3x3 convolutions. It keeps our other layers (dense convolutions by source, LayerNorm,
depthwise gradients) and fp32 losses on both frames at once. Forward, backward and fused AdamW of
the paper's `tiny` model with all six terms; the expander is half as wide. Before anything is timed, both must give the
same loss and, in fp32, the same gradient. The four sides, each form in bf16 autocast and in fp32, alternate in one
process; figures are medians, on CPUs of one thread's processor time.

The last line is JSON; `bf16` and `fp32` are the straightforward step's time over ours in that precision, `ratio` is the
smaller one (bar: 1.5). `parts` says how our bf16 step's forward and backward divide among encoder, estimator and the
rest. On a GPU it also has the encoder's MFU, peak memory and the step under torch.compile; that branch is written and
has not been run: no GPU was at hand.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from operator import truediv
from typing import cast
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

import mcjepa.model.flow_estimator
from benchmarks.model_bf16 import WEIGHTS, Batches, torch_convolutions
from benchmarks.model_covariance import by_features
from mcjepa.model.config import ExpanderConfig, ModelConfig
from mcjepa.model.correlation import correlate_loop
from mcjepa.model.encoder import DropPath
from mcjepa.model.losses.smoothness import smoothness_loss
from mcjepa.model.losses.variance_covariance import variance_covariance_loss
from mcjepa.model.mcjepa import MCJEPA
from mcjepa.model.reduction import run_summing
from mcjepa.model.warp import upsample_flow
from mcjepa.pipeline.monitor.throughput import OperationCounter, device_name, peak_tflops
from mcjepa.pipeline.world import disable_malloc_trim

PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}
PAIR_TERMS = ("regression", "reconstruction", "smoothness", "cycle", "vc")


@contextlib.contextmanager
def straightforward_parts() -> Iterator[None]:
    """The loop correlation and torch's convolutions in the model's place."""
    with mock.patch.object(mcjepa.model.flow_estimator, "correlate", correlate_loop), torch_convolutions():
        yield


def autocast_to(dtype: torch.dtype, device: torch.device) -> torch.autocast:
    """Autocast in this precision; none in fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)


def straightforward_loss(net: MCJEPA, batches: Batches, dtype: torch.dtype) -> Tensor:
    """The joint loss, image stack by image stack and direction by direction."""
    (a, b), views = batches
    with autocast_to(dtype, a.device):
        ends = net.encoder(a), net.encoder(b)
        there, back = net.flow_estimator(ends[0], ends[1]), net.flow_estimator(ends[1], ends[0])
        embeddings = torch.cat([net.encoder(view)[-1].mean((2, 3)) for view in views])
        expanded = net.expander(embeddings).float().chunk(2)  # its batch norm counts both views, as ours does
    pyramid, others, flows = (
        [torch.cat(both).float() for both in zip(*halves, strict=True)] for halves in (ends, ends[::-1], (there, back))
    )
    images, form = torch.cat((a, b)), net.config.loss
    full = upsample_flow(flows[0], (images.shape[-2], images.shape[-1]), net.config.flow.finest_stride)
    seen = net._visible(full, flows[0])
    terms = run_summing(net._flow_terms(images, pyramid, others, flows, full, seen, WEIGHTS))
    terms["smoothness"] = smoothness_loss(full, images, form.smoothness_edge, form.smoothness_order)
    variance, covariance = variance_covariance_loss(pyramid, form.vc_variance[::-1], form.vc_covariance[::-1])
    terms["vc"] = variance + covariance
    loss = torch.stack([WEIGHTS[name] * terms[name] for name in PAIR_TERMS]).sum()
    hinges = [torch.relu(1 - torch.sqrt(z.var(0) + 1e-4)).mean() / 2 for z in expanded]
    loss = loss + 25 * F.mse_loss(*expanded) + 25 * torch.stack(hinges).sum()
    return loss + torch.stack([by_features(z) for z in expanded]).sum()


def our_loss(net: MCJEPA, batches: Batches, dtype: torch.dtype) -> Tensor:
    """The model's own forward."""
    with autocast_to(dtype, batches[0][0].device):
        return net(*batches, WEIGHTS).loss


FORMS = {"ours": our_loss, "straightforward": straightforward_loss}


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


def make_step(net: MCJEPA, loss_of: Callable[[], Tensor]) -> Callable[[], None]:
    """A whole step of an optimizer of its own."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.0, fused=True)  # the same weights in every step of all

    def step() -> None:
        optimizer.zero_grad()
        loss_of().backward()
        optimizer.step()

    return step


def require_equal(net: MCJEPA, batches: Batches) -> None:
    """Stops where both forms disagree: in the loss, and in fp32 in the gradient. No branch is dropped for it, as both
    forms would drop others."""
    for module in net.modules():
        module.train(not isinstance(module, DropPath))
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 2e-2)):
        found = []
        for name, loss_of in FORMS.items():
            net.zero_grad()
            with straightforward_parts() if name == "straightforward" else contextlib.nullcontext():
                loss = loss_of(net, batches, dtype)
                loss.backward()
            norm = torch.stack([p.grad.norm() for p in net.parameters() if p.grad is not None]).norm()
            found.append((loss.detach(), norm if dtype == torch.float32 else loss.detach()))
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=0)
    net.train()


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
    seconds_of(make_step(net, lambda: our_loss(net, batches, torch.bfloat16)), device)
    peak_gib = torch.cuda.max_memory_allocated() / 2**30
    whole = cast(MCJEPA, torch.compile(net))
    compiled = make_step(whole, lambda: our_loss(whole, batches, torch.bfloat16))
    for _ in range(3):
        compiled()
    times = [seconds_of(compiled, device) for _ in range(10)]
    return {"peak_gib": round(peak_gib, 2), "compiled_ms": round(1e3 * statistics.median(times), 1)}


def alternate(net: MCJEPA, batches: Batches, device: torch.device, limit_s: float) -> dict[str, list[float]]:
    """Milliseconds of every side, `ours_bf16` and so on, at least 3 times each, in forward and backward order."""
    steps = {
        f"{form}_{name}": make_step(net, partial(loss_of, net, batches, dtype))
        for name, dtype in PRECISIONS.items()
        for form, loss_of in FORMS.items()
    }
    spent: dict[str, list[float]] = {side: [] for side in steps}
    start, rounds = time.perf_counter(), 0
    while rounds < 4 or time.perf_counter() - start < limit_s:
        for side in list(steps)[:: -1 if rounds % 2 else 1]:
            with straightforward_parts() if side.startswith("straightforward") else contextlib.nullcontext():
                spent[side].append(1e3 * seconds_of(steps[side], device))
        rounds += 1
    return {side: times[1:] for side, times in spent.items()}  # the first round warms up


def measure(device: torch.device, full: bool) -> dict[str, object]:
    """Every side, alternating."""
    pairs, views, size_px, seconds = (8, 32, 224, 480.0) if full else (1, 8, 128, 30.0)
    if device.type == "cpu":
        torch.set_num_threads(1)
        disable_malloc_trim()  # as a training process does
        # The four sides have more kernels than oneDNN keeps; a training process, which has one, compiles each once.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")
    net = MCJEPA(ModelConfig(expander=ExpanderConfig(widths=(4096, 4096, 4096)))).to(device)
    batches = tuple(tuple(torch.rand(2, n, 3, size_px, size_px, device=device)) for n in (pairs, views))
    require_equal(net, batches)
    spent = alternate(net, batches, device, seconds)
    ratios = {
        name: statistics.median(map(truediv, spent[f"straightforward_{name}"], spent[f"ours_{name}"]))
        for name in PRECISIONS
    }
    medians = {f"{side}_ms": round(statistics.median(times), 1) for side, times in spent.items()}
    return {
        "benchmark": "model_step",
        "ratio": round(min(ratios.values()), 2),
        "bar": 1.5,
        **{name: round(ratio, 2) for name, ratio in ratios.items()},
        **medians,
        "parts": parts_of_step(net, batches, medians["ours_bf16_ms"] / 1e3, device),
        **(cuda_figures(net, batches, device) if device.type == "cuda" else {}),
        "pairs": pairs,
        "views": views,
        "size_px": size_px,
        "rounds": len(spent["ours_bf16"]),
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
