"""How fast a step is: its floating-point operations, their share of the device's peak, and profiles of some steps.

The operations are counted in a real step, the first of each set of terms: products and convolutions, forward and
backward; two operations a multiply-add. Formulas are torch's own (`torch.utils.flop_counter`) but for the backward pass
of convolutions, where torch leaves out the groups: it counts a depthwise layer as many times too high as it has
channels. MFU (Chowdhery et al., PaLM, 2022, appendix B) is that number over the step's seconds and the device's peak at
the run's precision.

Steps that the recipe's `train.profile` names are profiled by torch:

RUN/profile/step-000000100-rank-00000.json.gz     trace for chrome://tracing or ui.perfetto.dev
RUN/profile/step-000000100-rank-00000.txt         operations by time
RUN/profile/step-000000100-rank-00000.pickle      CUDA memory history, for pytorch.org/memory_viz
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from mcjepa.pipeline.run.folder import PROFILE
from mcjepa.pipeline.settings.monitor import ProfileConfig

PEAK_TFLOPS = (
    ("B200", 2250.0), ("H200", 989.0), ("H100 PCIe", 756.0), ("H100 NVL", 835.0), ("H100", 989.0), ("GH200", 989.0),
    ("A100", 312.0), ("A800", 312.0), ("H800", 989.0), ("L40S", 362.0), ("L40", 181.0), ("L4", 121.0), ("A40", 150.0),
    ("A10", 125.0), ("A30", 165.0), ("V100", 125.0), ("T4", 65.0), ("RTX 4090", 165.0), ("RTX 3090", 71.0),
    ("MI300X", 1307.0), ("MI250", 383.0),
)  # fmt: skip
"""Words of a device's name -> dense peak in 16 bits, TFLOP/s, from the makers' data sheets; the first match counts."""


def peak_tflops(device_name: str, precision: str, configured: float) -> float:
    """Peak of one device, TFLOP/s: the recipe's where it names one; 0 where it is not known.

    >>> peak_tflops("NVIDIA A100-SXM4-80GB", "bf16", 0.0), peak_tflops("NVIDIA RTX A1000", "bf16", 0.0)
    (312.0, 0.0)

    The table is for 16 bits; of fp32 it says nothing, because that depends on whether TF32 is allowed.
    """
    if configured or precision == "fp32":
        return configured
    words = f" {re.sub(r'[^A-Za-z0-9]+', ' ', device_name)} "  # `A100-SXM4-80GB` has three; `RTX A1000` has no `A100`
    return next((peak for name, peak in PEAK_TFLOPS if f" {name} " in words), 0.0)


def convolution_backward_flops(
    gradient: Tensor, images: Tensor, weight: Tensor, transposed: bool, wanted: Sequence[bool]
) -> int:
    """Operations of a convolution's backward pass: each gradient that is computed costs what the forward pass did.

    Args:
        gradient: of the output, (B, C_out, ...).
        images: the input, (B, C_in, ...).
        weight: (C_out, C_in / groups, ...); (C_in, C_out / groups, ...) of a transposed one.
        transposed: whether it is one.
        wanted: whether the gradients of input, weight and bias are computed; that of the bias is a sum, not counted.
    """
    small = images if transposed else gradient  # every position there meets the whole kernel of its group
    forward = 2 * (small.numel() // small.shape[1]) * weight.numel()
    return forward * (int(wanted[0]) + int(wanted[1]))


class OperationCounter(TorchDispatchMode):
    """Counts the operations inside its `with`, forward and backward, in `total`."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if func._overloadpacket is torch.ops.aten.convolution_backward:
            self.total += convolution_backward_flops(args[0], args[1], args[2], args[7], args[-1])
        elif formula is not None:
            self.total += int(formula(*args, **(kwargs or {}), out_val=out))
        return out


class FlopCounter:
    """Counts a step's operations; hand it to `run_step` and read `total` afterwards (0 until the step was taken)."""

    def __init__(self) -> None:
        self._counter = OperationCounter()
        self.total = 0

    @contextlib.contextmanager
    def forward(self) -> Iterator[None]:
        """Counts the forward pass inside."""
        with self._counter:
            yield

    def before_backward(self, loss: Tensor) -> None:
        """Starts counting the backward pass."""
        self._counter.__enter__()

    def after_backward(self) -> None:
        """Ends counting."""
        self._counter.__exit__(None, None, None)
        self.total = self._counter.total


def device_name(device: torch.device) -> str:
    """Name of the accelerator; `cpu` without one."""
    return str(torch.cuda.get_device_name(device)) if device.type == "cuda" else "cpu"


log = logging.getLogger(__name__)
ROWS = 40
MEMORY_EVENTS = 100_000


class ProfileWindow:
    """Profiles `steps` steps from `start_step` on; told of the beginning of every step and of the end of the run."""

    def __init__(self, config: ProfileConfig, run: Path, rank: int, device: torch.device) -> None:
        self._wanted = config.start_step >= 0 and rank in config.ranks
        self._first, self._last = config.start_step, config.start_step + config.steps
        self._place = run / PROFILE / f"step-{max(config.start_step, 0):09d}-rank-{rank:05d}"
        self._cuda = device.type == "cuda"
        self._profiler: Any = None

    def begin(self, step: int) -> None:
        """Called before step `step` reads its batch."""
        if self._profiler is None and self._wanted and self._first <= step < self._last:
            self._start()
        elif self._profiler is not None and step >= self._last:
            self.end()

    def _start(self) -> None:
        from torch.profiler import ProfilerActivity, profile

        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._cuda else [])]
        if self._cuda:
            torch.cuda.memory._record_memory_history(max_entries=MEMORY_EVENTS)
        self._profiler = profile(activities=kinds, record_shapes=True, profile_memory=True)
        self._profiler.__enter__()

    def end(self) -> None:
        """Ends the window and writes its files; nothing where none is open. A full disk costs the profile alone."""
        if self._profiler is None:
            return
        profiler, self._profiler, self._wanted = self._profiler, None, False
        profiler.__exit__(None, None, None)
        steps = f"profile of steps {self._first} to {self._last - 1}"
        try:
            self._write(profiler)
        except (OSError, RuntimeError) as error:  # torch's own words for a file that it cannot write
            log.error("%s is not kept, %s cannot be written: %s; the run goes on", steps, self._place.parent, error)
        else:
            log.info("%s: %s.json.gz", steps, self._place)
        if self._cuda:
            torch.cuda.memory._record_memory_history(enabled=None)

    def _write(self, profiler: Any) -> None:
        self._place.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(f"{self._place}.json.gz")
        order = "self_cuda_time_total" if self._cuda else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=order, row_limit=ROWS)
        self._place.with_suffix(".txt").write_text(table, encoding="utf-8")
        if self._cuda:
            torch.cuda.memory._dump_snapshot(f"{self._place}.pickle")
