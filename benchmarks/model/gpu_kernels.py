"""Kernels and bytes of the paper's rank step on a GPU, counted without one, and the step time that they predict.

    python -m benchmarks.gpu_kernels [RECIPE] [--ops]        RECIPE: paper

An eighth of the recipe's batch (8 ranks), forward, backward and AdamW in bf16, on fake tensors "on" a GPU
(`tests/fake_cuda`; needs g++). An operation that computes counts as one kernel and reads and writes its tensors once; a
convolution's backward pass counts a kernel a gradient. What a compiler makes of encoder and estimator is estimated: of
neighbouring operations element by element one kernel is left, which reads what comes from outside and writes the last
result. Rooms are run apart; `losses` is the rest of the model. `--ops` names the operations with most kernels.

Prediction for an H100, for each room the largest of: FLOP at 989 TFLOP/s (dense bf16), bytes at 3.35 TB/s, launches at
5 us (eager; compiled with CUDA graphs none). The last line is JSON; `ratio` is predicted eager over compiled time.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RANKS = 8
FLOPS_S, BYTES_S, LAUNCH_S = 989e12, 3.35e12, 5e-6
TENSORS_A_LAUNCH = 30
"""Of four lists, as torch's multi-tensor kernels take them."""
COMPILED = ("encoder", "estimator")
NO_KERNEL = ("empty", "detach", "alias", "local_scalar", "set_", "lift", "is_same_size", "sym_size", "new_empty")
HEAVY = (
    "conv", "mm", "bmm", "layer_norm", "batch_norm", "grid_sampler", "cat", "stack", "index_add", "sum", "mean", "var",
    "amax", "norm", "unfold", "im2col", "col2im", "upsample", "adamw", "pad", "pool", "cudnn",
)  # fmt: skip


@dataclass
class Tally:
    """What a room launches and moves; `fused` is what is left where a compiler joins neighbours."""

    kernels: int = 0
    moved: int = 0
    fused_kernels: int = 0
    fused_moved: int = 0
    flops: int = 0
    operations: Counter[str] = field(default_factory=Counter)

    def __sub__(self, other: Tally) -> Tally:
        names = ("kernels", "moved", "fused_kernels", "fused_moved", "flops")
        rest = Tally(*(getattr(self, name) - getattr(other, name) for name in names))
        rest.operations = self.operations - other.operations
        return rest

    def seconds(self, *, compiled: bool) -> float:
        """Predicted."""
        kernels, moved = (0, self.fused_moved) if compiled else (self.kernels, self.moved)
        return max(self.flops / FLOPS_S, moved / BYTES_S, kernels * LAUNCH_S)


def _counting(tally: Tally) -> contextlib.AbstractContextManager[Any]:
    """A dispatch mode that counts into `tally`; a function, because torch is imported after the shim."""
    from torch import Tensor
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    def nbytes(tensor: Tensor) -> int:
        return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())

    class Counting(TorchDispatchMode):
        made: set[int] = set()  # noqa: RUF012  (what the current run of neighbours has made)
        last = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            name = func.overloadpacket.__name__
            if not (func.is_view or any(word in name for word in NO_KERNEL)):
                given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
                made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
                if "adamw" in name:  # many tensors a launch; all but the gradients are written too
                    tally.kernels += -(-len(args[0]) // TENSORS_A_LAUNCH)
                    tally.moved += 7 * sum(map(nbytes, args[0]))
                elif made:
                    self.count(name, args, given, made)
            return out

        def count(self, name: str, args: Any, given: list[Tensor], made: list[Tensor]) -> None:
            kernels = sum(args[-1]) if name == "convolution_backward" else 1
            written = sum(map(nbytes, made))
            tally.kernels += kernels
            tally.moved += sum(map(nbytes, given)) + written
            tally.operations[name] += kernels
            outside = sum(nbytes(x) for x in given if id(x.untyped_storage()._cdata) not in self.made)
            if any(word in name for word in HEAVY):
                tally.fused_kernels += kernels
                tally.fused_moved += sum(map(nbytes, given)) + written
                self.made, self.last = set(), 0
                return
            if not self.made:
                tally.fused_kernels += 1
            tally.fused_moved += outside + written - self.last
            self.last = written
            self.made |= {id(x.untyped_storage()._cdata) for x in made}

    return Counting()


def count(name: str) -> dict[str, Tally]:
    """Room -> tally; the shim is loaded with the driver's module, before torch."""
    from tests.fake_cuda import driver  # isort: skip
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from mcjepa.pipeline.monitor.throughput import FlopCounter

    recipe, _ = driver.load_recipe(name, [])
    config = driver.required(recipe.train, "train", recipe)
    stream, rooms, model = config.stream, {}, None

    def measure(room: str, action: Callable[[], Any]) -> Any:
        rooms[room] = tally = Tally()
        if model is not None and room != "optimizer":
            model.zero_grad(set_to_none=True)
        flops = FlopCounter()
        with torch.autocast("cuda", torch.bfloat16), _counting(tally):
            flops.before_backward(torch.empty(()))  # all of it is counted as one pass
            result = action()
            flops.after_backward()
        tally.flops = flops.total
        return result

    def backward(outputs: list[Any]) -> None:
        torch.autograd.backward(outputs, [torch.empty_like(x) for x in outputs])

    with contextlib.ExitStack() as stack:
        driver.believe_in_a_gpu(stack)
        stack.enter_context(FakeTensorMode())
        stack.enter_context(driver.NoContent())
        model = driver.fake_model(recipe.model)
        groups = driver.parameter_groups(model, config.optimizer)
        raw_pairs = driver.bytes_of(stream.pair_batch // RANKS, stream.augment.pair.crop)
        raw_views = driver.bytes_of(stream.view_batch // RANKS, (stream.augment.view.size,) * 2)
        formats = torch.contiguous_format, torch.channels_last
        pairs, views = measure(
            "batches",
            lambda: [raw.to_floats(driver.CUDA, way) for raw, way in zip((raw_pairs, raw_views), formats, strict=True)],
        )
        weights = dict.fromkeys(driver.TERMS, 1.0)
        measure("encoder", lambda: backward([x for part in (pairs, views) for x in model.encoder(torch.cat(part))]))
        with torch.autocast("cuda", torch.bfloat16), torch.no_grad():
            pyramid = model.encoder(torch.cat(pairs))
        ends = [[x.detach().requires_grad_() for x in levels] for levels in (pyramid, pyramid)]
        measure("estimator", lambda: backward(model.flow_estimator(*ends)))
        measure("model", lambda: model(pairs, views, weights).loss.backward())
        optimizer = torch.optim.AdamW(groups, betas=config.optimizer.betas, fused=True)
        optimizer.step()
        measure("optimizer", optimizer.step)
    rooms["losses"] = rooms.pop("model") - rooms["encoder"] - rooms["estimator"]
    return rooms


def table(rooms: dict[str, Tally]) -> dict[str, float]:
    """Prints a row a room, eager and compiled; the sums."""
    print("| room | TFLOP | kernels | GB | ms | kernels, compiled | GB | ms |\n|---|---|---|---|---|---|---|---|")
    total = Counter[str]()
    for room in ("batches", "encoder", "estimator", "losses", "optimizer"):
        tally, compiled = rooms[room], room in COMPILED
        kernels, moved = (tally.fused_kernels, tally.fused_moved) if compiled else (tally.kernels, tally.moved)
        row = {"tflop": tally.flops / 1e12}
        row |= {"kernels": tally.kernels, "gb": tally.moved / 1e9, "ms": 1e3 * tally.seconds(compiled=False)}
        row |= {"compiled_kernels": kernels, "compiled_gb": moved / 1e9}
        row |= {"compiled_ms": 1e3 * tally.seconds(compiled=compiled)}
        print(f"| {room} | " + " | ".join(f"{x:.2f}" if isinstance(x, float) else str(x) for x in row.values()) + " |")
        total.update(row)
    return {name: round(float(value), 2) for name, value in total.items()}


def main() -> int:
    """Builds the shim and counts in a process that loads it first."""
    if len(sys.argv) < 2 or not sys.argv[1].endswith(".so"):
        from tests.fake_cuda.test_fake_cuda import REPOSITORY, build_shim

        with tempfile.TemporaryDirectory() as folder:
            shim = build_shim(Path(folder))
            words = [sys.executable, "-m", "benchmarks.gpu_kernels", str(shim), *sys.argv[1:]]
            return subprocess.run(words, cwd=REPOSITORY).returncode
    names = [word for word in sys.argv[2:] if not word.startswith("-")] or ["paper"]
    rooms = count(names[0])
    figures = table(rooms)
    if "--ops" in sys.argv:
        for room, tally in rooms.items():
            print(room, ", ".join(f"{name} {n}" for name, n in tally.operations.most_common(14)))
    ratio = round(figures["ms"] / figures["compiled_ms"], 2)
    print(json.dumps({"benchmark": "gpu_kernels", "ratio": ratio, "recipe": names[0], **figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
