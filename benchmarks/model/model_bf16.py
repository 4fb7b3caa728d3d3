"""A joint training step of the paper's `tiny` model under bf16 autocast, beside the same step in fp32.

    python -m benchmarks.model_bf16 [--full] [--device cuda]

Forward, backward and AdamW of the whole objective (all six terms) on one pair batch and one view batch, from the same
weights: with `--full` what each of the paper's eight GPUs had in a step, without it a sixth of its views and of its
pair's pixels, where what is paid by weight (casts, AdamW) counts six times as much. AdamW is fused on both sides,
as `pipeline.engine` has it. The sides alternate in one process; figures are medians of pairwise ratios, on CPUs of one
thread's processor time. The last line is JSON; `ratio` is fp32's time over bf16's (bar, for the paper's step: 2 on CPUs
with avx512_bf16 or amx; `capable` says whether this one has them), `direct_ratio` the same of fp32 with torch's own
convolutions, as the bar was meant: Winograd's form has made fp32 quicker, not bf16. The CUDA branch is written and has
not been run: no
GPU was at hand.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from operator import truediv
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

import mcjepa.model.layers.convolution
from mcjepa.model.config import ExpanderConfig, ModelConfig
from mcjepa.model.mcjepa import MCJEPA

WEIGHTS = {"regression": 0.1, "reconstruction": 0.1, "smoothness": 7.5, "cycle": 0.02, "vc": 0.1, "content": 1.0}
Batches = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]


def capable(device: torch.device) -> bool:
    """Whether the processor multiplies bf16 numbers natively."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    flags = Path("/proc/cpuinfo")
    words = set(flags.read_text().split()) if flags.is_file() else set()
    return bool({"avx512_bf16", "amx_bf16"} & words)


def convolve_by_torch(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int = 1) -> Tensor:
    """A 3x3 convolution as torch has it."""
    return F.conv2d(x, weight, bias, padding=dilation, dilation=dilation)


def torch_convolutions() -> AbstractContextManager[object]:
    """Torch's own convolutions in the model's place."""
    return mock.patch.object(mcjepa.model.layers.convolution, "convolve_3x3", convolve_by_torch)


@dataclass(frozen=True)
class StepSize:
    """Samples of a step and their sizes."""

    pairs: int
    pair_px: tuple[int, int]
    images: int
    view_px: int


BRIEF, FULL = StepSize(1, (192, 256), 8, 224), StepSize(1, (384, 832), 48, 224)


def make_step_parts(device: torch.device, size: StepSize) -> tuple[MCJEPA, torch.optim.Optimizer, Batches]:
    """The paper's model with an expander of a quarter of its width, an optimizer, and random batches."""
    model = MCJEPA(ModelConfig(expander=ExpanderConfig(widths=(2048, 2048, 2048)))).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    pair_batch = tuple(torch.rand(2, size.pairs, 3, *size.pair_px, device=device))
    view_batch = tuple(torch.rand(2, size.images, 3, size.view_px, size.view_px, device=device))
    return model, optimizer, (pair_batch, view_batch)


def run_step(model: MCJEPA, optimizer: torch.optim.Optimizer, batches: Batches, dtype: torch.dtype | None) -> float:
    """Seconds of one step, in fp32 or under autocast."""
    device = batches[0][0].device
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    autocast = torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = clock()
    with autocast:
        loss = model(*batches, WEIGHTS).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    if not bool(loss.isfinite()):
        raise RuntimeError(f"the loss is {loss.item()}; a time of such a step means nothing")
    return clock() - start


def measure(device: torch.device, full: bool) -> dict[str, object]:
    """Both precisions, alternating for the time there is, at least 3 times each."""
    size, seconds = (FULL, 300.0) if full else (BRIEF, 25.0)
    torch.set_num_threads(1)  # threads that wait for each other count as processor time
    parts = make_step_parts(device, size)
    for dtype in (None, torch.bfloat16):
        run_step(*parts, dtype)
    fp32, direct, bf16 = list[float](), list[float](), list[float]()
    start = time.perf_counter()
    while len(fp32) < 3 or time.perf_counter() - start < seconds:
        fp32.append(1e3 * run_step(*parts, None))
        bf16.append(1e3 * run_step(*parts, torch.bfloat16))
        with torch_convolutions():
            direct.append(1e3 * run_step(*parts, None))
    return {
        "benchmark": "model_bf16",
        "ratio": round(statistics.median(map(truediv, fp32, bf16)), 2),
        "bar": 2.0,
        "direct_ratio": round(statistics.median(map(truediv, direct, bf16)), 2),
        "capable": capable(device),
        "fp32_ms": round(statistics.median(fp32), 1),
        "bf16_ms": round(statistics.median(bf16), 1),
        **asdict(size),
        "rounds": len(fp32),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="1 pair of 384x832 and 48 images, for minutes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    if not capable(device):
        print("this processor does not multiply bf16 natively: the bar does not apply")
    print(json.dumps(measure(device, arguments.full)))


if __name__ == "__main__":
    main()
