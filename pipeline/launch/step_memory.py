"""What a rank's forward and backward pass hold in memory: the recipe's real model runs on fake tensors.

Fake tensors (`torch._subclasses.fake_tensor`, as torchtitan's memory estimation uses them) have shapes and no content,
so the real micro-batch at its real size takes seconds and no memory, whatever the model. The process group is a fake
one of the planned world size, so that tensors gathered over all ranks have their size too. Every storage is counted
from the operation that makes it until nobody holds it.

Not seen: what a kernel takes and gives back within itself (cuDNN's and oneDNN's workspaces).
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from mcjepa.cluster.preflight.memory import ModelSize, StepMemory
from mcjepa.model.config import ModelConfig
from mcjepa.model.mcjepa import MCJEPA, TERMS
from mcjepa.pipeline.settings.train import TrainConfig

ANSWER = 1.0
"""What the model is told when it reads a value (its checks of images ask): finite, and at most 1."""
RANDOM = ("uniform_", "bernoulli_", "normal_")


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are made while it is on and still held."""

    def __init__(self) -> None:
        super().__init__()
        self._sizes: dict[int, int] = {}
        self.now = self.peak = 0
        """Bytes held now, and the most ever."""
        self.gradients = 0
        """Of them, gradients of the parameters given to `watch`."""
        self.peak_without_gradients = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                self._add(tensor)
        return out

    def leave_out(self, module: nn.Module) -> None:
        """Does not count the module's parameters and buffers when operations hand them on."""
        for tensor in (*module.parameters(), *module.buffers()):
            self._sizes[tensor.untyped_storage()._cdata] = 0

    def watch(self, module: nn.Module) -> None:
        """Tells gradients of the module's parameters from other tensors."""

        def note(parameter: Tensor) -> None:
            assert parameter.grad is not None
            self.gradients += parameter.grad.untyped_storage().nbytes()

        for parameter in module.parameters():
            parameter.register_post_accumulate_grad_hook(note)

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.now += storage.nbytes()
        weakref.finalize(storage, self._drop, key)
        self.peak = max(self.peak, self.now)
        self.peak_without_gradients = max(self.peak_without_gradients, self.now - self.gradients)

    def _drop(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


class _FakeBytes(LiveBytes):
    """The same for fake tensors, which have no values to read and nothing to fill at random."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return ANSWER
        if func.overloadpacket.__name__ in RANDOM:
            return args[0]
        return super().__torch_dispatch__(func, types, args, kwargs)


def model_size(config: ModelConfig) -> ModelSize:
    """Parameters and buffers of a model; nothing is allocated."""
    with torch.device("meta"):
        model = MCJEPA(config)
    return ModelSize(
        tuple(parameter.numel() for parameter in model.parameters()),
        sum(buffer.nbytes for buffer in model.buffers()),
    )


def step_memory(config: TrainConfig, model_config: ModelConfig, ranks: int) -> StepMemory:
    """What one micro-batch of a rank holds, all loss terms on; of more ranks than pairs, one that has a pair.

    Args:
        config: the run's settings; `ranks` times `accumulation_steps` divides its batches.
        model_config: the model's.
        ranks: of the whole run.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    stream, parts = config.stream, ranks * config.engine.accumulation_steps
    with torch.device("meta"):
        model = MCJEPA(model_config).train()
    weights = dict.fromkeys(TERMS, 1.0)
    with _fake_world(ranks), FakeTensorMode():
        _make_fake(model)
        pairs = _images(-(-stream.pair_batch // parts), stream.augment.pair.crop)
        views = _images(-(-stream.view_batch // parts), (stream.augment.view.size,) * 2)
        live = _FakeBytes()
        live.leave_out(model)
        live.watch(model)
        low = config.engine.precision != "fp32"
        with live:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
                loss = model(pairs, views, weights).loss
            kept = live.now
            loss.backward()
    images = sum(image.nbytes for images in (pairs, views) for image in images or ())
    return StepMemory(kept, live.peak_without_gradients, live.peak, images)


def _make_fake(model: nn.Module) -> None:
    """Gives every parameter and buffer a fake tensor of its shape."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype)


def _images(count: int, size: tuple[int, int]) -> tuple[Tensor, Tensor] | None:
    return (torch.empty(count, 3, *size), torch.empty(count, 3, *size)) if count else None


@contextlib.contextmanager
def _fake_world(ranks: int) -> Iterator[None]:
    """A process group of so many ranks in which collectives do nothing."""
    if ranks == 1 or dist.is_initialized():
        yield
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()
