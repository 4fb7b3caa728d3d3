"""Memory of a rank: parameters, gradients and optimizer by formula, the step's tensors as counted, by ZeRO stage.

With n parameters in all, W ranks, AdamW, and weights of e bytes (4; fp16: 2), DeepSpeed 0.19 holds, in bytes,

    stage               0        1, 2                       3
    parameters          e n      e n                        e n / W, and e n gathered while they are used
    master copy         -        4 n / W                    4 n / W
    moments             8 n      8 n / W                    8 n / W
    backward pass       grads    bucket + grads             bucket + 4 n / W + grads      beside the activations
    reduction           2 e n    bucket + e n + 4 n / W     bucket + 4 n / W + e n        when these are freed
                                 (1: and e n more)

and the larger of the last two lines counts. The step's tensors with the gradients that they meet come from
`StepMemory`. A bucket has `reduce_bucket_size` elements (DeepSpeed's own default is 5e8: 2 GB of fp32), allocated
whole on a GPU; on a CPU only its used part (at most n elements) becomes real. With bf16 there are two, for gradients
that are reduced in bf16 and in fp32. `overlap_comm` doubles them in stages 1 and 2. Of stage 3, parameters up to the
persistence threshold stay whole on every rank; with fewer than 1e9 parameters none of those gathered is given back
before the step's end.

On a CPU the process's heap keeps what was freed, in pieces that do not fit the next request: measured are e n in
stages 1 and 2, 2 e n in stage 3, on top.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mcjepa.cluster.preflight.findings import Finding, readable_bytes

Precision = Literal["fp32", "bf16", "fp16"]
SPARE = 0.1
"""Share of a device that is left for its context, its libraries' workspaces and fragmentation."""
CPU_LIBRARIES_BYTES = 640 << 20
"""What a rank on a CPU has before the model: Python, torch, DeepSpeed, MLflow and what they allocate once. One program
on one machine took 612 to 736 MiB by itself: what the kernel maps of the libraries' files differs (182 of the 612).
Torch's compiler, which is no longer imported, was 103 of the 612. The most that is left counts, so that a rank is
never said to take less than it does."""
WATCHER_BYTES = 50 << 20
"""The process that watches a rank of a Slurm job, and counts as the job's; 43 MiB were measured."""


@dataclass(frozen=True)
class ModelSize:
    """A model's parameters."""

    parameters: tuple[int, ...]
    """Elements of each."""
    buffer_bytes: int

    @property
    def elements(self) -> int:
        """Of all."""
        return sum(self.parameters)


@dataclass(frozen=True)
class StepMemory:
    """The tensors that one micro-batch makes, parameters left out, bytes."""

    kept_bytes: int
    """Held at the end of the forward pass, for the backward pass."""
    peak_bytes: int
    """The most held at a time in forward and backward, gradients of parameters left out."""
    peak_with_gradients_bytes: int
    """The same with gradients, where all are kept until the end."""
    batch_bytes: int
    """The images."""


@dataclass(frozen=True)
class EngineFacts:
    """How the engine keeps the model."""

    zero_stage: Literal[0, 1, 2, 3]
    precision: Precision
    ranks: int
    on_gpu: bool
    offload: Literal["none", "optimizer", "parameters"] = "none"
    bucket_elements: int = 500_000_000
    overlap: bool = False
    """DeepSpeed's `overlap_comm`."""


@dataclass(frozen=True)
class MemoryEstimate:
    """What a rank holds at its peak, bytes."""

    parameters: int
    """Weights the forward pass reads, the fp32 copy that is trained, and buffers."""
    optimizer: int
    """Both moments."""
    gradients: int
    """Of parameters, and the buckets they are reduced in, at the peak."""
    step: int
    """Activations, temporaries and images at the peak."""
    heap: int
    """Freed and not given back, on CPUs."""
    host: int
    """Of all these in the host's memory by offloading."""

    @property
    def total(self) -> int:
        """On the device."""
        return self.parameters + self.optimizer + self.gradients + self.step + self.heap - self.host


def estimate_memory(model: ModelSize, step: StepMemory, engine: EngineFacts) -> MemoryEstimate:
    """A rank's memory by the formulas above.

    >>> model, nothing = ModelSize((1_000_000,), 0), StepMemory(0, 0, 0, 0)
    >>> estimate_memory(model, nothing, EngineFacts(0, "fp32", 8, True)).total  # 4 + 8 + 8
    20000000
    >>> small_bucket = EngineFacts(2, "fp32", 8, True, bucket_elements=1_000_000)
    >>> estimate_memory(model, nothing, small_bucket).total  # 4 + 12 / 8 + 4 + 4 + 4 / 8
    14000000
    """
    n, stage = model.elements, engine.zero_stage
    width = 2 if engine.precision == "fp16" else 4
    part = -(-n // engine.ranks) if stage else n
    parameters, moments = _weights(model, engine, width, part), 8 * part
    bucket, reduced = _bucket(model, engine, width), 4 * part
    in_backward = bucket if engine.on_gpu else 0
    if stage == 0:
        phases = [(0, step.peak_with_gradients_bytes), (2 * width * n, 0)]
    elif stage < 3:
        phases = [(in_backward, step.peak_with_gradients_bytes), (bucket + (3 - stage) * width * n + reduced, 0)]
    else:
        phases = [(in_backward + reduced, step.peak_with_gradients_bytes), (bucket + reduced + width * n, 0)]
    gradients, tensors = max(phases, key=sum)
    host = 0
    if engine.offload != "none":
        host = moments + 4 * part + (width * part if engine.offload == "parameters" else 0)
    heap = 0 if engine.on_gpu else (0, width * n, width * n, 2 * width * n)[stage]
    return MemoryEstimate(parameters, moments, gradients, step.batch_bytes + tensors, heap, host)


def _weights(model: ModelSize, engine: EngineFacts, width: int, part: int) -> int:
    """Parameters, master copy and buffers."""
    n = model.elements
    if engine.zero_stage == 0:
        return width * n + model.buffer_bytes
    if engine.zero_stage < 3:
        return width * n + 4 * part + model.buffer_bytes
    return width * (part + n) + 4 * part + model.buffer_bytes


def _bucket(model: ModelSize, engine: EngineFacts, width: int) -> int:
    """The buffers that gradients are reduced in; with bf16 one for each type, in stages 1 and 2 both of fp32."""
    if engine.zero_stage == 0:
        return 0
    if not engine.on_gpu:
        return width * min(engine.bucket_elements, model.elements)
    if engine.precision == "bf16":
        width = 8 if engine.zero_stage < 3 else 6
    return width * engine.bucket_elements * (2 if engine.overlap and engine.zero_stage < 3 else 1)


def memory_finding(
    estimate: MemoryEstimate,
    engine: EngineFacts,
    micro_batch: str,
    device_bytes: int | None,
    ranks_per_device: int,
    watched: bool = False,
    copies: int = 0,
) -> Finding:
    """Whether a rank fits its device.

    Args:
        estimate: of a rank.
        engine: the settings that led to it.
        micro_batch: in words.
        device_bytes: memory of a GPU, or of the node where ranks compute on CPUs; None: not known.
        ranks_per_device: 1 a GPU; all ranks of a node.
        watched: whether each rank has a process that watches it.
        copies: bytes on the device of what all its ranks copy of their state, to save it in the background.
    """
    fixed = 0 if engine.on_gpu else CPU_LIBRARIES_BYTES + (WATCHER_BYTES if watched else 0)
    needed = (estimate.total + fixed) * ranks_per_device + copies
    parts = ", ".join(
        f"{name} {readable_bytes(size)}"
        for name, size in (
            ("weights", estimate.parameters), ("moments", estimate.optimizer), ("gradients", estimate.gradients),
            ("activations", estimate.step), ("heap", estimate.heap), ("libraries", fixed),
        )
        if size
    )  # fmt: skip
    where = "a GPU" if engine.on_gpu else f"a node with {ranks_per_device} rank(s)"
    host = f", {readable_bytes(estimate.host)} of it on the host" if estimate.host else ""
    found = (
        f"ZeRO-{engine.zero_stage}, {engine.precision}, {micro_batch}: a rank holds "
        f"{readable_bytes(estimate.total + fixed)} ({parts}{host})"
    )
    found += f", copies to be saved {readable_bytes(copies)} in all" if copies else ""
    if device_bytes is None:
        fix = "give --memory-gib G, or memory_gb in the site file"
        return Finding("memory", "warning", f"{found}; the memory of {where} is not known", "", fix)
    usable = device_bytes * (1 - SPARE)
    found += f"; {where} has {readable_bytes(device_bytes)}"
    if needed > usable:
        return Finding(
            "memory", "error", found, f"at most {readable_bytes(usable)} for {where} ({SPARE:.0%} is spare)",
            _advice(estimate, engine),
        )  # fmt: skip
    return Finding("memory", "ok", found)


def _advice(estimate: MemoryEstimate, engine: EngineFacts) -> str:
    """What would save most."""
    if estimate.step > estimate.total / 2:
        return "set model.encoder.activation_checkpointing=true, use more ranks, or lower the batches or crops"
    if engine.on_gpu and engine.zero_stage and estimate.gradients > estimate.total / 3:
        return "set train.engine.options={zero_optimization: {reduce_bucket_size: 50000000}}, or use more ranks"
    if engine.zero_stage < 2:
        return "set train.engine.zero_stage=2, or use more ranks"
    return "use more ranks, offload the optimizer (train.engine.offload=optimizer, on GPUs), or a smaller expander"
