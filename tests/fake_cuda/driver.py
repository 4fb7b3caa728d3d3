"""Steps and what evaluations compute of features, on fake tensors "on" a GPU; a process of its own: see `load_shim`.

    python driver.py SHIM [WORD …]      prints one line of JSON a case: {"case": NAME, "error": TEXT or ""}

Of words, only the cases whose names have one of them are run.

Fake tensors have shapes, types and devices and no content. An operation on tensors of two devices is an error, as it
would be on a GPU; a tensor without dimensions may be on the CPU, which torch allows.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import sys
import traceback
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any
from unittest import mock


def load_shim(shim: str) -> None:
    """Before torch is imported: it asks for the hooks of CUDA when it is."""
    spec = importlib.util.find_spec("torch")
    assert spec and spec.submodule_search_locations
    libraries = Path(spec.submodule_search_locations[0]) / "lib"
    for path in (libraries / "libc10.so", libraries / "libtorch_cpu.so", Path(shim)):
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


load_shim(sys.argv[1])

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch._subclasses import fake_tensor  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from mcjepa.evals.infer.tiling import tiled_features, tiled_flow  # noqa: E402
from mcjepa.evals.models import McJepaEvalModel  # noqa: E402
from mcjepa.evals.probe.features import Statistics, encode_tensor  # noqa: E402
from mcjepa.evals.probe.knn import NearestCells  # noqa: E402
from mcjepa.evals.vos.propagation import propagate_labels  # noqa: E402
from mcjepa.evals.vos.settings import VosConfig  # noqa: E402
from mcjepa.model import mcjepa as joint  # noqa: E402
from mcjepa.model.config import ModelConfig  # noqa: E402
from mcjepa.model.mcjepa import MCJEPA, TERMS  # noqa: E402
from mcjepa.pipeline.engine.parameters import parameter_groups  # noqa: E402
from mcjepa.pipeline.recipe.recipe import Recipe, load_recipe, required  # noqa: E402
from mcjepa.pipeline.settings.train import TrainConfig  # noqa: E402
from mcjepa.pipeline.stream.batches import RawBatch  # noqa: E402

CUDA, PAIRS, VIEWS = torch.device("cuda", 0), 2, 4
READS = {"_local_scalar_dense": 1.0, "item": 1.0, "is_nonzero": True}
"""Answers where a value is read; in inference mode `bool(x)` and `x.item()` come as operations of their own."""


class NoContent(TorchDispatchMode):
    """Answers where a value is read (the model's checks of images ask), and fills nothing at random."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in READS:
            return READS[name]
        if name in ("uniform_", "bernoulli_", "normal_"):
            return args[0]
        return func(*args, **(kwargs or {}))


def fake_model(config: ModelConfig, dtype: torch.dtype = torch.float32) -> MCJEPA:
    """The model with parameters and buffers on the GPU."""
    with fake_tensor.unset_fake_temporarily(), torch.device("meta"):
        model = MCJEPA(config).train()
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(torch.empty(parameter.shape, dtype=dtype, device=CUDA))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=CUDA)
    return model


def bytes_of(count: int, size: tuple[int, int]) -> RawBatch:
    """Two stacks of pictures as a loader hands them over."""
    stacks = (torch.empty(count, *size, 3, dtype=torch.uint8) for _ in "ab")
    return RawBatch(*stacks, tuple(map(str, range(count))), ())


def take_step(config: TrainConfig, model_config: ModelConfig, precision: str) -> None:
    """Batches to the GPU, forward with all terms, backward, update."""
    half = precision == "fp16"
    model = fake_model(model_config, torch.float16 if half else torch.float32)
    augment, stream = config.stream.augment, config.stream
    pairs = views = None
    if stream.pair_batch:
        pairs = bytes_of(PAIRS, augment.pair.crop).to_floats(CUDA, torch.contiguous_format)
    if stream.view_batch:
        views = bytes_of(VIEWS, (augment.view.size,) * 2).to_floats(CUDA, torch.channels_last)
    if half:
        pairs, views = ((images[0].half(), images[1].half()) if images else None for images in (pairs, views))
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=precision == "bf16"):
        result = model(pairs, views, dict.fromkeys(TERMS, 1.0))
    assert result.loss.device == CUDA and all(term.device == CUDA for term in result.terms.values())
    result.loss.backward()
    groups = parameter_groups(model, config.optimizer)
    assert any(p.grad is not None for group in groups for p in group["params"])
    if not half:
        torch.optim.AdamW(groups, betas=config.optimizer.betas, fused=True).step()


def recipes() -> list[str]:
    """All recipes that ship."""
    root = Path(str(resources.files("mcjepa.configs")))
    return sorted(str(path) for path in root.rglob("*.yaml") if path.parent.name != "site")


def different(paths: list[str]) -> dict[str, Recipe]:
    """Recipes with a training, by name; of those with one model, pictures and precision, the first."""
    found: dict[str, Recipe] = {}
    seen = set()
    for path in paths:
        recipe, _ = load_recipe(path, [])
        if recipe.train:
            stream = recipe.train.stream
            batches = bool(stream.pair_batch), bool(stream.view_batch)
            what = repr((recipe.model, stream.augment, batches, recipe.train.engine.precision))
            if what not in seen:
                seen.add(what)
                found[str(Path(path).relative_to(Path(path).parents[1]).with_suffix(""))] = recipe
    return found


def evaluate(config: ModelConfig) -> None:
    """What evaluations and `infer` ask of a model: flow and features of frames on the CPU, which come back there."""
    network = fake_model(config)
    with mock.patch.object(network, "to", lambda _: network):  # fake parameters cannot be exchanged for moved ones
        subject = McJepaEvalModel(network, CUDA)
    frames = torch.empty(2, 3, 128, 192), torch.empty(2, 3, 128, 192)
    levels = encode_tensor(subject, frames[0], (4, 8, 16, 32))
    parts = tiled_features(subject, frames[0], 8, 128, 64), tiled_flow(subject, frames, 128, 64)
    flow = subject.flow(*frames)
    assert {x.device.type for x in (*levels, *parts, flow)} == {"cpu"}
    assert flow.shape == parts[1].shape == (2, 2, 128, 192) and parts[0].shape == levels[1].shape


def propagate() -> None:
    """Labels of a video on the GPU."""
    config = VosConfig()
    frames = (torch.empty(16, 12, 20, device=CUDA) for _ in range(4))
    first = torch.empty(3, 12, 20, device=CUDA)
    assert all(labels.device == CUDA for _, labels in propagate_labels(frames, first, config))


def vote_of_neighbours() -> None:
    """The k-nearest-neighbour probe on the GPU, its statistics on the CPU as they are measured."""
    statistics = Statistics((torch.empty(8), torch.empty(4)), (torch.empty(8), torch.empty(4)), 10)
    cells = NearestCells(
        torch.empty(50, 12, device=CUDA), torch.empty(50, 5, device=CUDA), statistics, (4, 8), k=7, temperature=0.1
    )
    votes = cells([torch.empty(1, 8, 6, 6, device=CUDA), torch.empty(1, 4, 3, 3, device=CUDA)])
    assert votes.device == CUDA and votes.shape == (1, 5, 6, 6)


def spoil(config: TrainConfig, model_config: ModelConfig) -> None:
    """A step of a model in which somebody forgot where a tensor goes: it must be an error."""
    before = joint.swap_halves

    def forgetful(x: Tensor) -> Tensor:
        return before(x) + torch.zeros(x.shape[-1])

    try:
        with mock.patch.object(joint, "swap_halves", forgetful):
            take_step(config, model_config, "fp32")
    except RuntimeError as error:
        assert "cuda:0 and cpu" in str(error), error
        return
    raise AssertionError("a tensor on the CPU met one on the GPU, and nothing was said")


def cases() -> dict[str, Callable[[], None]]:
    """Every case by name."""
    shipped = different(recipes())
    trains = {name: (required(recipe.train, "train", recipe), recipe.model) for name, recipe in shipped.items()}
    found: dict[str, Callable[[], None]] = {
        f"step of {name}": lambda pair=pair: take_step(*pair, pair[0].engine.precision) for name, pair in trains.items()
    }
    quick = trains["configs/quickstart"]
    found |= {f"step in {precision}": lambda p=precision: take_step(*quick, p) for precision in ("bf16", "fp16")}
    found["evaluation and infer"] = lambda: evaluate(quick[1])
    found["propagation"] = propagate
    found["nearest neighbours"] = vote_of_neighbours
    found["a forgotten device is an error"] = lambda: spoil(*quick)
    return found


def believe_in_a_gpu(stack: contextlib.ExitStack) -> None:
    """What torch asks in Python; nothing real is put on the GPU, so a list of numbers is moved by a fake operation."""
    for place, name, value in (
        (torch.cuda, "is_available", lambda: True),
        (torch.cuda, "is_bf16_supported", lambda *_, **__: True),
        (fake_tensor, "init_gpu_context", lambda *_: None),
        (fake_tensor.FakeTensorMode, "avoid_device_init", True),
    ):
        stack.enter_context(mock.patch.object(place, name, value))


def main() -> None:
    """Run all, whatever fails."""
    with contextlib.ExitStack() as stack:
        believe_in_a_gpu(stack)
        for name, run in cases().items():
            if len(sys.argv) > 2 and not any(word in name for word in sys.argv[2:]):
                continue
            error = ""
            try:
                with fake_tensor.FakeTensorMode(), NoContent():
                    run()
            except Exception:
                error = traceback.format_exc()
            print(json.dumps({"case": name, "error": error}), flush=True)


if __name__ == "__main__":
    main()
